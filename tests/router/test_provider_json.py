"""Reading the JSON of a provider: as ``json.loads`` reads it."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_core.router import read_provider_json

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda members: st.lists(members) | st.dictionaries(st.text(), members),
)


@given(JSON_VALUES)
def test_it_reads_what_json_reads(value: object) -> None:
    content = json.dumps(value).encode()

    assert repr(read_provider_json(content)) == repr(json.loads(content))


@pytest.mark.parametrize(
    "content",
    [
        b"[18446744073709551616, -9223372036854775809]",
        b"[1e400, 1.7976931348623159e308]",
        b"[-0, -0.0, 4.9e-324, 2.2250738585072011e-308, 9007199254740993.0]",
        b"[NaN, Infinity]",
        rb'["\ud800", "\u0000"]',
        b'{"a": 1, "b": 2, "a": 3}',
        b"\xef\xbb\xbf[1]",
        "[1]".encode("utf-16"),
    ],
)
def test_it_reads_unusual_documents_as_json_does(content: bytes) -> None:
    assert repr(read_provider_json(content)) == repr(json.loads(content))


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b'["\xff"]', b'["a\tb"]', b"[1] 2"])
def test_it_refuses_what_json_refuses(content: bytes) -> None:
    with pytest.raises(ValueError):
        read_provider_json(content)


def test_it_reads_an_infinite_number() -> None:
    assert read_provider_json(b"1e400") == math.inf
