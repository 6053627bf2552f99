"""A page that follows a run: over real HTTP, while its files grow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from helpers.followed_reports import PATIENCE, append, followed, update_with, updates
from helpers.html_pages import Page
from helpers.report_runs import BEGIN, NASTY, answer, call, failure, invoke, nasty_run
from parallel_core.journal import BeginStatistics, EndStatistics
from parallel_core.journal.run_paths import RunPaths
from parallel_core.journal.run_statistics import RunStatistics, statistics_line
from parallel_core.report import html_page, summarize
from parallel_core.report.html import content
from parallel_core.report.model import ReportError

WITH_SIGNALS = Path(__file__).parents[1] / "cli" / "scripts" / "with_signals.py"


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE))


def write_more(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def replace(output: Path, lines: list[dict[str, Any]]) -> None:
    """Put another file in the place of the output, as sorting does."""
    other = output.with_name("sorted")
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    other.replace(output)


def rewrite(path: Path, records: list[RunStatistics]) -> None:
    """Replace the contents of a file by these records."""
    path.write_bytes(b"".join(statistics_line(record) + b"\n" for record in records))


def test_a_page_that_was_open_before_the_run_gets_its_last_numbers(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"

    async def test() -> None:
        async with followed(output) as address, contextlib.aclosing(updates(address)) as found:
            first = await anext(found)
            assert first == (first.number, "Waiting for results in out.jsonl.", "")
            append(output, [], [BeginStatistics(at=BEGIN, total=3)])
            await update_with(found, "The run goes on: 0 of 3 requests.")
            append(output, [answer("a")], [call("a", 0, 2, cost=0.5)])
            update = await update_with(found, "1 of 3 requests.")
            assert update.content is not None
            assert "<dt>ok</dt><dd>1</dd>" in update.content
            late = call("b", 0, error="E", failure_kind="timeout")
            append(output, [failure("b"), answer("c")], [late, call("c", 1, 9)])
            append(output, [], [EndStatistics(at=BEGIN + 10, ending="complete")])
            await update_with(found, "The run has ended: 3 of 3 requests.")
            # Results are read a moment after they were written.
            expected = content(summarize(output))
            async with aiohttp.ClientSession() as session:
                shown = ""
                while expected not in shown:
                    async with session.get(address) as response:
                        shown = await response.text()
            # The run is resumed, and the page of the beginning is still there.
            append(output, [], [BeginStatistics(at=BEGIN + 99, total=4)])
            await update_with(found, "The run goes on: 3 of 4 requests.")

    run(test())


def test_an_output_that_is_rewritten_or_cut_is_read_again(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    statistics = RunPaths.of(output).statistics
    append(output, [answer("a"), answer("b")], [call("a", 0), call("b", 0)])

    async def test() -> None:
        async with followed(output) as address, contextlib.aclosing(updates(address)) as found:
            await update_with(found, "So far: 2 requests.")
            replace(output, [answer(name) for name in "bac"])
            await update_with(found, "So far: 3 requests.")
            rewrite(statistics, [call("z", 0)])
            await update_with(found, "So far: 4 requests.")
            rewrite(output, [])
            rewrite(statistics, [])
            await update_with(found, "Waiting for results")
            append(output, [answer("a")], [call("a", 0)])
            await update_with(found, "So far: 1 request.")

    run(test())


def test_half_a_line_is_not_read(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    line = json.dumps(answer("b")).encode() + b"\n"
    append(output, [answer("a")], [call("a", 0)])
    write_more(output, line[:40])

    async def test() -> None:
        async with followed(output) as address, contextlib.aclosing(updates(address)) as found:
            update = await update_with(found, "So far: 1 request.")
            assert update.content is not None
            assert "The last line of out.jsonl is incomplete" in update.content
            await asyncio.to_thread(write_more, output, line[40:])
            update = await update_with(found, "So far: 2 requests.")
            assert update.content is not None
            assert "incomplete" not in update.content

    run(test())


def test_failures_of_an_error_file_are_followed_too(tmp_path: Path) -> None:
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    append(output, [], [call("a", 0, error="E", status_code=500)])
    errors.write_text(json.dumps(failure("a", 500)) + "\n")

    async def test() -> None:
        server = followed(output, errors)
        async with server as address, contextlib.aclosing(updates(address)) as found:
            update = await update_with(found, "So far: 1 request.")
            assert "<dt>failed</dt><dd>1</dd>" in (update.content or "")
            append(output, [answer("a")], [call("a", 5)])
            async for update in found:
                if "<dt>failed</dt><dd>0</dd>" in (update.content or ""):
                    break
            else:
                pytest.fail("the answer is not shown")

    run(test())


def test_only_the_page_is_served_and_only_to_this_computer(tmp_path: Path) -> None:
    output = nasty_run(tmp_path)

    async def test() -> None:
        async with followed(output) as address, aiohttp.ClientSession() as session:
            async with contextlib.aclosing(updates(address)) as found:
                async for update in found:  # until it has read the files
                    if NASTY in Page(update.content or "").text:
                        break
            port = int(address.split(":")[2].strip("/"))
            for path in ("out.jsonl", "../out.jsonl", "%2e%2e/out.jsonl", "page.js", "events/x"):
                async with session.get(f"{address}{path}") as response:
                    assert response.status == 404
            async with session.post(address) as response:
                assert response.status == 405
            refused = (
                "evil.example",
                f"evil.example:{port}",
                "127.0.0.1:1",
                "localhost.evil.example",
            )
            for path in ("", "events", "out.jsonl"):
                for host in (*refused, f"a@localhost:{port}", f"localhost:{port}/x", ""):
                    async with session.get(f"{address}{path}", headers={"Host": host}) as response:
                        assert response.status in (400, 403), host
                        assert NASTY not in await response.text()
            for host in (f"127.0.0.1:{port}", f"LOCALHOST:{port}", "localhost", f"[::1]:{port}"):
                async with session.get(address, headers={"Host": host}) as response:
                    assert response.status == 200
                    page = Page(await response.text())
                    headers = response.headers
                assert page.open == []
                assert NASTY in page.text
                assert page.count("script") == 1
                policy = headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "connect-src 'self'" in policy
                assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            if sys.platform == "linux":  # where every 127.x.x.x is this computer
                with pytest.raises(OSError, match="refused"):
                    socket.create_connection(("127.0.0.2", port), timeout=PATIENCE)

    run(test())


def test_a_file_that_is_no_output_ends_the_report(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text('{"messages": []}\n')
    shown: list[str] = []

    async def test() -> None:
        async def read(address: str) -> None:
            async for update in updates(address):
                shown.append(update.state)

        async with followed(output) as address:
            await read(address)

    with pytest.raises(ExceptionGroup) as caught:
        run(test())
    (error,) = caught.value.exceptions
    assert isinstance(error, ReportError)
    assert "line 1 of" in str(error)
    assert "it is a request" in shown[-1]


def test_the_options_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    output = nasty_run(tmp_path)
    for options, message in (
        (("--follow", "--html", tmp_path / "x.html"), "--follow writes no files"),
        (("--port", "80"), "--port and --open are for --follow"),
        (("--open",), "--port and --open are for --follow"),
    ):
        done = invoke(output, *options)
        assert (done.exit_code, message in done.stderr) == (2, True), done.stderr
    missing = invoke(tmp_path / "no" / "out.jsonl", "--follow")
    assert (missing.exit_code, "there is no folder" in missing.stderr) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = invoke(output, "--follow", "--port", port)
    assert (taken.exit_code, f"port {port} cannot be used" in taken.stderr) == (2, True)


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process")
def test_ctrl_c_ends_the_command_while_pages_are_open(tmp_path: Path) -> None:
    # Who runs the tests in the background has SIGINT ignored.
    command = [sys.executable, str(WITH_SIGNALS), sys.executable, "-m", "parallel_core"]
    command += ["report", "out.jsonl", "--follow"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.fullmatch(r"Report of out\.jsonl: (http://127\.0\.0\.1:\d+/) .*\n", line)
        assert found, line

        async def test() -> None:
            pages = [updates(found[1]) for _ in range(3)]
            for page in pages:
                assert "Waiting" in (await anext(page)).state
            server.send_signal(signal.SIGINT)
            for page in pages:
                assert [update async for update in page] == []  # it is closed

        run(test())
        rest, errors = server.communicate(timeout=PATIENCE)
        assert (server.returncode, rest, errors) == (0, "The report has ended.\n", "")


def test_a_page_of_a_file_and_a_followed_page_show_the_same(tmp_path: Path) -> None:
    report = summarize(nasty_run(tmp_path))
    assert content(report) in html_page(report)
