"""The command ``parallel-core run --workers``, with Ray and a real Router, seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import torture

pytest.importorskip("ray")

from helpers.forked_processes import PATIENCE, ForkedProcess, ForkedProcesses
from helpers.ports import held_port
from helpers.process_trees import descendants, still_running, workers_of
from helpers.ray_runtime import IGNORED_WARNINGS, ray_home
from helpers.run_bench import FAILS, HANGS, Bench, Done, in_this_process
from helpers.torture_bench import Torture
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

pytestmark = [pytest.mark.filterwarnings(one) for one in IGNORED_WARNINGS]

PLAIN: dict[str, Any] = {}
WORKERS = ("--workers=2", "--concurrency=3")


class RayBench(Bench):
    """Runs the command with Ray in a folder of its own."""

    def __init__(
        self, folder: Path, server: DemoServerThread, commands: ForkedProcesses, ray: Path
    ) -> None:
        super().__init__(folder, server, commands)
        self.home = self.ray = ray
        self._before = self._sessions()

    def start(self, *arguments: object, router: bool = True, **options: Any) -> ForkedProcess:
        environment = {
            "HOME": str(self.home),
            "RAY_TMPDIR": str(self.ray),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        return super().start(*arguments, router=router, environment=environment, **options)

    def _sessions(self) -> set[Path]:
        return set(self.ray.glob("ray/session_2*"))

    @property
    def has_started_ray(self) -> bool:
        return self._sessions() != self._before


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServerThread]:
    with DemoServerThread(DemoServerSettings(latency_median=0.0, models={"fast": 1.0})) as running:
        yield running


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    # The paths of sockets in it must be short.
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bench(
    tmp_path: Path, server: DemoServerThread, commands: ForkedProcesses, ray_folder: Path
) -> RayBench:
    return RayBench(tmp_path, server, commands, ray_folder)


# --- a run and its processes ---


def check_all_end(pids: dict[int, str]) -> None:
    left = still_running(pids, within=PATIENCE)
    assert not left, [pids[pid] for pid in left]


def wait_for_calls(bench: Bench, number: int) -> None:
    """Wait until so many have come to the server."""
    never = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if bench.accepted >= number:
            return
        never.wait(0.02)  # it can only be asked
    raise TimeoutError(f"{bench.accepted} calls have come, and not {number}")


# --- what comes of it ---


def without_what_differs(results: list[dict[str, Any]]) -> list[Any]:
    """Results of two runs, as far as they must be the same."""
    for result in results:
        response: dict[str, Any] = result["response"] or {}
        parts: list[dict[str, Any]] = [result, response, response.get("body", {})]
        for fields in parts:
            for name in ("id", "created", "request_id"):
                fields.pop(name, None)
    return sorted(results, key=lambda result: str(result["custom_id"]))


def rows_of(done: Done) -> list[tuple[str, ...]]:
    """The words of each row of the summary, without times and paths.

    Sorted, since the requests that a row of failures names are in completion order.
    """
    rows = [re.findall(r"[^\s,()]+", line) for line in done.stdout.splitlines()]
    return [
        (name, *(sorted(words) if name not in ("time", "output", "resume") else []))
        for name, *words in rows
    ]


@pytest.fixture
def cluster(bench: RayBench, ray: Any) -> str:
    """The address of a Ray that is there before the command, and after it."""
    bench.home = ray_home()
    return str(ray.get_runtime_context().gcs_address)


@pytest.mark.parametrize(
    "is_there",
    [
        pytest.param(False, id="started", marks=pytest.mark.thorough),
        pytest.param(True, id="there", marks=pytest.mark.thorough),  # starts a second Ray
    ],
)
def test_workers_answer_each_request_as_one_process_does(
    is_there: bool, bench: RayBench, request: pytest.FixtureRequest
) -> None:
    bench.config(", rpm: 60000")  # for all workers together
    bench.write(*([PLAIN] * 20), FAILS, FAILS)
    local = bench.run("in.jsonl", "-o", "local.jsonl")
    assert not bench.has_started_ray
    bench.server.reset_stats()
    if is_there:
        where = [*WORKERS, "--ray-address", request.getfixturevalue("cluster")]
    else:  # a worker that is no fork imports litellm for seconds: one is enough
        where = ["--workers=1", "--concurrency=6"]
    done = bench.run("in.jsonl", "-o", "out.jsonl", *where)
    assert bench.has_started_ray is not is_there
    if is_there:
        assert not still_running(workers_of(os.getpid()), within=PATIENCE)
        assert any("raylet" in command for command in descendants(os.getpid()).values())
    assert (done.code, local.code) == (1, 1)
    assert bench.accepted == 22
    assert without_what_differs(bench.results()) == without_what_differs(
        bench.results("local.jsonl")
    )
    assert rows_of(done) == rows_of(local)
    assert "holding 60,000 requests per minute for fast (its deployment)\n" in done.stderr
    # Nothing of Ray's own words.
    assert [line.split()[1] for line in done.stderr.splitlines()] == [
        line.split()[1] for line in local.stderr.splitlines()
    ]


def test_what_is_finished_needs_no_workers(bench: RayBench) -> None:
    bench.write(*([PLAIN] * 5))
    assert bench.run("in.jsonl", "-o", "out.jsonl").code == 0
    again = bench.run("in.jsonl", "-o", "out.jsonl", *WORKERS)
    assert again.code == 0
    assert bench.run("in.jsonl", "--validate", *WORKERS).code == 0
    assert not bench.has_started_ray
    assert bench.accepted == 5


@pytest.mark.thorough  # test_ray_endings kills one, too
def test_a_worker_that_dies_is_replaced_and_json_tells_it(bench: RayBench, cluster: str) -> None:
    others = set(workers_of(os.getpid()))
    bench.write(*([{"latency": 1.5}] * 6), *([PLAIN] * 6))
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--json", *WORKERS, "--ray-address", cluster)
    wait_for_calls(bench, 6)  # as many as are in flight at once
    worker, _ = set(workers_of(os.getpid())) - others
    os.kill(worker, signal.SIGKILL)
    assert run.wait() == 0
    assert run.stderr == ""
    events = [json.loads(line) for line in run.stdout.splitlines()]
    summary = events[-1]
    assert (summary["event"], summary["succeeded"], summary["lost_workers"]) == ("summary", 12, 1)
    # Three in flight, and as many that wait there, at most.
    assert 3 <= summary["resent_requests"] <= 6
    assert bench.accepted <= 12 + summary["resent_requests"]
    notes = [event["text"] for event in events if event["event"] == "note"]
    sent_again = f"{summary['resent_requests']} requests sent again"
    assert notes == [f"a worker died and was replaced (1 so far, {sent_again})"]
    assert sorted(bench.ids()) == sorted(f"id-{number}" for number in range(12))


@pytest.mark.thorough
def test_a_server_that_is_not_up_yet_is_waited_for(bench: RayBench, cluster: str) -> None:
    bench.write(*([PLAIN] * 20))
    config = bench.path("config.yaml")
    with held_port() as port:
        address = f"http://127.0.0.1:{port}"
        config.write_text(config.read_text().replace(bench.server.url, f"{address}/v1"))
        run = bench.start("in.jsonl", "-o", "out.jsonl", *WORKERS, "--ray-address", cluster)
        try:
            run.wait_for(f"waiting for {address}: no connection to the server, since ")
            settings = DemoServerSettings(latency_median=0.0, models={"fast": 1.0})
            with DemoServerThread(settings, port=port) as server:
                assert run.wait() == 0, run.output
                assert server.stats().accepted == 20
        finally:
            run.kill()
    assert sorted(bench.ids()) == sorted(f"id-{number}" for number in range(20))


# --- an end before its time ---


@contextlib.contextmanager
def on_terminal(bench: RayBench, *arguments: object) -> Generator[tuple[ForkedProcess, int]]:
    """The command on a terminal, and what is written into to type there."""
    screen, process_end = pty.openpty()
    run = bench.start(*arguments, terminal=process_end)
    os.close(process_end)
    run.collect("stderr", os.dup(screen))
    try:
        yield run, screen
    finally:
        with contextlib.suppress(ProcessLookupError):
            run.kill()
        os.close(screen)


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.mark.thorough
def test_ctrl_c_twice_ends_the_calls_and_leaves_no_process(bench: RayBench) -> None:
    bench.write(PLAIN, PLAIN, *([HANGS] * 20))
    with on_terminal(bench, "in.jsonl", "-o", "out.jsonl", *WORKERS) as (run, keyboard):
        wait_for_calls(bench, 8)
        processes = descendants(run.pid)
        assert len(workers_of(run.pid)) == 2
        os.write(keyboard, b"\x03")  # to all processes that have this terminal
        run.wait_for("SIGINT: no new calls")
        os.write(keyboard, b"\x03")
        assert run.wait() == 130
    check_all_end(processes)
    assert "resume with: parallel-core run in.jsonl -o out.jsonl --workers=2 --con" in run.output
    told = re.search(r"left +20, (\d+) of them cut off", without_colours(run.output))
    assert told is not None
    assert 6 <= int(told[1]) <= 12  # what waits in a worker is not known to have been sent
    assert sorted(bench.ids()) == ["id-0", "id-1"]


@pytest.mark.thorough
def test_a_signal_lets_calls_end(bench: RayBench) -> None:
    bench.write(*({"latency": 1.0} for _ in range(30)))
    run = bench.start("in.jsonl", "-o", "out.jsonl", *WORKERS)
    wait_for_calls(bench, 6)
    processes = descendants(run.pid)
    # As if its terminal were closed: all processes of its group get this.
    os.killpg(run.pid, signal.SIGHUP)
    assert run.wait() == 130
    check_all_end(processes)
    assert [result["error"] for result in bench.results() if result["error"]] == []
    # What had been given to a worker and waited there is let go on, too.
    assert 6 <= len(bench.ids()) == bench.accepted < 30
    assert "cut off" not in run.output
    assert "SIGHUP: no new calls, those in flight have 10 s\n" in run.stderr


@pytest.mark.thorough
def test_ctrl_c_while_workers_start_sends_nothing(bench: RayBench) -> None:
    bench.write(PLAIN, PLAIN)
    with on_terminal(bench, "in.jsonl", "-o", "out.jsonl", *WORKERS) as (run, keyboard):
        run.wait_for("starting 2 workers")
        os.write(keyboard, b"\x03")
        assert run.wait() == 130
        assert re.search("left +2 .the run was stopped.", without_colours(run.output))
    assert bench.accepted == 0


# --- without Ray, and wrong options ---


def test_without_ray_it_tells_how_to_install_it_before_anything_else(tmp_path: Path) -> None:
    words = ["run", "nothing.jsonl", "-o", "out.jsonl", *WORKERS, "--demo"]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("scripts") / "run_without_ray.py", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    boxed = done.stderr.translate({ord(c): " " for c in "│╭╮╰╯─"})
    assert "--workers needs Ray: pip install 'parallel_core[ray]'" in " ".join(boxed.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ray-address=auto"], "--ray-address needs --workers"),
        (["--workers=0"], "should be greater than or equal to 1"),
        (["--workers=1000000000"], "should be less than or equal to 10000"),
    ],
)
def test_wrong_options_are_told(options: list[str], says: str) -> None:
    done = in_this_process(["in.jsonl", "-o", "out.jsonl", "--demo", *options])
    assert done.code == 2
    assert says in done.said


@pytest.mark.parametrize("address", ["nowhere://at-all", "127.0.0.1:1"])
def test_workers_that_cannot_be_started_are_told_and_nothing_is_sent(
    address: str, bench: RayBench
) -> None:
    bench.write(PLAIN, PLAIN)
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--workers=1", f"--ray-address={address}")
    assert done.code == 2
    assert "nothing was sent: the workers cannot be started: " in done.stderr
    assert address in done.stderr
    assert bench.accepted == 0


@pytest.mark.thorough
def test_runs_and_workers_that_are_killed_end_with_each_answer_once(tmp_path: Path) -> None:
    measured = torture.workers(
        Torture(tmp_path, light=True, requests=600, kills=1, seed=5, concurrency=4)
    )
    assert measured.problems == []
    assert 0 <= measured.paid_twice <= measured.allowed, measured
    assert measured.kills == 2
