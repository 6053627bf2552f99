"""What this machine and litellm allow a process: open files, and connections to one host."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import sys
from pathlib import Path

from .options import Concurrency, checked_concurrency

logger = logging.getLogger("parallel_core")

# Files beside the connections: the output, its lock, sockets of name look-ups, modules, pipes.
_RESERVE = 64
_USUALLY_OPEN = 32  # where the system does not list them
_OF_MACOS = 10_240  # its most, where the hard limit claims to be infinite


def raise_open_files() -> None:
    """Raise this process's soft limit of open files to the hard one, if the system lets it."""
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
        concurrency: of the calls of one process.
        connections_per_call: a hedged call has two.
        to_be_opened: files that are certain to be opened still.

    Returns:
        The concurrency, and a note for the user if it is another one.
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
    """Return how many calls a concurrency can have in flight."""
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
    """Have litellm keep its connections alive, and open one for each call.

    By default it opens 500 to a host, and does not notice that a server is gone while it waits for
    an answer. litellm reads these variables of the environment when it is imported, so later this
    has no effect; what the user has set stays.
    """
    os.environ.setdefault("AIOHTTP_SO_KEEPALIVE", "true")
    for name, usual in (
        ("AIOHTTP_CONNECTOR_LIMIT", 1000),
        ("AIOHTTP_CONNECTOR_LIMIT_PER_HOST", 500),
    ):
        if calls > usual:
            os.environ.setdefault(name, str(calls))


def warn_of_connections(concurrency: int) -> None:
    """Log that litellm has been imported with fewer connections than calls in flight."""
    limit: object = getattr(
        sys.modules.get("litellm.constants"), "AIOHTTP_CONNECTOR_LIMIT_PER_HOST", None
    )
    if isinstance(limit, int) and 0 < limit < concurrency:
        _warn_once(limit, concurrency)


@functools.cache
def _warn_once(limit: int, concurrency: int) -> None:
    logger.warning(
        "litellm opens %d connections to a host, and up to %d calls are to be in flight: set the "
        "environment variable AIOHTTP_CONNECTOR_LIMIT_PER_HOST (and AIOHTTP_CONNECTOR_LIMIT, if "
        "above 1000) to %d before litellm is imported",
        limit,
        concurrency,
        concurrency,
    )
