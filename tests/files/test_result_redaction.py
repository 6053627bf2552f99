"""Keys are taken out of failures, and stay in answers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.batch_files import FromProvider, result_of
from parallel_core.config import Redactor
from parallel_core.files.batch_output import result_line


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-abc***********wxyz.",
        "Authorization: Bearer abcdefghijkl",
        "header {'Authorization': 'Bearer abc.def'}",
        'x-api-key: "abcdefghijkl"',
        "https://user:abcdefghijkl@host/path",
        "https://host/path?x=1&api_key=abcdefghijkl&y=2",
        "https://host/v1?key=AIzaabcdefghijklmnopqrstuvwxyz",
        "(gsk_abcdefghijklmnop)",
        "AKIAABCDEFGHIJKLMNOP",
        "token eyJhbGciOiJI.eyJabcdefghijkl.abc-def",
        "my own given secret, and given%20secret%20too",
    ],
)
def test_keys_are_taken_out_of_errors(text: str) -> None:
    redactor = Redactor(["given secret", "given secret too", "short"])
    redacted = redactor.redact(text)
    assert "[redacted]" in redacted
    for part in ("abc", "ABC", "wxyz", "eyJ", "given secret", "given%20"):
        assert part not in redacted
    assert redactor.redact(redacted) == redacted
    assert "given" not in repr(redactor)


def test_what_is_no_key_stays() -> None:
    text = "The model gpt-4o-mini has failed: task-7 asks for a token; see https://host/a?b=c"
    assert Redactor(["short", "", "redact"]).redact(text) == text


key_like = st.sampled_from(
    ["sk-", "Bearer ", "://", "@", "?key=", "&", "abcdefgh", "[redacted]", "[", "]", " ", "secret",
     "api_key=", "eyJ", ".", "redacted", "Authorization: "]
)  # fmt: skip


@given(
    text=st.lists(key_like | st.text(max_size=3)).map("".join),
    secrets=st.lists(st.sampled_from(["secret", "my secret", "redacted", "abcdefgh"])),
)
@settings(max_examples=3 * settings().max_examples)
def test_redaction_is_done_once_and_leaves_no_secret(text: str, secrets: list[str]) -> None:
    redactor = Redactor(secrets)
    redacted = redactor.redact(text)
    assert redactor.redact(redacted) == redacted
    for secret in set(secrets) - {"redacted"}:
        assert secret not in redacted


def test_redaction_takes_a_time_that_grows_with_the_text() -> None:
    """A pattern that goes back and forth would need hours for these."""
    redactor = Redactor(["given secret"])
    for piece in ("sk-", "Bearer ", "://", "a", "eyJaaaaaaaa", "api key ", "Authorization: x "):
        text = piece * (300_000 // len(piece))
        assert len(redactor.redact(text)) <= 2 * len(text)


def test_keys_stay_in_answers_and_are_nowhere_in_errors() -> None:
    secret = 'my "quoted" secret'
    redactor = Redactor([secret])
    other = "sk-abcdefghijklmnop"
    answer = {"choices": [{"message": {"content": f"{secret} {other}", secret: 1}}]}
    line = result_line("a", result_of(response=answer), redactor)
    assert json.loads(line)["response"]["body"] == answer
    failures: list[Exception] = [
        FromProvider(401, body={"message": f"wrong key {secret} {other}", "keys": [secret]}),
        FromProvider(401, body={"message": f"wrong key {other}", "type": [other]}),
        FromProvider(401, message=f"wrong key {other}"),
        ValueError(f"{secret} {other}"),
    ]
    for exception in failures:
        line = result_line("a", result_of(exception), redactor)
        assert other.encode() not in line
        assert "quoted" not in line.decode()
    # The names of members are those of the provider.
    named = FromProvider(400, body={"message": "m", "content of it": ["content of it", 1]})
    body = json.loads(result_line("a", result_of(named), Redactor(["content of it"])))
    assert body["response"]["body"]["error"] == {
        "message": "m",
        "type": None,
        "param": None,
        "code": None,
        "content of it": ["[redacted]", 1],
    }
