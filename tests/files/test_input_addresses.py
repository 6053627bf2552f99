"""Inputs with an address, through fsspec."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from helpers.batch_files import a_line, refused, requests_of, write
from parallel_core.errors import InputFileError
from parallel_core.files.batch_input import InputFile

LINES = b"".join(json.dumps(a_line(name)).encode() + b"\n" for name in ("a", "b"))
FOUND = [(1, "a"), (2, "b")]
QUERY = "?signature=sk-secret"


class Folder(http.server.SimpleHTTPRequestHandler):
    """Serves files, and refuses some."""

    def do_GET(self) -> None:
        statuses = {"/secret.jsonl": 403, "/failing.jsonl": 503}
        path = self.path.partition("?")[0]
        if path in statuses:
            self.send_error(statuses[path])
        elif path == "/cut.jsonl":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(LINES)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    handler = functools.partial(Folder, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def in_memory(name: str, content: bytes) -> str:
    address = f"memory://{name}"
    with fsspec.open(address, "wb") as file:
        file.write(content)
    return address


def reason(address: str, **options: Any) -> str:
    with pytest.raises(InputFileError) as caught, InputFile(address, **options) as file:
        file.check()
    return str(caught.value)


def test_a_file_of_fsspec_is_read(tmp_path: Path) -> None:
    address = in_memory("folder/in.jsonl", LINES)
    with InputFile(address) as file:
        summary = file.check()
        in_memory("folder/in.jsonl", b"something else")  # the copy is what is sent
        assert requests_of(file) == FOUND
    path = tmp_path / "in.jsonl"
    path.write_bytes(LINES)
    assert InputFile(path).check() == summary


def test_the_ending_of_an_address_is_the_format() -> None:
    address = in_memory("in.csv.gz", gzip.compress(b"text\none\n"))
    with InputFile(address, model="gpt", template="Say {{text}}") as file:
        (request,) = file.requests()
    assert request.request.messages[0]["content"] == "Say one"


def test_a_file_of_a_server_is_read(folder: Path, address: str) -> None:
    (folder / "in.jsonl.gz").write_bytes(gzip.compress(LINES))
    (folder / "in.txt").write_bytes(b"one\n")
    with InputFile(f"{address}/in.jsonl.gz") as file:
        assert requests_of(file) == FOUND
    with InputFile(f"{address}/in.txt{QUERY}", model="gpt") as file:
        assert (file.format, requests_of(file)) == ("text", [(1, "1")])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("none.jsonl", "there is no such file"),
        ("secret.jsonl", "permission denied"),
        ("failing.jsonl", "503"),
        ("cut.jsonl", "cannot be read: "),
    ],
)
def test_what_a_server_does_not_give_is_told_without_keys(
    address: str, name: str, told: str
) -> None:
    text = reason(f"{address}/{name}{QUERY}")
    assert text.startswith(f"{address}/{name}: cannot be read: ")
    assert told in text
    assert "sk-secret" not in text


def test_an_address_that_cannot_be_opened_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason("memory://none.jsonl") == (
        "memory://none.jsonl: cannot be read: there is no such file"
    )
    assert "no driver for nothing:// addresses" in reason("nothing://in.jsonl")
    assert "paramiko" in reason("sftp://host/in.jsonl")
    refusing = "http://user:sk-secret@127.0.0.1:9/in.jsonl"  # the discard port
    assert reason(refusing).startswith("http://127.0.0.1:9/in.jsonl: cannot be read: ")
    assert "sk-secret" not in reason(refusing)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert reason("s3://bucket/in.jsonl").endswith("s3:// addresses: pip install s3fs")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert reason("hf://datasets/a/b.parquet").endswith("pip install fsspec huggingface_hub")
    assert reason("memory://in.jsonl").endswith("pip install fsspec")


def test_a_path_with_colons_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a::b.jsonl", "c:b.jsonl"):
        write(tmp_path / name, a_line("a"))
        with InputFile(name) as file:
            assert requests_of(file) == [(1, "a")]
    assert "No such file" in refused(Path("memory:/none"))
