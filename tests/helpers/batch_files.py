"""Lines of requests and of results, and files of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from parallel_core import (
    RouterParallelRequest,
    RouterParallelResult,
)
from parallel_core.errors import InputFileError
from parallel_core.files.batch_input import InputFile
from parallel_core.files.batch_output import OutputLine, parse_output_line

KEY = "sk-secret-key"  # of the routers

MESSAGES = [{"role": "user", "content": "a secret prompt"}]

BODY = {"model": "gpt", "messages": MESSAGES}


def a_line(custom_id: Any = "a", **more: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "body": BODY, **more}


def with_messages(*messages: Any) -> dict[str, Any]:
    return {**BODY, "messages": [*MESSAGES, *messages]}


def write(path: Path, *lines: Any) -> Path:
    path.write_bytes(
        b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
            for line in lines
        )
    )
    return path


def requests_of(file: InputFile) -> list[tuple[int, str]]:
    return [(request.line, request.custom_id) for request in file.requests()]


def problems_of(path: Path, **options: Any) -> list[tuple[int, str]]:
    with InputFile(path, **options) as file:
        return [(problem.line, problem.code) for problem in file.problems()]


def result_of(
    exception: Exception | None = None, response: Any = None, **more: Any
) -> RouterParallelResult:
    request = RouterParallelRequest("gpt", MESSAGES)
    return RouterParallelResult(0, request, response, exception, **more)


def read(line: bytes) -> tuple[OutputLine, dict[str, Any]]:
    assert b"\n" not in line
    return parse_output_line(line), json.loads(line)


class FromProvider(Exception):
    """As litellm's exceptions are."""

    __module__ = "litellm.exceptions"

    def __init__(self, status: int, **fields: Any) -> None:
        super().__init__("not this text")
        self.status_code = status
        self.message = "what is wrong\n\nLiteLLM: model group 'gpt' failed."
        for name, value in fields.items():
            setattr(self, name, value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


likely_values = json_values | st.sampled_from(
    ["a", "POST", "/v1/chat/completions", MESSAGES, BODY, "gpt", {"role": "user"}]
)


likely_names = st.sampled_from(
    ["custom_id", "body", "method", "url", "model", "messages", "metadata", "extra_body", "kwargs"]
)

likely_lines = st.dictionaries(likely_names | st.text(), likely_values, max_size=6) | json_values


def refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(InputFileError) as caught, InputFile(path, **options) as file:
        file.check()
    text = str(caught.value)
    assert text.startswith("standard input: " if path == "-" else f"{path}: ")
    return text
