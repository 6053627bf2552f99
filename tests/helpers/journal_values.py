"""Entries, lines and short runs of a journal."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from parallel_core.journal import Journal, JournalEntry
from parallel_core.journal.run_paths import RunPaths

MANIFEST = {"input": "abc", "model": "gpt"}

SECRET = "the answer nobody may see in a log"


def line_of(custom_id: str, *, ok: bool = True, text: str = SECRET) -> bytes:
    response = {"status_code": 200 if ok else 500, "request_id": "r", "body": {"text": text}}
    line = {"id": f"r-{custom_id}", "custom_id": custom_id, "response": response, "error": None}
    return json.dumps(line, ensure_ascii=False).encode()


def entry(custom_id: object, *, ok: bool = True) -> JournalEntry:
    name = str(custom_id)
    statistics = json.dumps({"kind": "call", "custom_id": name}, separators=(",", ":")).encode()
    return JournalEntry(name, line_of(name, ok=ok), ok, statistics)


def ids_in(path: Path) -> list[str]:
    """Return the ids of a file. Every line must be whole."""
    content = path.read_bytes()
    assert not content or content.endswith(b"\n")
    return [json.loads(line)["custom_id"] for line in content.splitlines()]


def outcomes_in(*files: Path) -> dict[str, bool]:
    """Return by id whether a request succeeded. Each must have exactly one line."""
    lines = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
    found = {line["custom_id"]: line["response"]["status_code"] == 200 for line in lines}
    assert len(found) == len(lines)
    return found


def append(journal: Journal, *entries: JournalEntry) -> None:
    async def main() -> None:
        for one in entries:
            await journal.append(one)

    asyncio.run(main())


def run_of(paths: RunPaths, *entries: JournalEntry, **options: Any) -> None:
    """Write entries in a run that ends well."""
    with Journal.open(paths, MANIFEST, **options) as journal:
        append(journal, *entries)


def begun(paths: RunPaths, content: bytes, **options: Any) -> None:
    """Start a run whose output has this content."""
    run_of(paths, **options)
    paths.output.write_bytes(content)
