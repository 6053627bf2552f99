"""What does it cost to keep every result on disk? ``python -m benchmarks.journal``.

Tasks hand results to a journal as fast as it takes them, with ``fdatasync`` for each group of them,
in asyncio and in trio: one task, like the consumer of a batch, and 64. Nothing else happens
meanwhile, so the time for a result is what the journal adds to a run that waits for nothing; in a
real one, calls go on while the disk works. Beside it, in turn: the same lines with a plain
``write`` and ``fdatasync`` for each group, the floor.

Then a file of a million finished requests is opened again, in a process of its own: seconds, and
by how much the memory of the process grows at its peak.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio

from parallel_core.journal import (
    CallStatistics,
    Journal,
    JournalEntry,
    RunPaths,
    statistics_line,
)

GROUP = 32
MIB = 1024.0  # KiB, in which the system tells the memory of a process
ANSWER = "The film is a quiet triumph, and its last scene stays with you for days. " * 4


def make_line(number: int) -> bytes:
    """A result line of a usual size: about 700 bytes."""
    body = {
        "id": f"chatcmpl-{number:024}",
        "object": "chat.completion",
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}}],
        "usage": {"prompt_tokens": 120, "completion_tokens": 70, "total_tokens": 190},
    }
    response = {"status_code": 200, "request_id": f"req-{number:024}", "body": body}
    line = {"id": f"batch_req_{number:024}", "custom_id": f"request-{number}"}
    return json.dumps({**line, "response": response, "error": None}).encode()


def make_entries(count: int) -> list[JournalEntry]:
    entries: list[JournalEntry] = []
    for number in range(count):
        call = CallStatistics(
            custom_id=f"request-{number}", model="gpt-4o-mini", started_at=0, duration=1, ok=True
        )
        entries.append(
            JournalEntry(
                call.custom_id, make_line(number), ok=True, statistics=statistics_line(call)
            )
        )
    return entries


def appending(
    world: str, tasks: int, folder: Path, entries: list[JournalEntry]
) -> tuple[float, float]:
    """Microseconds for each result: on the clock, and of the processor."""

    async def main() -> tuple[float, float]:
        journal = Journal.open(RunPaths.of(folder / "out.jsonl"), {}, force_new=True)
        waiting = iter(entries)

        async def slot() -> None:
            for entry in waiting:
                await journal.append(entry)

        began, began_cpu = time.perf_counter(), time.process_time()
        async with anyio.create_task_group() as group:
            for _ in range(tasks):
                group.start_soon(slot)
        await journal.aclose()
        seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        assert journal.succeeded == len(entries)
        return seconds / len(entries) * 1e6, cpu / len(entries) * 1e6

    return anyio.run(main, backend=world)


def floor(folder: Path, entries: list[JournalEntry]) -> tuple[float, float]:
    """The same of the disk alone."""
    began, began_cpu = time.perf_counter(), time.process_time()
    with (folder / "floor").open("wb", buffering=0) as file:
        for first in range(0, len(entries), GROUP):
            file.write(b"".join(entry.line + b"\n" for entry in entries[first : first + GROUP]))
            os.fdatasync(file.fileno())
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return seconds / len(entries) * 1e6, cpu / len(entries) * 1e6


def resuming(folder: Path) -> None:
    """In a process of its own: open the journal and print what that took."""
    paths = RunPaths.of(folder / "out.jsonl")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    journal = Journal.open(paths, {})
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    journal.close()
    found = {"finished": journal.succeeded, "seconds": seconds, "grown": (peak - before) / MIB}
    print(json.dumps({**found, "peak": peak / MIB}))


def make_finished_run(folder: Path, count: int) -> None:
    paths = RunPaths.of(folder / "out.jsonl")
    Journal.open(paths, {}, force_new=True).close()
    with paths.output.open("wb") as file:
        file.writelines(make_line(number) + b"\n" for number in range(count))


def summary(values: list[float], unit: str) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.1f} {unit} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.journal", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to be measured")
    parser.add_argument("--smoke", action="store_true", help="does it run?")
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resume is not None:
        resuming(options.resume)
        return
    results, finished, rounds = (200, 1000, 1) if options.smoke else (20_000, 1_000_000, 5)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="journal-") as name:
        folder = Path(name)
        entries = make_entries(results)
        ways: dict[str, Callable[[], tuple[float, float]]] = {
            f"{world}, {tasks} {'task' if tasks == 1 else 'tasks'}": functools.partial(
                appending, world, tasks, folder, entries
            )
            for world in ("asyncio", "trio")
            for tasks in (1, 64)
        }
        ways["the disk alone"] = functools.partial(floor, folder, entries)
        measured: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, measure in ways.items():
                measured[way].append(measure())
        for way, times in measured.items():
            clock, cpu = ([pair[index] for pair in times] for index in (0, 1))
            print(f"{way}: {summary(clock, 'us')} for each of {results} results, ", end="")
            print(f"{summary(cpu, 'us')} of the processor")
        make_finished_run(folder, finished)
        command = [sys.executable, "-m", "benchmarks.journal", "--resume", str(folder)]
        found = [json.loads(subprocess.check_output(command)) for _ in range(rounds)]
        assert all(one["finished"] == finished for one in found)
        print(f"{finished} finished requests are found in ", end="")
        print(summary([one["seconds"] for one in found], "s"), end=", memory grows by ")
        print(summary([one["grown"] for one in found], "MiB"), end=" to ")
        print(summary([one["peak"] for one in found], "MiB"))


if __name__ == "__main__":
    main()
