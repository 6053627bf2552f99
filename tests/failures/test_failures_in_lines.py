"""The kind of a failure that stands in a line of an output file."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import parallel_core
from helpers.litellm_errors import NAMED, WITHOUT_A_KIND, exception_classes, instance_of
from parallel_core import RouterParallelRequest, RouterParallelResult
from parallel_core.config import Redactor
from parallel_core.failures import NOT_FINAL, FailureKind, classify, classify_line
from parallel_core.files.batch_output import parse_output_line, result_line
from parallel_core.journal.result_lines import read_result_line

REQUEST = RouterParallelRequest("m", [{"role": "user", "content": "hi"}])
# Codes of lines that were not sent, because they are no requests.
PACKAGE = Path(parallel_core.__file__).parent
BAD_LINE_CLASSES = ("LineError", "InputProblem")


def codes_of_bad_lines() -> set[str]:
    """The codes of the invalid lines that the source of ``files/`` finds."""
    codes: set[str] = set()
    for path in (PACKAGE / "files").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in BAD_LINE_CLASSES:
                texts = [str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
                codes.update(text for text in texts if re.fullmatch(r"[a-z]+(_[a-z]+)+", text))
    return codes


# Errors of which a line has less than the exception, and the kind that is left.
LESS_IN_A_LINE: dict[str, FailureKind] = {
    "litellm.ServiceUnavailableError: something": "unknown",
    "litellm.BadGatewayError: something": "unknown",
    "litellm.MidStreamFallbackError: something": "unknown",
}


def in_a_line(error: Exception) -> tuple[FailureKind, str]:
    """The kind and the message of a failure in a file of results."""
    line = result_line("a", RouterParallelResult(0, REQUEST, None, error), Redactor())
    return read_result_line(line).failure.kind, parse_output_line(line).error_message or ""


def every_instance() -> Iterator[Exception]:
    for kind in exception_classes():
        if kind.__name__ not in WITHOUT_A_KIND:
            yield instance_of(kind)


def test_a_line_has_the_kind_of_its_exception() -> None:
    found = dict[str, FailureKind]()
    for error in [*(error for error, _ in NAMED), *every_instance()]:
        kind, message = in_a_line(error)
        if kind != classify(error).kind:
            found[message] = kind
            assert {kind, classify(error).kind} <= NOT_FINAL
    assert found == LESS_IN_A_LINE


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        # Of this version and earlier ones.
        ({"error": {"code": "connection_error", "message": "Connection error."}}, "unreachable"),
        ({"error": {"code": "no_deployment_available", "message": "m"}}, "cooling_down"),
        ({"error": {"code": "request_timeout", "message": "m"}}, "timeout"),
        ({"error": {"code": "invalid_response", "message": "m"}}, "answer"),
        ({"error": {"code": "empty_response", "message": "m"}}, "answer"),
        ({"error": {"code": "missing_dependency", "message": "m"}}, "unknown"),
        ({"error": {"code": "key_error", "message": "'content'"}}, "unknown"),
        # Of OpenAI, and of vLLM.
        ({"error": {"code": "batch_expired", "message": "m"}}, "unknown"),
        ({"response": {"status_code": 400, "body": {"error": {"message": "bad"}}}}, "request"),
        ({"response": {"status_code": 429, "body": None}}, "overloaded"),
        ({"response": {"status_code": 500, "body": {"error": {"code": None}}}}, "unknown"),
        ({"response": {"status_code": 200, "body": None}}, "unknown"),
        ({"error": "The model does not exist"}, "unknown"),
        ({"error": {"message": "m", "type": "BadRequestError", "code": 400}}, "request"),
        ({"error": {"code": ["?"], "message": 5}}, "unknown"),
        ({"error": 5}, "unknown"),
    ],
)
def test_kind_of_a_line(line: dict[str, object], kind: FailureKind) -> None:
    written = json.dumps({"custom_id": "a", **line}).encode()
    assert read_result_line(written).failure.kind == kind


def test_every_code_of_the_documentation_is_known() -> None:
    text = (Path(__file__).parents[2] / "docs" / "file-formats.md").read_text()
    codes = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    bad = codes_of_bad_lines()
    assert len(bad) > 10
    assert codes >= bad | {"stream_stalled"}
    for code in codes:
        kind = classify_line(None, {"code": code, "message": "m"}).kind
        assert (kind == "request") == (code in bad), code
