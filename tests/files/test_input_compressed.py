"""Compressed inputs: read as what they hold, or refused by name."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from helpers.batch_files import a_line, refused, requests_of
from helpers.thorough import thorough_but
from parallel_core.errors import InputFileError
from parallel_core.files.batch_input import InputFile
from parallel_core.files.unpacking import Unpacked, compression_of

LINES = b"".join(json.dumps(a_line(name)).encode() + b"\n" for name in ("a", "b"))
FOUND = [(1, "a"), (2, "b")]


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
each_packing = pytest.mark.parametrize("ending", PACKINGS)


@each_packing
def test_compressed_lines_are_read_by_their_contents(tmp_path: Path, ending: str) -> None:
    packed = PACKINGS[ending](LINES)
    plain = tmp_path / "in.jsonl"
    plain.write_bytes(LINES)
    for name in (f"in.jsonl.{ending}", "in.jsonl.GZ", "other"):
        path = tmp_path / name
        path.write_bytes(packed)
        with InputFile(path) as file:
            assert file.check() == InputFile(plain).check()
            assert requests_of(file) == FOUND
    with InputFile("-", standard_input=io.BytesIO(packed)) as file:
        assert requests_of(file) == FOUND


def test_a_compressed_pipe_is_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, gzip.compress(LINES))
    os.close(writing)
    try:
        with InputFile(f"/dev/fd/{reading}") as file:
            assert requests_of(file) == FOUND
    finally:
        os.close(reading)


def test_the_ending_before_that_of_the_compression_is_the_format(tmp_path: Path) -> None:
    table = tmp_path / "in.csv.zst"
    table.write_bytes(zstd(b"id,text\na,one\n"))
    text = tmp_path / "in.txt.gz"
    text.write_bytes(gzip.compress(b"one\ntwo\n"))
    with InputFile(table, model="gpt", template="Say {{text}}") as file:
        (request,) = file.requests()
        assert (file.format, request.custom_id) == ("csv", "a")
    with InputFile(text, model="gpt") as file:
        assert (file.format, requests_of(file)) == ("text", [(1, "1"), (2, "2")])


@each_packing
def test_members_and_zeros_that_follow_are_read(tmp_path: Path, ending: str) -> None:
    pack = PACKINGS[ending]
    path = tmp_path / "in.jsonl"
    path.write_bytes(pack(LINES[:50]) + pack(b"") + pack(LINES[50:]) + bytes(512))
    with InputFile(path) as file:
        assert requests_of(file) == FOUND


def test_a_file_of_pzstd_begins_with_another_frame(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\x00\x00\x00size" + zstd(LINES))
    with InputFile(path) as file:
        assert requests_of(file) == FOUND


@each_packing
def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path, ending: str) -> None:
    packed = PACKINGS[ending](os.urandom(3000).hex().encode() + LINES)
    path = tmp_path / f"in.jsonl.{ending}"
    for size in (12, len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:size])
        assert "it ends too early" in refused(path)
    path.write_bytes(packed + b"\0" + PACKINGS[ending](LINES)[:-6])
    assert "it ends too early" in refused(path)


@each_packing
def test_a_broken_archive_is_refused(tmp_path: Path, ending: str) -> None:
    packed = bytearray(PACKINGS[ending](os.urandom(200_000).hex().encode() + b"\n" + LINES))
    path = tmp_path / f"in.jsonl.{ending}"
    path.write_bytes(packed + b"rubbish")
    assert "broken" in refused(path)
    middle = len(packed) // 2
    packed[middle : middle + 8] = bytes(8)
    path.write_bytes(packed)
    if ending != "zst":  # without a checksum, other bytes may be as good
        told = refused(path)
        assert "broken" in told
        assert " -t, and copy" in told


def test_compressed_twice_and_a_compressed_table_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(zstd(LINES)))
    assert "compressed twice" in refused(path)
    path.write_bytes(gzip.compress(b"PAR1 and so on"))
    assert "unpack it first" in refused(path)
    path.write_bytes(gzip.compress(b"PK\x03\x04"))
    assert "save it as CSV" in refused(path)
    path.write_bytes(gzip.compress(b""))
    assert "no request in the file" in refused(path)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python has zstd")
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.jsonl.zst"
    path.write_bytes(zstd(LINES))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert "pip install 'parallel_core[zstd]'" in refused(path)


def test_a_compressed_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(LINES))
    with InputFile(path) as file:
        file.check()
        path.write_bytes(gzip.compress(LINES.replace(b"secret", b"hidden")))
        with pytest.raises(InputFileError, match="changed since it was checked"):
            list(file.requests())


@pytest.mark.parametrize("ending", thorough_but(["gz", "zst"], PACKINGS))
def test_a_file_that_grows_a_thousandfold_needs_little_memory(tmp_path: Path, ending: str) -> None:
    size = 80 << 20
    path = tmp_path / f"in.jsonl.{ending}"
    path.write_bytes(PACKINGS[ending](bytes(size)))
    with InputFile(path, max_line=1) as file:
        tracemalloc.start()
        try:
            (problem,) = file.check().problems
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert problem.code == "line_too_long"
    assert peak < size // 2


@given(
    pieces=st.lists(st.binary(max_size=2000), max_size=5),
    size=st.integers(min_value=1, max_value=100),
    ending=st.sampled_from(sorted(PACKINGS)),
)
def test_what_was_compressed_comes_out(pieces: list[bytes], size: int, ending: str) -> None:
    packed = b"".join(map(PACKINGS[ending], pieces))
    compression = compression_of(packed)
    if compression is None:
        assert not pieces
        return
    stream = Unpacked(io.BytesIO(packed), compression)
    found = b""
    while piece := stream.read(size):
        found += piece
    assert found == b"".join(pieces)


def test_what_the_commands_write_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(LINES)
    packed = tmp_path / "in.jsonl.gz"
    with packed.open("wb") as out:
        subprocess.run(["gzip", "-c", str(path)], stdout=out, check=True)
    with InputFile(packed) as file:
        assert requests_of(file) == FOUND


def test_lines_of_a_compressed_file_have_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(LINES + b"\nno json\n"))
    with InputFile(path) as file:
        (problem,) = file.check().problems
    assert (problem.line, problem.where) == (4, "line 4")
