"""Ray for tests: small, quiet, and with all of its files in a folder that is removed again."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

OBJECT_STORE = 80 * 2**20  # bytes
IGNORED_WARNINGS = (
    # Of Ray itself, while it starts and ends.
    "ignore::ResourceWarning:ray",
    "ignore::DeprecationWarning:ray",
    "ignore::FutureWarning:ray",
)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """One for the process: in another home Ray would not find the token that it has read."""
    return tempfile.TemporaryDirectory(prefix="pc", ignore_cleanup_errors=True)


@contextlib.contextmanager
def ray_environment() -> Generator[str]:
    """The variables that keep Ray in a folder. Gives the folder."""
    folder = _folder().name
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "RAY_TMPDIR"):
            patch.setenv(name, folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # As the package does it where it starts Ray: on a busy machine they would hardly run.
        patch.setenv("RAY_worker_niceness", "0")
        # Workers import what tests import.
        tests = str(Path(__file__).parents[1])
        patch.setenv("PYTHONPATH", os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]))
        yield folder


@contextlib.contextmanager
def running_ray(cpus: int = 2) -> Generator[Any]:
    """Ray on this machine, for as long as a block lasts."""
    ray: Any = pytest.importorskip("ray")
    with ray_environment() as folder:
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=OBJECT_STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        try:
            yield ray
        finally:
            ray.shutdown()
