"""Lines of results: what is written of an answer and of a failure, and what is read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.batch_files import FromProvider, a_line, likely_lines, read, result_of
from parallel_core import (
    BatchTimeoutError,
    BudgetExceededError,
    CallCancelledError,
    InvalidRequestError,
    RequestTimeoutError,
    RouterParallelResult,
    StreamInterruptedError,
    StreamStalledError,
    Usage,
)
from parallel_core.config import Redactor
from parallel_core.files import InputProblem
from parallel_core.files.batch_output import (
    call_statistics,
    has_answer,
    parse_output_line,
    problem_line,
    result_line,
)
from parallel_core.journal.run_statistics import CallStatistics, read_statistics, statistics_line


class APIConnectionError(Exception):
    pass


class RouterRateLimitError(ValueError):
    pass


def caused_by(exception: Exception, cause: Exception) -> Exception:
    exception.__context__ = cause
    return exception


FAILURES: list[tuple[Exception, str]] = [
    (BatchTimeoutError(0, 1.0), "batch_expired"),
    (RequestTimeoutError(0, "gpt", 1.0), "request_timeout"),
    (TimeoutError("too late"), "request_timeout"),
    (CallCancelledError("cancelled"), "batch_cancelled"),
    (BudgetExceededError(0, "max_cost of 1 USD", 2.0, 1.0), "budget_exceeded"),
    (StreamInterruptedError(0, "gpt", "text"), "stream_interrupted"),
    (StreamStalledError(0, "gpt", 1.0), "stream_stalled"),
    (InvalidRequestError({0: "no messages"}), "invalid_request"),
    (RouterRateLimitError("try again"), "no_deployment_available"),
    (ConnectionResetError("reset"), "connection_error"),
    (caused_by(FromProvider(500), APIConnectionError()), "connection_error"),
    (caused_by(FromProvider(429), APIConnectionError()), "connection_error"),
    (caused_by(FromProvider(500), json.JSONDecodeError("x", "y", 0)), "invalid_response"),
    (FromProvider(500), "from_provider"),
    (KeyError("x"), "key_error"),
    (
        caused_by(APIConnectionError("APIConnectionError: none"), ImportError("x")),
        "connection_error",
    ),
]


@pytest.mark.parametrize(
    ("exception", "code"), FAILURES, ids=[type(error).__name__ for error, _ in FAILURES]
)
def test_a_failure_without_an_answer_of_http_is_an_error(exception: Exception, code: str) -> None:
    result = result_of(exception, duration=1.0)
    line, fields = read(result_line("a", result, Redactor()))
    assert fields["response"] is None
    assert set(fields["error"]) == {"code", "message"}
    assert fields["error"]["message"]
    assert (line.custom_id, line.ok, line.status_code, line.body) == ("a", False, None, None)
    assert (line.error_code, line.error_message) == (code, fields["error"]["message"])
    measured = call_statistics("a", result, None)
    assert (measured.ok, measured.status_code) == (False, None)
    assert measured.error == type(exception).__name__
    assert not has_answer(result)


ERROR = {"message": "too many", "type": "rate", "param": None, "code": "slow_down"}


@pytest.mark.parametrize(
    ("exception", "error"),
    [
        (FromProvider(429, body=ERROR), ERROR),
        (FromProvider(429, body={"error": ERROR}), ERROR),
        (
            FromProvider(503, body={"message": "down"}),
            {"message": "down", "type": None, "param": None, "code": None},
        ),
        (
            FromProvider(429, body={**ERROR, "message": None}),
            {**ERROR, "message": "what is wrong"},
        ),
        (
            FromProvider(502, litellm_response_headers={"server": "x"}, body="<html>"),
            {"message": "what is wrong", "type": None, "param": None, "code": None},
        ),
        (
            FromProvider(400, type="invalid", code="400"),
            {"message": "what is wrong", "type": "invalid", "param": None, "code": "400"},
        ),
    ],
)
def test_a_failure_of_http_is_a_response(exception: FromProvider, error: dict[str, Any]) -> None:
    result = result_of(exception)
    line, fields = read(result_line("a", result, Redactor()))
    status = exception.status_code
    body = {"error": error}
    assert fields["error"] is None
    assert fields["response"] == {"status_code": status, "request_id": "", "body": body}
    assert (line.ok, line.status_code) == (False, status)
    assert line.error_message == error["message"]
    assert line.error_code == (error["code"] or error["type"])
    assert call_statistics("a", result, None).status_code == status


def test_the_id_of_a_request_at_the_provider_is_told() -> None:
    exception = FromProvider(429, litellm_response_headers={"x-request-id": "req_1"})
    _, fields = read(result_line("a", result_of(exception), Redactor()))
    assert fields["response"]["request_id"] == "req_1"


def test_an_error_of_an_earlier_attempt_is_not_that_of_the_last() -> None:
    exception = FromProvider(503, litellm_response_headers={"server": "x"}, body=None)
    earlier = FromProvider(429, body={"message": "an earlier one"})
    caused_by(exception, caused_by(FromProvider(503, body=ERROR), earlier))
    _, fields = read(result_line("a", result_of(exception), Redactor()))
    assert fields["response"]["body"]["error"] == ERROR
    caused_by(exception, earlier)
    _, fields = read(result_line("a", result_of(exception), Redactor()))
    assert fields["response"]["body"]["error"]["code"] is None


def test_a_stream_that_broke_off_says_why() -> None:
    exception = StreamInterruptedError(76, "gpt", "text")
    exception.__cause__ = ConnectionResetError("reset by peer, the key is sk-abcdefghijkl")
    line, _ = read(result_line("a", result_of(exception), Redactor()))
    assert line.error_message == (
        "the stream (model 'gpt') broke off after 4 characters: reset by peer, the key is "
        "[redacted]"
    )


@pytest.mark.parametrize(
    ("exception", "message"),
    [
        (RequestTimeoutError(2, "m", 5.0), "the request (model 'm') took longer than its timeout"),
        (
            BudgetExceededError(2, "max_cost of 1 USD", 0.5, 0.25),
            "the request was not sent: it may",
        ),
        (
            StreamStalledError(2, "m", 1.0, "ab", None, None),
            "the stream of the request (model 'm')",
        ),
        (InvalidRequestError({2: "stream is not for aembedding"}), "stream is not for aembedding"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_no_failure_names_the_index_of_its_request(exception: Exception, message: str) -> None:
    """The file has ids and line numbers; an index would be taken for one of them."""
    line, _ = read(result_line("a", result_of(exception), Redactor()))
    assert line.error_message is not None
    assert line.error_message.startswith(message)


@pytest.mark.parametrize(
    ("response", "code", "kind"),
    [
        (None, "empty_response", "EmptyResponseError"),
        ("text", "invalid_response", "NoCompletionError"),
    ],
)
def test_an_answer_that_is_none_is_a_failure(response: Any, code: str, kind: str) -> None:
    """Of a callable in the place of a Router."""
    result = result_of(response=response)
    line, _ = read(result_line("a", result, Redactor()))
    assert (line.ok, line.error_code) == (False, code)
    measured = call_statistics("a", result, None)
    assert (measured.ok, measured.error, measured.status_code) == (False, kind, None)
    assert not has_answer(result)


def test_the_id_of_a_line_is_that_of_its_request() -> None:
    def id_of(custom_id: str, result: RouterParallelResult) -> Any:
        return read(result_line(custom_id, result, Redactor()))[1]["id"]

    same = id_of("a", result_of(KeyError("x")))
    assert same.startswith("batch_req_")
    assert id_of("a", result_of(response={"choices": []})) == same
    assert id_of("b", result_of(KeyError("x"))) != same


def test_an_answer_with_half_a_character_is_written(tmp_path: Path) -> None:
    """Escaped, as providers send it: nothing of it is lost, and our own readers take it."""
    half = {"text": "half \ud83d", "pair": "\U0001f600", "not one": "\\ud83d", "kind": object()}
    half["number"] = math.inf
    whole = result_line("half \ude00", result_of(response=half), Redactor())
    assert rb"half \ud83d" in whole
    line, fields = read(whole)
    assert line.ok
    assert line.body is not None
    expected = {**half, "kind": "<object>", "number": None}
    assert fields["response"]["body"] == json.loads(bytes(line.body)) == expected
    assert (fields["custom_id"], line.custom_id) == ("half \ude00", "half \ufffd")
    line, fields = read(result_line("a", result_of(ValueError("half \ud83d")), Redactor()))
    assert fields["error"]["message"] == "half \ud83d"
    assert line.error_message == "half \ufffd"
    (tmp_path / "statistics").write_bytes(
        statistics_line(call_statistics("half \ude00", result_of(response=half), None))
    )
    (record,) = read_statistics(tmp_path / "statistics")
    assert isinstance(record, CallStatistics)
    assert record.custom_id == "half \ufffd"


# Where `str.splitlines` ends a line.
ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@given(text=st.text(st.sampled_from(ENDS + 'a"\\é\U0001f600\ud83d')))
def test_no_text_cuts_a_line_or_changes(text: str) -> None:
    answer = {"choices": [{"message": {"content": text, text: 1}}]}
    error = FromProvider(400, body={"message": "m", text: text})
    results = [result_of(response=answer), result_of(error), result_of(ValueError(f"m {text}"))]
    for result in results:
        line = result_line(text, result, Redactor()).decode()
        assert line.splitlines() == [line]
        assert json.loads(line)["custom_id"] == text
        measured = statistics_line(call_statistics(text, result, None)).decode()
        assert measured.splitlines() == [measured]
        assert json.loads(measured)["custom_id"] == text
    lines = [json.loads(result_line(text, result, Redactor())) for result in results]
    assert lines[0]["response"]["body"] == answer
    assert lines[1]["response"]["body"]["error"][text] == text
    assert lines[2]["error"]["message"] == f"m {text}"
    (problem,) = problem_line(InputProblem(1, "c", text, "fix it", text)).decode().splitlines()
    assert json.loads(problem)["custom_id"] == text or not text


def test_what_only_this_provider_tells_is_kept_and_a_refusal_is_where_openai_has_it() -> None:
    from litellm.types.utils import Choices, Message, ModelResponse

    extras = {"citations": ["a"], "refusal": "no", "nothing": None}
    message = Message(content=None, provider_specific_fields=extras)
    response = ModelResponse(choices=[Choices(message=message, provider_specific_fields={})])
    _, fields = read(result_line("a", result_of(response=response), Redactor()))
    (choice,) = fields["response"]["body"]["choices"]
    assert choice["message"]["refusal"] == "no"
    assert choice["message"]["provider_specific_fields"] == {"citations": ["a"]}
    assert "provider_specific_fields" not in choice


def test_a_bad_line_has_a_line_of_its_own_in_the_output() -> None:
    problem = InputProblem(3, "invalid_json_line", "not valid JSON", "mend it", "3")
    line, fields = read(problem_line(problem))
    assert fields["response"] is None
    assert (line.custom_id, line.ok, line.error_code) == ("3", False, "invalid_json_line")
    assert line.error_message == "line 3: not valid JSON; mend it"


def test_lines_of_openai_and_vllm_are_read() -> None:
    def read_fields(response: Any, error: Any) -> tuple[Any, ...]:
        line = {"id": "x", "custom_id": "a", "response": response, "error": error, "more": 1}
        found = parse_output_line(json.dumps(line).encode())
        body = None if found.body is None else json.loads(bytes(found.body))
        return found.ok, found.status_code, found.error_code, found.error_message, body

    answer = {"status_code": 200, "request_id": "r", "body": {"id": "c"}}
    assert read_fields(answer, None) == (True, 200, None, None, {"id": "c"})
    failed = {"status_code": 429, "request_id": "r", "body": {"error": ERROR}}
    expected = (False, 429, "slow_down", "too many", {"error": ERROR})
    assert read_fields(failed, None) == expected
    expired = {"code": "batch_expired", "message": "late"}
    assert read_fields(None, expired) == (False, None, "batch_expired", "late", None)
    # vLLM: a text, or an error as its server answers it (older and newer), and no body.
    bare = {"status_code": 400, "request_id": "r", "body": None}
    assert read_fields(bare, "bad line") == (False, 400, None, "bad line", None)
    older = {"object": "error", "message": "no", "type": "BadRequestError", "code": 400}
    assert read_fields(bare, older) == (False, 400, "400", "no", None)
    newer = {"error": {"message": "no", "type": "BadRequestError", "param": None}}
    assert read_fields(bare, newer) == (False, 400, "BadRequestError", "no", None)
    assert read_fields({"request_id": "r", "body": {"id": "c"}}, None)[:2] == (True, 200)
    assert read_fields({**answer, "body": None}, None)[0] is False


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'{"custom_id": "a"}',
        b'{"custom_id": "a", "response": null, "error": null}',
        b'{"response": null, "error": null}',
        b'{"custom_id": 1, "response": null}',
        b'{"custom_id": "a", "response": {"status_code": "200"}}',
        b'{"custom_id": "a", "response": null, "error": "\xff"}',
        b'{"custom_id": "a", "response": null, "error": ' + b"[" * 100_000,
        json.dumps(a_line()).encode(),
    ],
    ids=range(11),
)
def test_what_is_no_line_of_results_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        parse_output_line(line)


@given(line=likely_lines.map(json.dumps).map(str.encode) | st.binary())
def test_a_line_is_read_or_refused(line: bytes) -> None:
    try:
        found = parse_output_line(line)
    except ValueError:
        return
    assert isinstance(found.custom_id, str)


def test_statistics_say_what_has_been_used() -> None:
    usage = Usage(10, 5, 4, 2, cost=0.5)
    answer: dict[str, Any] = {"choices": []}
    result = result_of(response=answer, started_at=7.0, duration=2.0, time_to_first_chunk=0.5)
    measured = call_statistics("a", result, usage)
    assert (measured.custom_id, measured.model) == ("a", "gpt")
    assert (measured.ok, measured.error) == (True, None)
    assert (measured.started_at, measured.duration) == (7.0, 2.0)
    assert (measured.time_to_first_chunk, measured.attempts) == (0.5, 1)
    assert (measured.prompt_tokens, measured.completion_tokens) == (10, 5)
    assert (measured.cached_tokens, measured.reasoning_tokens) == (4, 2)
    assert (measured.cost, measured.estimated) == (0.5, False)
    estimated = msgspec.structs.replace(usage, unpriced_calls=1, estimated_calls=1)
    measured = call_statistics("a", msgspec.structs.replace(result, usage=estimated), None)
    assert (measured.cost, measured.estimated, measured.prompt_tokens) == (None, True, 10)
    told = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": None,
    }
    measured = call_statistics("a", result_of(response={"usage": told}), None)
    assert (measured.prompt_tokens, measured.completion_tokens) == (3, 2)
    assert (measured.cached_tokens, measured.reasoning_tokens, measured.cost) == (1, 0, None)


def test_what_was_not_sent_has_no_attempts() -> None:
    over_budget = result_of(BudgetExceededError(0, "x", 2.0, 1.0), attempts=0)
    assert call_statistics("a", over_budget, None).attempts == 0
    not_begun = result_of(BatchTimeoutError(0, 1.0), attempts=0)
    assert call_statistics("a", not_begun, None).attempts == 0
    begun = result_of(BatchTimeoutError(0, 1.0), duration=0.5)
    assert call_statistics("a", begun, None).attempts == 1
