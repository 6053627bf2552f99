"""Draw a bar, print to both streams, draw another bar while stderr is redirected, and print."""

from __future__ import annotations

import sys

from parallel_core.control.progress import Progress
from parallel_core.control.progress_bar import ProgressBar
from parallel_core.types import Usage


def snapshot(done: int, *, finished: bool = False) -> Progress:
    return Progress(
        total=9,
        started=done,
        succeeded=done,
        failed=0,
        in_flight=0,
        elapsed=1.0,
        rate=1.0,
        token_rate=0.0,
        eta=1.0,
        usage=Usage(),
        limit=1,
        finished=finished,
    )


def main() -> None:
    bar = ProgressBar()
    bar(snapshot(1))
    print("printed to stdout")
    print("printed to stderr", file=sys.stderr)
    other = ProgressBar()  # while stderr is redirected
    other(snapshot(7))
    print("without an end", end="")
    other(snapshot(8, finished=True))
    bar(snapshot(9, finished=True))
    print("afterwards")


if __name__ == "__main__":
    main()
