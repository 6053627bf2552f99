"""Failures of whole runs: what is named, and that no output has a prompt or a key."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
from aiohttp import web

from helpers.failure_groups import KEY, PROMPT, shown_by
from helpers.hosts import ASYNCIO_HOSTS, in_virtual_time
from helpers.routers import run_with_routers
from parallel_core import Retry
from parallel_core.cli.json_view import JsonView
from parallel_core.cli.text_view import TextView
from parallel_core.config import Redactor
from parallel_core.config.router_members import retire
from parallel_core.journal.run_statistics import CallStatistics, read_statistics
from parallel_core.report import html_page, summarize
from parallel_core.run import RunProgress, RunSummary, run_file


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
