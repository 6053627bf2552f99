"""``parallel-core run``: the output file, and that no key is in it or anywhere else."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import threading
from collections.abc import Iterator

import pytest

from helpers.forked_processes import PATIENCE
from helpers.run_bench import (
    FAILS,
    HANGS,
    HELD,
    KEY,
    Bench,
    ids,
)


def test_an_output_that_cannot_be_sorted_is_1_and_every_answer_is_safe(bench: Bench) -> None:
    bench.server.hold()
    bench.write(HELD, {})
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--order=input", "--json")
    run.wait_for('"succeeded":1')
    bench.path(".out.jsonl.new").mkdir()
    bench.server.release()
    assert run.wait() == 1
    assert "out.jsonl could not be sorted (Is a directory (EISDIR))" in run.stdout
    assert "Every result is in it" in run.stdout
    assert sorted(bench.ids()) == ids(0, 1)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("folder", "is a folder: give the name of a file"),
        ("nowhere/out.jsonl", "there is no folder"),
        ("/dev/null", "is a pipe, a device or a socket"),
        ("other.jsonl", "is not empty"),
        ("in.jsonl", "is the input"),
    ],
)
def test_an_output_that_cannot_be_used_is_told(bench: Bench, output: str, says: str) -> None:
    bench.path("folder").mkdir()
    bench.write({})
    bench.write({}, name="other.jsonl")
    before = bench.path("in.jsonl").read_bytes()
    done = bench.run("in.jsonl", "-o", output)
    assert done.code == 2
    assert says in done.said
    assert bench.path("in.jsonl").read_bytes() == before
    assert bench.accepted == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_told(bench: Bench) -> None:
    bench.path("folder").mkdir(mode=0o500)
    bench.write({})
    done = bench.run("in.jsonl", "-o", "folder/out.jsonl")
    assert done.code == 2
    assert "is read-only" in done.said


def test_a_second_run_on_one_output_is_refused(bench: Bench) -> None:
    bench.write(HANGS)
    first = bench.start("in.jsonl", "-o", "out.jsonl", "--grace=0")
    bench.server.wait_in_flight(1, PATIENCE)
    second = bench.run("in.jsonl", "-o", "out.jsonl")
    assert second.code == 2
    assert f"out.jsonl is in use by another run, process {first.pid}" in second.said
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 130
    assert bench.accepted == 1


def test_an_output_that_vanishes_ends_the_run_with_3(bench: Bench) -> None:
    bench.server.hold()
    bench.write(HELD, HANGS)
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--concurrency=2")
    bench.server.wait_in_flight(2, PATIENCE)
    bench.path("out.jsonl").rename(bench.path("moved.jsonl"))
    bench.server.release()
    assert run.wait() == 3
    assert "out.jsonl cannot be written: it has been moved or replaced" in run.stderr
    assert str(bench.path("out.jsonl.rescue.jsonl")) in run.stderr
    assert bench.ids("out.jsonl.rescue.jsonl") == ids(0)
    bench.path("moved.jsonl").rename(bench.path("out.jsonl"))
    again = bench.start("in.jsonl", "-o", "out.jsonl", "--grace=0")
    bench.server.wait_in_flight(1, PATIENCE)
    again.send_signal(signal.SIGTERM)
    assert again.wait() == 130
    assert "moved 1 result from the rescue file to the output" in " ".join(again.output.split())
    assert bench.ids() == ids(0)
    assert bench.accepted == 3


class EchoingServer(http.server.BaseHTTPRequestHandler):
    """Tells in an error which key it was given, as some do."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        given = self.headers["Authorization"]
        body = json.dumps({"error": {"message": f"Bad key: {given}", "param": given}}).encode()
        self.send_response(400)  # a 401 would stop the run without a line
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-request-id", str(given).split()[-1])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def echoing_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), EchoingServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("view", [[], ["--json"]])
def test_a_key_that_a_server_echoes_is_nowhere(bench: Bench, view: list[str]) -> None:
    bench.write({}, {})
    with echoing_server() as url:
        done = bench.run(
            *("in.jsonl", "-o", "out.jsonl", "--model=fast", "--api-base", url, *view),
            router=False,
            environment={"OPENAI_API_KEY": KEY},
        )
    assert done.code == 1
    assert [result["response"]["status_code"] for result in bench.results()] == [400, 400]
    assert "[redacted]" in bench.path("out.jsonl").read_text()
    files = [path for path in bench.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {
        "out.jsonl.manifest.json",
        "out.jsonl.statistics.jsonl",
    }
    for text in (done.stdout, done.stderr, *(path.read_text(errors="replace") for path in files)):
        assert KEY not in text
        assert KEY[8:24] not in text


def test_variables_that_look_like_keys_change_no_answer(bench: Bench) -> None:
    """Whole answers are written as they are, and half ones are failures."""
    reply = "use ollama\u2028or\u0085content in production"
    body = {"model": "fast", "messages": [{"role": "user", "content": "Hi."}]}
    streamed = {**body, "stream": True}
    lines = [
        {"custom_id": "a\u2028", "body": {**body, "extra_body": {"demo": {"reply": reply}}}},
        {"custom_id": "b", "body": {**streamed, "extra_body": {"demo": {"reply": reply}}}},
        {"custom_id": "c", "body": {**streamed, "extra_body": {"demo": {"cut_after": 1}}}},
    ]
    bench.path("in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = bench.run(
        *("in.jsonl", "-o", "out.jsonl", "--model=fast", "--api-base", bench.server.url),
        router=False,
        environment={
            "OPENAI_API_KEY": "ollama",
            "DJANGO_SECRET": "production",
            "FOO_SECRET": "content",
        },
    )
    assert done.code == 1
    results = {result["custom_id"]: result for result in bench.results()}
    assert set(results) == {"a\u2028", "b", "c"}
    for name in ("a\u2028", "b"):
        (choice,) = results[name]["response"]["body"]["choices"]
        assert choice["message"]["content"] == reply
        assert choice["finish_reason"] == "stop"
    assert results["c"]["response"] is None
    assert results["c"]["error"]["code"] == "stream_interrupted"


def test_a_password_in_an_address_is_not_told_again(bench: Bench) -> None:
    bench.write(FAILS)
    address = bench.server.url.replace("//", "//user:PASSWORD-xyz@")
    done = bench.run(
        *("in.jsonl", "-o", "out.jsonl", "--model=fast", "--api-base", address), router=False
    )
    assert done.code == 1
    assert "resume with: parallel-core run --retry-failed in.jsonl" in done.said
    assert "PASSWORD-xyz" not in done.said


def test_what_litellm_logs_is_not_shown(bench: Bench) -> None:
    bench.write(FAILS)
    fallbacks = "num_retries: 0, fallbacks: [{fast: [fast]}]"
    bench.config("", fallbacks)
    done = bench.run("in.jsonl", "-o", "out.jsonl")
    assert done.code == 1
    assert "LiteLLM" not in done.said
    assert "fallback" not in done.said


def test_a_direct_run_writes_what_the_provider_sent(bench: Bench) -> None:
    bench.write({}, {}, FAILS)
    plain = bench.run("in.jsonl", "-o", "plain.jsonl")
    bench.server.reset_stats()
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--direct")
    assert (plain.code, done.code) == (1, 1)
    assert bench.accepted == 3
    assert re.search(r"^direct +3$", done.stdout, re.MULTILINE)
    assert "direct" not in plain.stdout
    answers = {one["custom_id"]: one["response"]["body"] for one in bench.results("plain.jsonl")}
    for result in bench.results():
        body = result["response"]["body"]
        if "choices" in body:  # the provider's own order of members, which litellm changes
            assert list(body)[:3] == ["id", "object", "created"]
            message = body["choices"][0]["message"]
            assert message == answers[result["custom_id"]]["choices"][0]["message"]
        else:
            assert body["error"]["code"] == answers[result["custom_id"]]["error"]["code"]
