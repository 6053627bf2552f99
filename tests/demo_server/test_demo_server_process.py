"""A demo server in a thread and in a process, and its users: litellm and the examples."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from helpers import hosts
from helpers.demo_clients import (
    IMMEDIATE,
    TIMEOUT,
    assert_port_is_free,
    body_for,
    port_of,
    raw_request,
)
from parallel_core.demo_server import (
    DemoServerProcess,
    DemoServerSettings,
    DemoServerThread,
    demo_server_process,
)
from parallel_core.router_hosts.litellm_loop import close_clients_of_this_loop

SCRIPTS = Path(__file__).parent / "scripts"


REPOSITORY = Path(__file__).resolve().parents[2]


def test_thread() -> None:
    before = hosts.thread_names()
    with DemoServerThread(IMMEDIATE) as server:
        assert "demo-server" in hosts.thread_names()
        client = socket.create_connection(("127.0.0.1", port_of(server.url)))
        with client:
            client.sendall(raw_request(demo={"fault": "hang"}))
            server.wait_in_flight(1, timeout=TIMEOUT)
            with pytest.raises(TimeoutError):
                server.wait_idle(timeout=0)
            assert (server.stats().in_flight, server.stats().open_connections) == (1, 1)
        server.wait_idle(timeout=TIMEOUT)
        assert server.stats().disconnected == 1
        server.hold()
        with socket.create_connection(("127.0.0.1", port_of(server.url))) as client:
            client.sendall(raw_request(demo={"held": True}))
            server.wait_in_flight(1, timeout=TIMEOUT)
            with pytest.raises(TimeoutError):
                server.wait_finished(1, timeout=0)
            server.release()
            server.wait_finished(1, timeout=TIMEOUT)
        server.reset_stats()
        assert server.stats().accepted == 0
    assert hosts.threads_besides(before) == []
    assert server.stats().accepted == 0
    with pytest.raises(RuntimeError):
        server.wait_idle()
    assert_port_is_free(server.url)


def test_thread_that_cannot_listen() -> None:
    before = hosts.thread_names()
    with DemoServerThread(IMMEDIATE) as server:
        other = DemoServerThread(IMMEDIATE, port=port_of(server.url))
        with pytest.raises(OSError, match="in use"):
            other.__enter__()
    assert hosts.threads_besides(before) == []


def test_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("no_proxy", "")
    settings = DemoServerSettings(
        seed=-7, latency_median=0.0, latency_sigma=1e-07, capacity=5, models={"my-model": 0.5}
    )
    with demo_server_process(settings) as server:
        assert os.getsid(server.pid) != os.getsid(0)  # no signal of this terminal reaches it
        assert ask(server, "my-model")["model"] == "my-model"
        assert server.stats().models["my-model"].finished == 1
        server.reset_stats()
        server.hold()
        held = threading.Thread(target=ask, args=(server, "my-model"), kwargs={"held": True})
        held.start()
        while not server.stats().in_flight:
            time.sleep(0.01)
        server.release()
        held.join()
        assert server.stats().finished == 1
        server.reset_stats()
        assert server.stats().accepted == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(server.url)))


def ask(server: DemoServerProcess, model: str, **demo: Any) -> Any:
    async def main() -> Any:
        async with aiohttp.ClientSession() as client:
            url = f"{server.url}/chat/completions"
            async with client.post(url, json=body_for(model, demo=demo)) as response:
                return await response.json()

    return asyncio.run(main())


def test_process_that_cannot_start(capfd: pytest.CaptureFixture[str]) -> None:
    with DemoServerThread(IMMEDIATE) as server:
        port = port_of(server.url)
        cannot_start = pytest.raises(RuntimeError, match="exit code 1")
        with cannot_start, demo_server_process(IMMEDIATE, port=port):
            pytest.fail("the port is taken")
    assert capfd.readouterr().err.startswith(f"Cannot listen on 127.0.0.1:{port}: ")


@pytest.mark.thorough  # of the demo server
@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_the_process_quietly(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "parallel_core.demo_server", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    with process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port_of(address["url"]))):
            process.send_signal(number)
            rest, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, rest, errors) == (0, "", "")


@pytest.mark.thorough  # of the demo server
@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_process_ends_with_a_parent_that_is_killed() -> None:
    # The server has the parent's standard error: its end is that of both.
    with subprocess.Popen(
        [sys.executable, SCRIPTS / "parent_of_a_server.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        port = port_of(process.stdout.readline().strip())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            process.kill()
            connection.settimeout(TIMEOUT)
            assert connection.recv(1) == b""
        _, errors = process.communicate(timeout=TIMEOUT)
    assert errors == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.thorough  # of the demo server
@pytest.mark.skipif(sys.platform == "win32", reason="its pipes fail otherwise")
def test_process_whose_address_nobody_reads_says_so() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "parallel_core.demo_server"],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            timeout=TIMEOUT,
        )
    finally:
        os.close(writing)
    told = "Nobody reads the address: standard output is closed.\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_litellm_router_gets_answers() -> None:
    litellm: Any = importlib.import_module("litellm")  # its annotations are no help here

    async def main(url: str) -> None:
        router = litellm.Router(
            model_list=[
                {
                    "model_name": "fast",
                    "litellm_params": {
                        "model": "openai/fast",
                        "api_base": url,
                        "api_key": "demo",
                    },
                }
            ],
            num_retries=0,
        )
        messages = [{"role": "user", "content": "Hello"}]
        extra: dict[str, Any] = {"extra_body": {"demo": {"reply": "one two", "fault": "none"}}}
        answer = await router.acompletion(model="fast", messages=messages, **extra)
        assert answer.choices[0].message.content == "one two"
        assert answer.usage.completion_tokens == 2
        stream = await router.acompletion(
            model="fast",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            **extra,
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "one two"
        usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
        assert [usage.completion_tokens for usage in usages] == [2]
        for fault, error in {
            "rate_limited": litellm.RateLimitError,
            "server_error": litellm.InternalServerError,
        }.items():
            with pytest.raises(error):
                await router.acompletion(
                    model="fast", messages=messages, extra_body={"demo": {"fault": fault}}
                )
        await close_clients_of_this_loop()

    with DemoServerThread(DemoServerSettings(latency_median=0.0, hang=1.0)) as server:
        asyncio.run(asyncio.wait_for(main(server.url), TIMEOUT))
        stats = server.stats()
    assert (stats.accepted, stats.finished) == (4, 4)
    assert stats.faults == {"rate_limited": 1, "server_error": 1}


def test_module_needs_no_litellm() -> None:
    code = "import sys, parallel_core.demo_server; print('litellm' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert output.stdout == "False\n"


def test_example_requests_are_the_scripts_output() -> None:
    script = REPOSITORY / "examples" / "make_requests.py"
    written = (REPOSITORY / "examples" / "requests.jsonl").read_bytes()
    output = subprocess.run([sys.executable, script], capture_output=True, check=True).stdout
    assert output.replace(b"\r\n", b"\n") == written
    requests = [json.loads(line) for line in written.splitlines()]
    assert len(requests) == 240
    assert {request["model"] for request in requests} == set(DemoServerSettings().models)
    assert len({json.dumps(request["messages"]) for request in requests}) == 240


def test_example_script_writes_a_file(tmp_path: Path) -> None:
    script = REPOSITORY / "examples" / "make_requests.py"
    spec = importlib.util.spec_from_file_location("make_requests", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = tmp_path / "requests.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        options = ["--count", "3", "--seed", "1", "--output", str(target)]
        patch.setattr(sys, "argv", ["make_requests.py", *options])
        module.main()
    requests = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert requests == list(module.make_requests(3, 1))
