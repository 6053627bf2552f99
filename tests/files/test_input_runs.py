"""Each kind of input file, run to its end against the demo server."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import zstandard

from helpers.hosts import ASYNCIO_HOSTS
from helpers.routers import make_router, run_with_routers
from helpers.table_files import CHATS, WRITERS
from parallel_core.demo_server import DemoServerThread
from parallel_core.files.batch_input import InputFile
from parallel_core.run import run_file

PLAIN: dict[str, Any] = {"model": "fast", "drop_columns": True}
PROMPTS: dict[str, Any] = {"model": "fast", "template": "{{prompt}}", "keep": ["prompt_id"]}


def inputs(folder: Path) -> dict[str, tuple[Path | str, dict[str, Any]]]:
    """A file of each kind with the same requests, and the options to read it."""
    found: dict[str, tuple[Path | str, dict[str, Any]]] = {}
    for name, write in WRITERS.items():
        write(folder / name)
        found[f"rows of {name}"] = (folder / name, PLAIN)
        found[f"prompts of {name}"] = (folder / name, PROMPTS)
    lines = "\n".join(map(json.dumps, CHATS)).encode()
    array = json.dumps(CHATS, indent=2).encode()
    table = b"prompt_id,prompt\n" + b"".join(
        f"{chat['prompt_id']},{chat['prompt']}\n".encode() for chat in CHATS
    )
    contents = {
        "lines.jsonl.gz": (gzip.compress(lines), PLAIN),
        "lines.jsonl.zst": (zstandard.compress(lines), PLAIN),
        "array.json": (array, PLAIN),
        "array.json.zst": (zstandard.compress(array), PLAIN),
        "table.csv.gz": (gzip.compress(table), PROMPTS),
    }
    for name, (content, options) in contents.items():
        (folder / name).write_bytes(content)
        found[name] = (folder / name, options)
    with fsspec.open("memory://runs/lines.jsonl", "wb") as file:
        file.write(lines)
    found["memory://"] = ("memory://runs/lines.jsonl", PLAIN)
    return found


def test_each_kind_of_file_is_run_to_its_end(server: DemoServerThread, tmp_path: Path) -> None:
    files = inputs(tmp_path)

    async def main() -> None:
        router = make_router(server, ("fast",))
        for name, (path, options) in files.items():
            output = tmp_path / f"{name.replace('/', ' ')}.out.jsonl"
            with InputFile(path, **options) as source:
                summary = await run_file(router, source, output, limit=5)
            assert summary.ok, name
            results = [json.loads(line) for line in output.read_text().splitlines()]
            assert len({result["custom_id"] for result in results}) == 5, name
            for result in results:
                assert result["response"]["body"]["choices"][0]["message"]["content"], name
                if "keep" in options:
                    assert result["columns"]["prompt_id"].startswith("p-"), name

    run_with_routers(ASYNCIO_HOSTS[0], main)
    assert server.stats().accepted == 5 * len(files)
