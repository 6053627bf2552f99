"""The processes that a process has started, directly or not: those of Ray above all (Linux)."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterable
from pathlib import Path


def descendants(pid: int) -> dict[int, str]:
    """Return the commands of all processes that a process has started, directly or not, by id."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            parent = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found: dict[int, str] = {}
    left = [pid]
    while left:
        for child in children.get(left.pop(), []):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                found[child] = command.replace(b"\0", b" ").decode()
                left.append(child)
    return found


def workers_of(pid: int) -> list[int]:
    """The workers on Ray that a driver has started."""
    return [child for child, command in descendants(pid).items() if "ray::Worker" in command]


def still_running(pids: Iterable[int], *, within: float) -> list[int]:
    """Return the processes that have not ended after so many seconds."""
    until = time.monotonic() + within
    left: list[int] = []
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with os.fdopen(descriptor):
            ended, _, _ = select.select([descriptor], [], [], max(0, until - time.monotonic()))
        if not ended:
            left.append(pid)
    return left
