"""A run as on another system: ``run_on_another_system.py windows|macos FOLDER``."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import other_systems


class Runs:
    """Runs of twenty requests, of which one may fail."""

    def __init__(self, folder: Path, loop_factory: Any) -> None:
        self.output = folder / "out.jsonl"
        self.failing = {"3"}
        self._source = folder / "in.jsonl"
        self._loop_factory = loop_factory
        with self._source.open("w") as lines:
            for n in range(20):
                body = {"model": "m", "messages": [{"role": "user", "content": str(n)}]}
                print(json.dumps({"custom_id": f"id-{n}", "body": body}), file=lines)

    async def _provider(self, *, messages: Any, **_: Any) -> Any:
        await asyncio.sleep(0)
        if messages[0]["content"] in self.failing:
            raise ValueError("no")
        return {"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}}]}

    def run(self, **options: Any) -> Any:
        import parallel_core

        async def main() -> Any:
            return await parallel_core.run_file(
                self._provider,
                self._source,
                self.output,
                **options,
            )

        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            return runner.run(main())

    def answered(self) -> list[str]:
        lines = [json.loads(line) for line in self.output.read_text().splitlines()]
        return [line["custom_id"] for line in lines if line["error"] is None]


def play(runs: Runs) -> None:
    """A run, its failure again, all of it anew; and one beside a second."""
    from parallel_core import JournalInUseError
    from parallel_core.journal.files import Disk, LockedFile

    summary = runs.run()
    assert (summary.succeeded, summary.failed) == (19, 1), summary
    runs.failing.clear()
    summary = runs.run(retry_failed=True, order="input")
    assert summary.ok, summary
    assert runs.answered() == [f"id-{n}" for n in range(20)], runs.answered()

    summary = runs.run(force_new=True)
    assert (summary.earlier_succeeded, summary.succeeded) == (0, 20), summary
    assert sorted(runs.answered()) == sorted(f"id-{n}" for n in range(20))

    # Another run has the file. An end of it leaves no lock behind.
    file = LockedFile(runs.output, Disk())
    with pytest.raises(JournalInUseError) as in_use:
        runs.run()
    assert in_use.value.process is None
    before = runs.output.read_bytes()
    file.replace([before, b"{}\n"])
    file.write(b"[]\n")
    file.commit()
    assert b"".join(file.blocks()) == runs.output.read_bytes() == before + b"{}\n[]\n"
    file.cut(len(before))
    file.close()
    assert runs.run().earlier_succeeded == 20


def look_at_files(folder: Path) -> None:
    """New files are this user's, and nothing is left beside them."""
    from parallel_core.journal.files import Disk, LockedFile, write_atomically
    from parallel_core.journal.system import is_ours

    new = LockedFile(folder / "new.jsonl", Disk())
    new.undo()
    write_atomically(folder / "small", [b"1"], Disk())
    assert is_ours((folder / "small").stat())
    names = {path.name for path in folder.iterdir()}
    assert not [name for name in names if name.endswith((".lock", ".new"))], names
    assert "new.jsonl" not in names


def on_windows(folder: Path) -> None:
    other_systems.become_windows()
    play(Runs(folder, vars(asyncio)["ProactorEventLoop"]))
    look_at_files(folder)


def on_macos(folder: Path) -> None:
    macos = other_systems.become_macos()
    from parallel_core import JournalInUseError
    from parallel_core.control import local_limits
    from parallel_core.journal.lock import _LockFile

    play(Runs(folder, asyncio.SelectorEventLoop))
    look_at_files(folder)
    assert macos.full_syncs > 0

    # The hard limit claims to be infinite; the system takes less.
    local_limits.raise_open_files()
    assert macos.limits == [resource.RLIM_INFINITY, local_limits._OF_MACOS]
    _, note = local_limits.fit_open_files(1000, 1)
    assert note is not None
    assert "a process may open 256 files" in note
    assert local_limits._open_files() > 0

    # A lock file does not say when its process began; another process's holds all the same.
    path = folder / "locked"
    lock = _LockFile(path)
    assert json.loads(lock.path.read_text())["started"] is None
    lock.release()
    holder = {"host": socket.gethostname(), "process": 1, "started": None}
    lock.path.write_text(json.dumps(holder))
    with pytest.raises(JournalInUseError) as in_use:
        _LockFile(path)
    assert in_use.value.process == 1


if __name__ == "__main__":
    {"windows": on_windows, "macos": on_macos}[sys.argv[1]](Path(sys.argv[2]))
