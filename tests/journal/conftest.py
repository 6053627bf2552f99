"""Fixtures of the journal: paths, a temporary folder, and a check that nothing is left open."""

from __future__ import annotations

import contextlib
import gc
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from parallel_core.journal.run_paths import RunPaths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths.of(tmp_path / "out.jsonl")


@pytest.fixture
def split_paths(tmp_path: Path) -> RunPaths:
    return RunPaths.of(tmp_path / "out.jsonl", tmp_path / "failed.jsonl")


@pytest.fixture(autouse=True)
def temporary_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _nothing_is_left_over() -> Iterator[None]:
    files = open_files()
    yield
    gc.collect()
    assert not [thread for thread in threading.enumerate() if "journal" in thread.name]
    assert open_files() <= files


def open_files() -> list[str]:
    names: list[str] = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            names.append(str(fd.readlink()))
    return sorted(name for name in names if ".jsonl" in name or ".json" in name)
