"""Write results until the disk takes no more; say how many, and what the journal says of it.

Arguments: the output, and the size that no file may exceed, where the disk itself has no limit.
"""

from __future__ import annotations

import asyncio
import resource
import sys

from parallel_core.errors import JournalError
from parallel_core.journal import Journal, JournalEntry
from parallel_core.journal.run_paths import RunPaths


async def main() -> None:
    journal = Journal.open(RunPaths.of(sys.argv[1]), {}, group_size=8)
    appended = 0
    try:
        for number in range(400):
            appended = number + 1
            line = f'{{"custom_id":"{number}","response":{{"body":"{"x" * 500}"}}}}'
            await journal.append(JournalEntry(str(number), line.encode(), True))
    except JournalError as error:
        print(appended)
        print(error)
    try:
        await journal.aclose()
    except JournalError as error:
        print(error)


for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
asyncio.run(main())
