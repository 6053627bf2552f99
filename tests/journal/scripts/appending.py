"""Write results until it is killed, and say which are paid for and how many are on disk."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys

from parallel_core.journal import Journal, JournalEntry
from parallel_core.journal.run_paths import RunPaths


def say_on_disk(succeeded: int, failed: int) -> None:
    os.write(1, b"%d\n" % succeeded)


async def main() -> None:
    journal = Journal.open(RunPaths.of(sys.argv[1]), {}, on_disk=say_on_disk, group_seconds=0.002)
    say_on_disk(journal.succeeded, 0)
    numbers = itertools.count()

    async def slot() -> None:
        for number in numbers:
            name = str(number)
            if not journal.is_finished(name):
                line = f'{{"custom_id":"{name}","response":{{"body":"{"x" * 300}"}}}}'
                os.write(1, b"paid\n")
                await journal.append(JournalEntry(name, line.encode(), True))
                await asyncio.sleep(0.0001 * (number % 7))

    await asyncio.gather(*(slot() for _ in range(16)))


asyncio.run(main())
