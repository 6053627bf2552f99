"""Ray for tests: small, quiet, and with all of its files in a folder that is removed again."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from helpers.ray_worker_forks import forking_process, workers_are_forked

OBJECT_STORE = 80 * 2**20  # bytes
CPUS = 32  # a worker says that it needs one: this lets many be there at once
IGNORED_WARNINGS = (
    # Of Ray itself, while it starts and ends.
    "ignore::ResourceWarning:ray",
    "ignore::DeprecationWarning:ray",
    "ignore::FutureWarning:ray",
)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Make one folder per process: in another home Ray does not find the token that it has read."""
    return tempfile.TemporaryDirectory(prefix="pc", ignore_cleanup_errors=True)


@contextlib.contextmanager
def ray_environment() -> Generator[str]:
    """Set the variables that keep Ray in a folder. Gives the folder."""
    folder = _folder().name
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "RAY_TMPDIR"):
            patch.setenv(name, folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # As in the package: with Ray's default, workers hardly run on a busy machine.
        patch.setenv("RAY_worker_niceness", "0")
        # Workers import what tests import.
        tests = str(Path(__file__).parents[1])
        patch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
        yield folder


@contextlib.contextmanager
def running_ray(cpus: int = CPUS) -> Generator[Any]:
    """Run Ray, with the variables with which commands find it, for as long as a block lasts.

    A Ray of the session that has been started is used.
    """
    with ray_environment(), started_ray(cpus) as ray:
        yield ray


@contextlib.contextmanager
def started_ray(cpus: int = CPUS) -> Generator[Any]:
    """Run Ray on this machine for as long as a block lasts, or use the one that runs already.

    Its start takes 3 s or more: tests use the fixture ``ray``, which lasts for the session.
    """
    ray: Any = pytest.importorskip("ray")
    if ray.is_initialized():
        yield ray
        return
    with contextlib.ExitStack() as stack:
        forks = None
        if hasattr(os, "pidfd_open"):
            forks = stack.enter_context(forking_process(_folder().name))
        with ray_environment() as folder, contextlib.ExitStack() as starting:
            if forks is not None:
                starting.enter_context(workers_are_forked(forks))
            hook, handler = sys.excepthook, signal.getsignal(signal.SIGTERM)
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=OBJECT_STORE,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
                # Otherwise Ray starts a worker for each CPU at once.
                _system_config={"prestart_worker_first_driver": False},
            )
            # Ray's own handlers must not stay in a process that runs other tests.
            sys.excepthook = hook
            signal.signal(signal.SIGTERM, handler)
        stack.callback(ray.shutdown)
        yield ray


def ray_home() -> Path:
    """Where a Ray that was started here has its token."""
    return Path(_folder().name)
