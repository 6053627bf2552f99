"""Append a result, and end without closing the journal."""

from __future__ import annotations

import asyncio
import sys

from parallel_core.journal import Journal, JournalEntry
from parallel_core.journal.run_paths import RunPaths

journal = Journal.open(RunPaths.of(sys.argv[1]), {}, group_seconds=3600.0)
line = b'{"custom_id":"a","response":{}}'
asyncio.run(journal.append(JournalEntry("a", line, True)))
