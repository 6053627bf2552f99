"""What does a whole run of a file cost, without HTTP? ``python -m benchmarks.run_file``.

A file of requests goes through ``run_file`` with a call that answers at once: reading, the batch,
the lines of the output, the journal with its ``fdatasync``. Each size is in a process of its own,
which then runs the same again, when all is finished. Told are microseconds of the processor and on
the clock for each request, and the memory of the process at its peak.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from parallel_core import run_file

SIZES = (10_000, 100_000, 1_000_000)
MIB = 1024.0  # KiB, in which the system tells the memory of a process


async def answer(*, model: str, messages: list[dict[str, str]], **_: Any) -> dict[str, Any]:
    await asyncio.sleep(0)
    message = {"role": "assistant", "content": messages[0]["content"] * 10}
    return {
        "id": "chatcmpl-1",
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 60, "total_tokens": 72},
    }


def write_requests(path: Path, count: int) -> None:
    with path.open("w") as lines:
        for number in range(count):
            messages = [{"role": "user", "content": f"What is {number}?"}]
            body = {"model": "gpt", "messages": messages}
            lines.write(json.dumps({"custom_id": f"request-{number}", "body": body}) + "\n")


def peak() -> float:
    """MiB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def measure(count: int, folder: Path) -> None:
    """In a process of its own: run a file twice, and print a row for each."""
    source, output = folder / "requests.jsonl", folder / "answers.jsonl"
    write_requests(source, count)
    print(f"{count:>9,} requests; before: {peak():.0f} MiB")
    for what in ("sent", "finished already"):
        began, began_cpu = time.perf_counter(), time.process_time()
        summary = asyncio.run(run_file(answer, source, output, concurrency=64))
        clock, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        assert summary.ok
        assert summary.succeeded + summary.earlier_succeeded == count
        print(
            f"          {what}: {clock:.2f} s, {1e6 * clock / count:.1f} us for each, "
            f"{1e6 * cpu / count:.1f} us of the processor; {peak():.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="requests")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    parser.add_argument("--smoke", action="store_true", help="does it run?")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        measure(options.child, options.folder)
        return
    for count in (200,) if options.smoke else options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            command = [sys.executable, "-m", "benchmarks.run_file"]
            subprocess.run([*command, "--child", str(count), "--folder", folder], check=True)


if __name__ == "__main__":
    main()
