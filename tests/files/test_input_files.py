"""An input as a whole: which is refused, what changes, pipes, its fingerprint and its memory."""

from __future__ import annotations

import io
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from helpers.batch_files import BODY, MESSAGES, a_line, refused, requests_of, write
from parallel_core.errors import InputFileError
from parallel_core.files.batch_input import InputFile


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.jsonl")
    assert "directory" in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no request"),
        (b"\n \n", "no request"),
        (b"\x1f\x8b\x08\x00", "gzip -t"),
        (b"\x28\xb5\x2f\xfd\x00", "zstd -t"),
        (b"PK\x03\x04", "save it as CSV"),
        (b"\xff\xfe{\x00", "iconv -f UTF-16"),
    ],
)
def test_a_file_without_readable_lines_is_refused(
    tmp_path: Path, content: bytes, told: str
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    assert told in refused(path)


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    table, text = tmp_path / "in.csv", tmp_path / "in.txt"
    table.write_text("one,two\n1,2\n")
    text.write_text("text\n")
    lines = write(tmp_path / "in.jsonl", BODY)
    assert "a template does not name a model" in refused(lines, template="{{line}}")
    assert "no {{column}}" in refused(lines, template="line", model="gpt")
    assert "--system goes before the prompts" in refused(lines, system="Be brief.")
    assert "no column of ids" in refused(text, model="gpt", id_column="line")
    assert "no column 'key' for the ids" in refused(
        table, model="gpt", template="{{one}}", id_column="key"
    )
    assert "leave it out of --keep" in refused(lines, id_column="key", keep=["key"])
    assert "--model" in refused(text)
    assert "--model" in refused(table, template="{{one}}")
    assert "columns of the file are: 'one', 'two'" in refused(table, model="gpt")
    unknown = refused(table, model="gpt", template="{{three}} {{one}} {{}}")
    assert "{{}}, {{three}}" in unknown
    assert "columns of the file are: 'one', 'two'" in unknown
    assert "no {{column}}" in refused(table, model="gpt", template="one")
    assert "{{two}}" in refused(text, model="gpt", template="{{two}}")
    table.write_text("one,one\n1,2\n")
    assert "same name" in refused(table, model="gpt", template="{{one}}")
    table.write_text('"one"x\n')
    assert "not valid CSV" in refused(table, model="gpt", template="{{one}}")
    with pytest.raises(ValueError, match="format must be"):
        InputFile(lines, format="xml")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="keep must be names of columns, not one str"):
        InputFile(lines, keep="source")


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", a_line("a"), a_line("b"))
    with InputFile(path) as file:
        file.check()
        write(path, a_line("a"), a_line("b"), a_line("c"))
        with pytest.raises(InputFileError, match="changed"):
            next(file.requests())
    with InputFile(path) as file:
        requests = file.requests()
        next(requests)
        write(path, a_line("a"), a_line("b"), a_line("c"), a_line("d"))
        with pytest.raises(InputFileError, match="changed"):
            list(requests)


def test_nothing_that_was_not_checked_is_given_out(tmp_path: Path) -> None:
    # More than one block of lines: what is behind the first is read after the change.

    def saying(custom_id: str, text: str) -> dict[str, Any]:
        return a_line(custom_id, body={**BODY, "messages": [{"role": "user", "content": text}]})

    lines = [saying(f"{number}", "x" * 1000) for number in range(2500)]
    for change in ("append", "replace", "in place", "shorten"):
        path = write(tmp_path / f"{change}.jsonl", *lines)
        status = path.stat()
        with InputFile(path) as file:
            requests = file.requests()
            drawn = [next(requests)]
            content = path.read_bytes()
            evil = json.dumps(saying("0", "evil")).encode() + b"\n"
            if change == "append":
                with path.open("ab") as end:
                    end.write(evil)
            elif change == "replace":
                path.write_bytes(content.replace(b"x" * 1000, b"evil"))
            elif change == "in place":
                with path.open("r+b") as middle:
                    middle.write(content.replace(b"xxxx", b"evil"))
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            else:
                os.truncate(path, len(content) // 2)
            with pytest.raises(InputFileError, match="changed since it was checked"):
                drawn += requests
        assert 0 < len(drawn) < len(lines)
        assert "evil" not in str([request.request.messages for request in drawn])


def test_a_file_that_is_only_touched_is_read_on(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", a_line("a"), a_line("b"))
    with InputFile(path) as file:
        requests = file.requests()
        next(requests)
        os.utime(path, ns=(0, 0))
        assert [request.custom_id for request in requests] == ["b"]
        assert len(list(file.requests())) == 2


def test_a_file_that_changes_with_its_size_and_time_kept_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", a_line("a"), a_line("b"))
    status = path.stat()
    with InputFile(path) as file:
        file.check()
        with path.open("r+b") as bytes_of_it:
            bytes_of_it.write(b"!")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(InputFileError, match="changed since it was checked"):
            list(file.requests())


def test_standard_input_is_read_twice(tmp_path: Path) -> None:
    content = json.dumps(a_line("a")).encode() + b"\n" + json.dumps(a_line("b")).encode()
    with InputFile("-", standard_input=io.BytesIO(content)) as file:
        summary = file.check()
        first, second = file.requests(), file.requests()
        assert [next(first).custom_id, next(second).custom_id] == ["a", "a"]
        assert [next(first).custom_id, next(second).custom_id] == ["b", "b"]
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    assert InputFile(path).check() == summary
    assert "no request" in refused("-", standard_input=io.BytesIO(b""))


@pytest.mark.parametrize("closed", [True, False])
def test_a_closed_standard_input_is_told(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    stdin = io.TextIOWrapper(io.BytesIO())
    stdin.close()
    monkeypatch.setattr("sys.stdin", stdin if closed else None)
    with (
        InputFile("-") as file,
        pytest.raises(InputFileError, match="standard input is closed: name a file"),
    ):
        file.check()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_of_a_file_need_not_be_a_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"in\xff.jsonl")
    with (
        InputFile(path) as file,
        pytest.raises(InputFileError, match=r"in\?\.jsonl: cannot be read"),
    ):
        file.check()
    with InputFile(write(path, BODY)) as file:
        assert requests_of(file) == [(1, "1")]


def test_a_pipe_is_read_twice() -> None:
    reading, writing = os.pipe()
    os.write(writing, json.dumps(a_line("a")).encode())
    os.close(writing)
    try:
        with InputFile(f"/dev/fd/{reading}") as file:
            assert file.check().requests == 1
            assert requests_of(file) == [(1, "a")]
    finally:
        os.close(reading)


def test_the_fingerprint_tells_whether_the_requests_are_the_same(tmp_path: Path) -> None:
    def fingerprint(name: str, content: str, **options: Any) -> str:
        path = tmp_path / name
        path.write_text(content)
        with InputFile(path, **options) as file:
            return file.check().fingerprint

    full, bare = json.dumps(BODY), json.dumps({"messages": MESSAGES})
    same = fingerprint("a.jsonl", full)
    assert len(bytes.fromhex(same)) == 16
    for form in (
        full + "\n\n  \r\n",
        json.dumps(BODY, indent=None, separators=(" ,", " : "), sort_keys=True),
        json.dumps({**BODY, "stream": True, "user": "me", "metadata": {"a": "b"}, "timeout": 3}),
    ):
        assert fingerprint("b.jsonl", form) == same
    assert fingerprint("b.jsonl", full, model="unused") == same
    assert fingerprint("b.jsonl", bare, model=BODY["model"]) == fingerprint(
        "b.jsonl", json.dumps({"model": BODY["model"], "messages": MESSAGES})
    )
    named = [json.dumps({"custom_id": name, "body": BODY}) for name in "abc"]
    assert fingerprint("a.jsonl", "\n".join(named)) == fingerprint(
        "a.jsonl", "\n".join(reversed(named))
    )
    text = "a,b\n1,2\n"
    prints = [
        same,
        fingerprint("a.jsonl", full + "\n" + full),
        fingerprint("a.jsonl", json.dumps({**BODY, "temperature": 0.125})),
        fingerprint("a.jsonl", json.dumps({**BODY, "seed": 5})),
        fingerprint("a.jsonl", json.dumps({"custom_id": "1", "body": {**BODY, "top_k": 5}})),
        fingerprint("a.jsonl", json.dumps({**BODY, "messages": [*MESSAGES, *MESSAGES]})),
        fingerprint("a.jsonl", json.dumps({"custom_id": "x", "body": BODY})),
        fingerprint("a.jsonl", bare, model="one"),
        fingerprint("a.jsonl", bare, model="two"),
        fingerprint("a.csv", text, model="one", template="{{a}}"),
        fingerprint("a.csv", text, model="two", template="{{a}}"),
        fingerprint("a.csv", text, model="one", template="{{b}}"),
        fingerprint("a.txt", text, model="one"),
        fingerprint("a.txt", text, model="one", template="{{line}}."),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint("a.txt", text, model="one", template="{{line}}") == prints[-2]


@pytest.mark.parametrize(
    ("count", "length"), [pytest.param(20_000, 500, marks=pytest.mark.thorough), (2_500, 5_000)]
)
def test_memory_grows_by_the_names_only(tmp_path: Path, count: int, length: int) -> None:
    path = tmp_path / "in.jsonl"
    message = [{"role": "user", "content": "x" * length}]
    with path.open("w") as lines:
        for number in range(count):
            body = {"model": "gpt", "messages": message}
            lines.write(json.dumps({"custom_id": f"request-{number}", "body": body}) + "\n")
    file = InputFile(path)
    tracemalloc.start()
    try:
        file.check()
        _, peak_of_check = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        assert sum(1 for _ in file.requests()) == count
        _, peak_of_requests = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    blocks = 3 << 20  # bytes; the file has four times as many
    # A set that has just grown is at its largest.
    assert peak_of_check < blocks + 160 * count
    assert peak_of_requests < blocks
