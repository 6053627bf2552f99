"""Failures of a run: grouped, explained in one line, and without prompts and keys everywhere."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from rich.console import Console

from helpers.hosts import ASYNCIO_HOSTS, in_virtual_time
from helpers.routers import run_with_routers
from helpers.run_values import progress_of, summary_of
from parallel_core import Retry, RouterParallelRequest, RouterParallelResult
from parallel_core._failure_groups import FailureGroups, safe_message
from parallel_core._failures import LineFailure
from parallel_core._router_members import retire
from parallel_core._run_view import JsonView, TextView, describe_end
from parallel_core.batch_output import Redactor, failure_in
from parallel_core.report import html_page, summarize
from parallel_core.run_file import FailureGroup, RunProgress, RunSummary, run_file
from parallel_core.run_statistics import CallStatistics, read_statistics

KEY = "abcdefgh-0123456789-wxyz"
PROMPT = "My neighbour Zebedee stole 4711 doughnuts."


class HTTPStatusError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(f"Error code: {status}")
        self.status_code = status
        self.body = {"error": {"message": message, "code": code}}


def request_of(prompt: str = PROMPT, **kwargs: Any) -> RouterParallelRequest:
    return RouterParallelRequest("m", [{"role": "user", "content": prompt}], kwargs)


# --- one message ---


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (429, "Rate limit reached for gpt-4o.", "429 oops: Rate limit reached for gpt-4o."),
        (429, "Slow\n  down", "429 oops: Slow down"),
        (400, "x" * 500, f"400 oops: {'x' * 119}…"),
        (
            401,
            "Incorrect API key provided: sk-abc***wxyz.",
            "401 oops: Incorrect API key provided: ",
        ),
        (401, f"{KEY} is wrong", "401 oops: [redacted] is wrong"),
        (401, "the key that ends in wxyz is wrong", "the provider refused the key (401 oops)"),
        (401, "no such key: 0123456", "the provider refused the key (401 oops)"),
        (400, f"Refused: {PROMPT}", "the provider refused the request (400 oops)"),
        (400, "Refused: MY  NEIGHBOUR\\nZEBEDEE", "the provider refused the request (400 oops)"),
        (400, "Refused: zebedee", "the provider refused the request (400 oops)"),
        (400, "Refused 'bour Zeb'", "the provider refused the request (400 oops)"),
        (400, "Not with 4711 in it", "the provider refused the request (400 oops)"),
        (500, "neighbour Zebedee", "the provider failed (500 oops)"),
        (400, "y" * 110 + f" of '{PROMPT}'", "the provider refused the request (400 oops)"),
    ],
)
def test_a_message_has_neither_keys_nor_contents(status: int, message: str, expected: str) -> None:
    said = safe_message(HTTPStatusError(status, message, "oops"), request_of(), Redactor([KEY]))
    assert said.startswith(expected)
    assert "wxyz" not in said


@pytest.mark.parametrize(
    ("prompt", "kwargs", "message"),
    [
        ("我的邻居偷了甜甜圈", {}, "输入包含邻居偷了的内容"),
        ("我的邻居偷了甜甜圈", {}, r"\u90bb\u5c45\u5077\u4e86"),
        ("Hi.", {}, "Hi is no question"),
        ("x", {"tools": [{"function": {"name": "fire_doris"}}]}, "No tool is called fire_doris"),
        ("x", {"response_format": {"schema": {"salary": {}}}}, "Property 'salary' is unknown"),
    ],
)
def test_contents_are_found_in_any_script_and_anywhere_in_a_request(
    prompt: str, kwargs: dict[str, Any], message: str
) -> None:
    request = request_of(prompt, **kwargs)
    assert safe_message(HTTPStatusError(400, message), request, Redactor()) == (
        "the provider refused the request (400)"
    )
    assert safe_message(HTTPStatusError(400, message), request_of("Other."), Redactor()) == (
        f"400: {message}"
    )


def test_an_exception_without_an_answer_is_named_and_not_quoted() -> None:
    assert safe_message(KeyError(PROMPT), request_of(), Redactor()) == (
        "the call failed in an unexpected way (KeyError)"
    )


def test_groups_are_as_many_as_kinds_and_statuses() -> None:
    groups = FailureGroups(Redactor())
    failure: LineFailure | None = None
    for number in range(1000):
        error = HTTPStatusError((429, 503, 400, 401)[number % 4], f"message {number}")
        result = RouterParallelResult(number, request_of(), exception=error)
        failure = failure_in(result)
        assert failure is not None
        first = groups.add(f"id-{number}", failure, result)
        assert (first is None) == (number >= 4)
    assert failure is not None
    groups.add("one more", failure, result)
    assert groups.all()[0] == FailureGroup(
        "account", 251, "401: message 3", ["id-3", "id-7", "id-11"], 401
    )
    assert [group.kind for group in groups.all()] == [
        "account", "overloaded", "overloaded", "request",
    ]  # fmt: skip


def test_groups_add_up_to_the_failures_that_are_on_disk() -> None:
    groups = FailureGroups(Redactor())
    for number, status in enumerate((429, 429, 400, 400, 400)):
        result = RouterParallelResult(number, request_of(), exception=HTTPStatusError(status, "no"))
        failure = failure_in(result)
        assert failure is not None
        groups.add(f"id-{number}", failure, result)
    for on_disk in range(6):
        shown = groups.first(on_disk)
        assert sum(group.count for group in shown) == on_disk
        assert all(group.message for group in shown)
    assert [(group.status_code, group.count) for group in groups.all()] == [(400, 3), (429, 2)]


# --- what is shown ---

GROUPS = [
    FailureGroup("overloaded", 64, "429 slow: Slow down.", ["a", "b", "c" * 99], 429),
    FailureGroup("request", 1, "400 bad: Bad.", ["x\x1b\n"], 400),
]


def shown_by(width: int, *, live: bool, show: Callable[[TextView], None]) -> str:
    file = StringIO()
    view = TextView(*[Console(file=file, width=width, force_terminal=live, markup=False)] * 2)
    view._is_live = live
    show(view)
    view.close()
    return file.getvalue()


def test_plain_lines_count_kinds_and_say_each_once() -> None:
    def show(view: TextView) -> None:
        for finished in (False, True):
            view.progress(progress_of(failed=65, failures=GROUPS, finished=finished))

    text = shown_by(300, live=False, show=show)
    assert text.count("failed 65 (overloaded 64, request 1)") == 2
    assert text.count(f"overloaded: 429 slow: Slow down. (a, b, {'c' * 39}…, …)") == 1
    assert text.count(r"request: 400 bad: Bad. (x\x1b\n)") == 1


def test_a_live_view_has_a_row_for_each_kind() -> None:
    many = [FailureGroup("overloaded", 9 - n, f"{500 + n}", ["a"], 500 + n) for n in range(7)]
    text = shown_by(60, live=True, show=lambda view: view.progress(progress_of(failures=many)))
    assert "overloaded 9: 500 (a, …)" in text
    assert "overloaded 5: 504" in text
    assert "505" not in text
    assert "and 2 more kinds of failures" in text


def test_a_summary_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    summary = summary_of(failed=65, failures=GROUPS)
    text = shown_by(80, live=False, show=lambda view: view.summary(summary, None))
    assert "failed        65 (overloaded 64, request 1)\n" in text
    assert "\n              overloaded 64: 429 slow: Slow down. (a, b, " in text
    JsonView().summary(summary, None)
    event = json.loads(capsys.readouterr().out)
    assert event["failures"][1]["message"] == "400 bad: Bad."


def test_a_blocked_run_says_what_is_left_and_how_to_resume() -> None:
    summary = summary_of(
        ending="blocked", unfinished=9940, blocked={"a": "no connection", "b": "the key is wrong"}
    )
    assert describe_end(summary, "run") == [
        "stopped: no connection",
        "stopped: the key is wrong; 9,940 requests are left; fix it and resume with: run",
    ]
    stopped = summary_of(ending="stopped", blocked={"a": "no connection"})
    assert describe_end(stopped, "run") == ["cannot get through: no connection", "to go on: run"]


# --- whole runs over HTTP, with a Router as it comes ---


def write_requests(path: Path, count: int, model: str = "m") -> Path:
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}]}
    lines = [{"custom_id": f"id-{number}", "body": body} for number in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run_against(
    folder: Path,
    answer: Callable[[int], web.Response],
    count: int,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[RunSummary, list[RunProgress], int]:
    """Run a file against a server that answers like this; return also the requests it got."""
    from litellm.router import Router

    seen: list[RunProgress] = []
    summaries: list[RunSummary] = []
    got = 0

    async def handle(request: web.Request) -> web.Response:
        nonlocal got
        got += 1
        await request.read()
        return answer(got - 1)

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            parameters: Any = {
                "model": "openai/gpt-x",
                "api_key": KEY,
                "api_base": f"http://127.0.0.1:{runner.addresses[0][1]}/v1",
            }
            router = Router(
                model_list=[
                    {
                        "model_name": "m",
                        "litellm_params": parameters,
                        "model_info": {"id": f"{folder.name}-1"},
                    }
                ],
                **(settings or {}),
            )
            source = write_requests(folder / "in.jsonl", count)
            summary = await run_file(
                router,
                source,
                folder / "out.jsonl",
                redactor=Redactor([KEY]),
                on_run_progress=seen.append,
                **options,
            )
            summaries.append(summary)
            retire(router)
        finally:
            await runner.cleanup()

    run_with_routers(ASYNCIO_HOSTS[0], main)
    return summaries[0], seen, got


COMPLETION = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-x",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "yes"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


def failing(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": "oops"}}, status=status)


def everything_shown(
    summary: RunSummary, seen: list[RunProgress], folder: Path, capsys: Any
) -> str:
    def show(view: TextView) -> None:
        for progress in seen:
            view.progress(progress)
        view.summary(summary, "parallel-core run in.jsonl -o out.jsonl")

    texts = [shown_by(500, live=live, show=show) for live in (False, True)]
    view = JsonView()
    for progress in seen:
        view.progress(progress)
    view.summary(summary, "parallel-core run in.jsonl")
    texts.append(capsys.readouterr().out)
    if (folder / "out.jsonl").stat().st_size:
        report = summarize(folder / "out.jsonl")
        texts += [html_page(report), repr(report)]
    texts.append((folder / "out.jsonl.statistics.jsonl").read_text())
    return "\n".join(texts)


def test_no_output_has_a_prompt_or_a_key(tmp_path: Path, capsys: Any) -> None:
    messages = [
        (400, f"Invalid prompt: {PROMPT}"),
        (403, f"Your input was flagged: '{PROMPT[3:30]}'"),
        (413, f"Too large for the key {KEY}, it ends in {KEY[-4:]}"),
        (422, f"Zebedee is not welcome here; Authorization: Bearer {KEY}"),
    ]
    summary, seen, got = run_against(
        tmp_path, lambda number: failing(*messages[number % 4]), 8, concurrency=1
    )
    assert (got, summary.failed) == (8, 8)
    assert {group.status_code for group in summary.failures} == {400, 403, 413, 422}
    assert {group.kind for group in summary.failures} == {"request"}
    text = everything_shown(summary, seen, tmp_path, capsys)
    assert "request 2: " in text
    for secret in (*KEY.split("-"), "Zebedee", "neighbour", "doughnuts"):
        assert secret not in text, secret


def test_a_refused_key_is_named_with_its_deployment(tmp_path: Path, capsys: Any) -> None:
    summary, seen, got = run_against(
        tmp_path, lambda _: failing(401, f"Incorrect API key provided: {KEY}"), 50, concurrency=2
    )
    assert (summary.ending, summary.failed, summary.failures) == ("blocked", 0, [])
    assert summary.unfinished == 50
    assert got < 8
    assert re.fullmatch(
        r"the key of deployment openai/gpt-x of model m at 127\.0\.0\.1:\d+ was refused "
        r"\(401 oops\)",
        summary.blocked["m"],
    )
    text = everything_shown(summary, seen, tmp_path, capsys)
    assert "was refused (401 oops); 50 requests are left; fix it and resume with: parallel-" in text
    assert not any(secret in text for secret in KEY.split("-"))


def test_a_cooldown_that_an_account_failure_caused_is_that_failure(tmp_path: Path) -> None:
    """Without sending again, the batch leaves cooldowns to the Router."""
    summary, _, got = run_against(
        tmp_path, lambda _: failing(401, "no"), 20, {"num_retries": 0}, concurrency=1, retry=None
    )
    assert (summary.ending, summary.unfinished) == ("blocked", 20)
    assert got < 20
    assert "was refused (401 oops)" in summary.blocked["m"]


def test_an_outage_is_named_with_its_address(tmp_path: Path) -> None:
    async def away(**_: Any) -> Any:
        raise ConnectionRefusedError

    source = write_requests(tmp_path / "in.jsonl", 20)

    async def main() -> None:
        summary = await run_file(away, source, tmp_path / "out.jsonl", retry=Retry(max_wait=5.0))
        assert summary.blocked["m"].startswith(
            "model m: no connection to the server; nothing got through for "
        )

    in_virtual_time(main)


def test_no_eta_is_shown_while_a_run_waits(tmp_path: Path) -> None:
    sent = itertools.count()

    async def away_after_ten(**_: Any) -> Any:
        await anyio.sleep(0.1)
        if 10 <= next(sent) < 30:
            raise ConnectionRefusedError
        return {"choices": [{"message": {"content": "yes"}}]}

    source = write_requests(tmp_path / "in.jsonl", 40)
    shown = list[RunProgress]()

    async def main() -> None:
        summary = await run_file(
            away_after_ten,
            source,
            tmp_path / "out.jsonl",
            concurrency=2,
            retry=Retry(),
            on_run_progress=shown.append,
        )
        assert summary.ok

    in_virtual_time(main)
    waiting = [progress for progress in shown if progress.waiting]
    assert any(progress.rate for progress in waiting)
    assert {progress.eta for progress in waiting} == {None}


def test_statistics_count_what_the_batch_sent_again(tmp_path: Path) -> None:
    def answer(number: int) -> web.Response:
        if number < 2:
            return web.json_response(
                {"error": {"message": "slow"}}, status=429, headers={"retry-after-ms": "1"}
            )
        return web.json_response(COMPLETION) if number < 3 else failing(400, "bad")

    summary, _, got = run_against(tmp_path, answer, 2, concurrency=1)
    assert (summary.succeeded, summary.failed, got) == (1, 1, 4)
    calls = [
        record
        for record in read_statistics(summary.paths.statistics)
        if isinstance(record, CallStatistics)
    ]
    assert sum(call.attempts for call in calls) == 4
    assert {(call.ok, call.failure_kind) for call in calls} == {(True, None), (False, "request")}
    (failed,) = (call for call in calls if not call.ok)
    assert failed.message == "400 oops: bad"
    report = summarize(tmp_path / "out.jsonl")
    assert (report.total.calls, report.total.attempts) == (2, 4)
    (failure,) = report.failures
    assert (failure.kind, failure.message) == ("request (400)", "400 oops: bad")
    assert failure.custom_ids == [failed.custom_id]
