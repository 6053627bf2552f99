"""Limits of this machine and of litellm for a process: open files, and connections per host."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys
from pathlib import Path

from .options import Concurrency, checked_concurrency

logger = logging.getLogger("parallel_core")

# Files besides the connections: the output, its lock, sockets of name look-ups, modules, pipes.
_RESERVE = 64
_USUALLY_OPEN = 32  # if the system does not list open files
_OF_MACOS = 10_240  # its real limit if it reports an infinite hard limit


def raise_open_files() -> None:
    """Raise this process's soft limit of open files to the hard limit, if the system allows it."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, _OF_MACOS):
        if soft == resource.RLIM_INFINITY or 0 <= limit <= soft:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (ValueError, OSError):  # above what the system allows
            continue
        return


def _soft_limit() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def fit_open_files(
    concurrency: Concurrency, connections_per_call: int, *, to_be_opened: int = 0
) -> tuple[Concurrency, str | None]:
    """Lower a concurrency for which this process may not open enough files.

    Args:
        concurrency: concurrency of one process.
        connections_per_call: connections of one call; a hedged call has two.
        to_be_opened: files that will certainly be opened later.

    Returns:
        The concurrency, and a note for the user if it was lowered.
    """
    limit = _soft_limit()
    if limit is None:
        return concurrency, None
    files = limit - _open_files() - _RESERVE - to_be_opened
    fitting = max(1, files // connections_per_call)
    most = most_calls(concurrency)
    if most <= fitting:
        return concurrency, None
    lowered: Concurrency
    settings = checked_concurrency(concurrency)
    if isinstance(settings, int):
        lowered = fitting
    else:
        lowered = dataclasses.replace(
            settings,
            maximum=fitting,
            initial=min(settings.first_limit, fitting),
            minimum=min(settings.minimum, fitting),
        )
    return lowered, (
        f"calls in flight: at most {fitting:,} instead of {most:,}, since a process may open "
        f"{limit:,} files (ulimit -n)"
    )


def most_calls(concurrency: Concurrency) -> int:
    """Return the highest number of calls that a concurrency allows in flight."""
    settings = checked_concurrency(concurrency)
    return settings if isinstance(settings, int) else settings.maximum


def _open_files() -> int:
    for folder in (Path("/proc/self/fd"), Path("/dev/fd")):
        try:
            return len(list(folder.iterdir()))
        except OSError:
            continue
    return _USUALLY_OPEN


def allow_connections(calls: int) -> None:
    """Make litellm keep its connections alive, and open one connection per call.

    By default litellm opens 500 connections to a host, and does not notice that a server has gone
    while it waits for an answer. litellm reads these environment variables when it is imported, so
    a later call has no effect. Values that the user has set stay.
    """
    os.environ.setdefault("AIOHTTP_SO_KEEPALIVE", "true")
    for name, usual in (
        ("AIOHTTP_CONNECTOR_LIMIT", 1000),
        ("AIOHTTP_CONNECTOR_LIMIT_PER_HOST", 500),
    ):
        if calls > usual:
            os.environ.setdefault(name, str(calls))


def warn_of_connections(concurrency: int) -> None:
    """Warn in the log if the imported litellm allows fewer connections than calls in flight."""
    limit: object = getattr(
        sys.modules.get("litellm.constants"), "AIOHTTP_CONNECTOR_LIMIT_PER_HOST", None
    )
    if isinstance(limit, int) and 0 < limit < concurrency:
        _warn_once(limit, concurrency)


@functools.cache
def _warn_once(limit: int, concurrency: int) -> None:
    logger.warning(
        "litellm opens %d connections to a host, but up to %d calls may be in flight: set the "
        "environment variable AIOHTTP_CONNECTOR_LIMIT_PER_HOST (and AIOHTTP_CONNECTOR_LIMIT, if "
        "above 1000) to %d before litellm is imported",
        limit,
        concurrency,
        concurrency,
    )
