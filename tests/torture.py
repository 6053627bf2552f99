"""Runs of files that are killed, starved of disk and served badly: is each answer there, once?

``python tests/torture.py`` (``make torture``) does it to the command ``parallel-core run``, and
tells in a table what it has cost; it exits with 1 if a promise was broken. With ``--light`` the
calls are made without litellm, as in ``test_run_crash.py``, which takes its scenarios from here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from helpers.process_trees import still_running, workers_of
from parallel_core.run_statistics import RunPaths

GROUP = 32  # results that the journal writes at once
PATIENCE = 120.0  # seconds for what must come
_POLL = 0.004  # seconds between two looks at the server or at a process
_NOT_WRITTEN = 3
_ROUNDS = 40  # of trying failed requests again: far more than it takes

Sabotage: TypeAlias = Literal["", "forgets", "rescues-nothing", "writes-torn"]


@dataclass(frozen=True)
class Torture:
    """One run of a file, and what is done to it.

    Attributes:
        folder: for all its files.
        light: whether the calls are made without litellm.
        requests: of the file.
        kills: how often it is killed, or its server restarted.
        seed: of the moments, and of the server's faults.
        concurrency: calls in flight at most, in each worker where there are some.
        latency: of the server, in seconds.
        workers: processes that make the calls, on Ray; 0: the one of the run.
        sabotage: what is broken on purpose (light runs only), to see that it is noticed.
    """

    folder: Path
    light: bool
    requests: int = 3000
    kills: int = 10
    seed: int = 1
    concurrency: int = 16
    latency: float = 0.01
    workers: int = 0
    sabotage: Sabotage = ""


@dataclass(frozen=True)
class Measured:
    """What has come of it.

    Attributes:
        kills: that hit a running process; or restarts, or full disks.
        accepted: requests that have come to the server.
        paid: those among them that it has not failed itself.
        allowed: how many of ``paid`` may be paid twice.
        problems: what is wrong with the output, and other broken promises.
    """

    scenario: str
    requests: int
    kills: int
    accepted: int
    paid: int
    allowed: int
    seconds: float
    problems: list[str]

    @property
    def paid_twice(self) -> int:
        return self.paid - self.requests

    @property
    def kept(self) -> bool:
        """Whether all was as promised."""
        return not self.problems and 0 <= self.paid_twice <= self.allowed


# --- the requests, and the check of the answers ---


def custom_id_of(number: int) -> str:
    return f"request-{number}"


def write_requests(path: Path, count: int) -> None:
    """Requests whose answers tell to which request they belong."""
    with path.open("w") as lines:
        for number in range(count):
            body = {
                "model": "fast",
                "messages": [{"role": "user", "content": f"Question {number}."}],
                "extra_body": {"demo": {"reply": f"answer {custom_id_of(number)}"}},
            }
            lines.write(json.dumps({"custom_id": custom_id_of(number), "body": body}) + "\n")


def examine(output: Path, requests: int) -> list[str]:
    """What is wrong with the output of a run that is over."""
    problems: list[str] = []
    seen: Counter[str] = Counter()
    for number, line in enumerate(output.read_bytes().splitlines(keepends=True), start=1):
        try:
            result = json.loads(line)
            custom_id: str = result["custom_id"]
        except (ValueError, KeyError, TypeError):
            problems.append(f"line {number} is no result")
            continue
        if not line.endswith(b"\n"):
            problems.append(f"line {number} is torn")
        seen[custom_id] += 1
        if _reply_of(result) != f"answer {custom_id}":
            problems.append(f"line {number} is not the answer to {custom_id}")
    wanted = {custom_id_of(number) for number in range(requests)}
    if missing := wanted - seen.keys():
        problems.append(f"{len(missing)} ids are missing")
    if unknown := seen.keys() - wanted:
        problems.append(f"{len(unknown)} ids are of no request")
    if twice := [custom_id for custom_id, count in seen.items() if count > 1]:
        problems.append(f"{len(twice)} ids are there more than once")
    return problems


def _reply_of(result: dict[str, Any]) -> object:
    try:
        return result["response"]["body"]["choices"][0]["message"]["content"]
    except (KeyError, TypeError, IndexError):
        return None


def _ids_in(path: Path) -> list[str]:
    """Of the whole lines of a file that may end in a torn one, or not be there."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line)["custom_id"] for line in lines if line.endswith(b"\n")]


# --- a run and its server ---


@dataclass
class _Server:
    """A demo server that may be restarted at the same address."""

    settings: dict[str, Any]
    port: int = 0
    _before: Counter[str] = field(default_factory=Counter[str])
    _thread: Any = None

    def start(self) -> None:
        from parallel_core.demo_server import DemoServerSettings, DemoServerThread

        settings = DemoServerSettings(models={"fast": 1.0}, **self.settings)
        self._thread = DemoServerThread(settings, port=self.port)
        self._thread.__enter__()
        self.port = int(self.url.rsplit(":", 1)[1].split("/")[0])

    def set_trouble(self, *trouble: Any) -> None:
        self._thread.set_trouble(trouble)

    def go_away(self, seconds: float) -> None:
        self._thread.go_away(seconds)

    def stop(self) -> None:
        thread, self._thread = self._thread, None
        thread.__exit__()
        self._before += _counts(thread.stats())

    def restart(self) -> None:
        # Another seed: it would fail the same requests again.
        self.stop()
        self.settings = {**self.settings, "seed": self.settings["seed"] + 1}
        self.start()

    @property
    def url(self) -> str:
        return str(self._thread.url)

    def counts(self) -> Counter[str]:
        return self._before + _counts(self._thread.stats())

    @property
    def accepted(self) -> int:
        return self.counts()["accepted"]

    @property
    def paid(self) -> int:
        counts = self.counts()
        return counts["accepted"] - counts["failed"]


def _counts(stats: Any) -> Counter[str]:
    return Counter(accepted=stats.accepted, failed=sum(stats.faults.values()))


class _Bench:
    """The files of a scenario, its server and its processes."""

    def __init__(self, torture: Torture, server: _Server, output: Path) -> None:
        self.torture = torture
        self.server = server
        self.output = output
        self.errors: Path | None = None
        self.input = torture.folder / "requests.jsonl"
        self.random = random.Random(torture.seed)
        self.problems: list[str] = []
        self.environment: dict[str, str] = {}
        self._log = torture.folder / "output.log"
        self._config = torture.folder / "config.yaml"
        write_requests(self.input, torture.requests)
        self.configure(["none"], "router_settings: {num_retries: 0, disable_cooldowns: true}\n")

    def configure(self, keys: Sequence[str], settings: str = "") -> None:
        """Write the config: a deployment for each key, and the settings of the Router.

        Without settings it is the Router as it comes. With those above, a failure reaches the file,
        and is the only one of its request.
        """
        deployments = [
            "  - model_name: fast\n"
            "    litellm_params:\n"
            f"      {{model: openai/fast, api_base: '{self.server.url}', api_key: {key}}}\n"
            for key in keys
        ]
        self._config.write_text("".join(["model_list:\n", *deployments, settings]))

    def command(self, *, retry_failed: bool, sort: bool, stops_at: int | None) -> list[str]:
        concurrency = self.torture.concurrency
        if self.torture.light:
            command = [sys.executable, __file__, "--light-run", self.server.url]
            command += [str(self.input), str(self.output), self.torture.sabotage]
            command += [f"--concurrency={concurrency}"]
            command += [] if stops_at is None else [f"--stops-at={stops_at}"]
        else:
            command = [sys.executable, "-m", "parallel_core.cli", "run", str(self.input)]
            command += ["-o", str(self.output), "--config", str(self._config)]
            command += [f"--concurrency={concurrency}", "--grace=60", "--yes"]
        if self.torture.workers:
            command += [f"--workers={self.torture.workers}"]
        if self.errors is not None:
            command += [f"--error-file={self.errors}"]
        command += ["--retry-failed"] if retry_failed else []
        return command + (["--order=input"] if sort else [])

    def start(
        self, *, retry_failed: bool = False, sort: bool = False, stops_at: int | None = None
    ) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "TMPDIR": str(self.torture.folder),
            **self.environment,
        }
        with self._log.open("wb") as log:
            return subprocess.Popen(
                self.command(retry_failed=retry_failed, sort=sort, stops_at=stops_at),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.torture.folder,
            )

    def said(self) -> str:
        """What the last process has said."""
        return self._log.read_text(errors="replace")

    def signal_at_a_moment(self, process: subprocess.Popen[bytes], number: int) -> bool:
        """Send a signal when some more requests have been made; whether there was still a run."""
        self._wait_for_a_moment(process)
        hit = process.poll() is None
        process.send_signal(number)
        process.wait(PATIENCE)
        return hit

    def kill_a_worker_at_a_moment(self, process: subprocess.Popen[bytes]) -> bool:
        """The same with a worker of the run; whether there was one."""
        self._wait_for_a_moment(process)
        workers = workers_of(process.pid)
        if not workers or process.poll() is not None:
            return False
        os.kill(self.random.choice(workers), signal.SIGKILL)
        return True

    def _wait_for_a_moment(self, process: subprocess.Popen[bytes]) -> None:
        moments = self.torture.kills * (2 if self.torture.workers else 1)
        share = self.torture.requests // (moments + 1)
        wanted = self.server.accepted + self.random.randint(0, share)
        manifest = RunPaths.of(self.output).manifest
        # Before anything is written, a broken promise is none yet.
        output = self.output if self.torture.sabotage else manifest
        _until(lambda: _has_content(output) and self.server.accepted >= wanted, process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.random.uniform(0, 0.03))

    def finish(self, *, retry_failed: bool = False, sort: bool = False) -> None:
        """Run it again until it is done."""
        for _round in range(_ROUNDS if retry_failed else 1):
            process = self.start(retry_failed=retry_failed, sort=sort)
            code = process.wait(PATIENCE)
            if code == 0:
                return
            if code != 1:
                break
        self.problems.append(f"it ends with exit code {code}: {self.said()[-2000:]}")

    def measured(self, scenario: str, *, kills: int, allowed: int, began: float) -> Measured:
        if not kills:
            self.problems.append("nothing was done to it: each run was too short")
        return Measured(
            scenario=scenario,
            requests=self.torture.requests,
            kills=kills,
            accepted=self.server.accepted,
            paid=self.server.paid,
            allowed=allowed,
            seconds=time.monotonic() - began,
            problems=[*self.problems, *examine(self.output, self.torture.requests)],
        )


@contextlib.contextmanager
def _bench(
    torture: Torture, *, output: Path | None = None, faults: dict[str, float] | None = None
) -> Generator[_Bench]:
    settings = {"seed": torture.seed, "latency_median": torture.latency, "retry_after": 0.0}
    server = _Server({**settings, **(faults or {})})
    server.start()
    try:
        yield _Bench(torture, server, output or torture.folder / "answers.jsonl")
    finally:
        server.stop()


def _until(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], *, poll: float = _POLL
) -> None:
    """Wait until something holds, or the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it never came to that")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(poll)
            return


# --- what is done to it ---


def killed(torture: Torture) -> Measured:
    """SIGKILL, again and again."""
    began = time.monotonic()
    with _bench(torture) as bench:
        kills = 0
        for _kill in range(torture.kills):
            kills += bench.signal_at_a_moment(bench.start(), signal.SIGKILL)
        bench.finish()
        allowed = kills * (torture.concurrency + GROUP)
        return bench.measured("killed", kills=kills, allowed=allowed, began=began)


def workers(torture: Torture) -> Measured:
    """SIGKILL of the run, and of one of its two workers on Ray."""
    from parallel_core._fleet import largest_block

    torture = dataclasses.replace(torture, workers=2)
    began = time.monotonic()
    # The paths of Ray's sockets must be short.
    with (
        tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder,
        _bench(torture) as bench,
    ):
        bench.environment = {
            "HOME": folder,
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        drivers = killed_workers = 0
        processes: list[int] = []
        for _kill in range(torture.kills):
            process = bench.start()
            killed_workers += bench.kill_a_worker_at_a_moment(process)
            processes += workers_of(process.pid)
            drivers += bench.signal_at_a_moment(process, signal.SIGKILL)
        bench.finish()
        for pid in still_running(processes, within=PATIENCE):
            # (Two agents of Ray outlive it for a minute.)
            bench.problems.append(f"a worker has outlived its run: process {pid}")
        if not killed_workers:
            bench.problems.append("no worker was killed")
        # What a worker has in flight, and what waits there.
        waiting = largest_block(torture.workers, torture.concurrency)
        of_a_worker = torture.concurrency + waiting
        allowed = drivers * (torture.workers * of_a_worker + GROUP)
        allowed += killed_workers * of_a_worker
        return bench.measured(
            "workers", kills=drivers + killed_workers, allowed=allowed, began=began
        )


def terminated(torture: Torture) -> Measured:
    """SIGTERM: nothing is cut off, so nothing is paid twice."""
    began = time.monotonic()
    with _bench(torture) as bench:
        kills = 0
        for _kill in range(torture.kills):
            process = bench.start()
            kills += bench.signal_at_a_moment(process, signal.SIGTERM)
            # While it starts, the signal may end it as it ends every program.
            if process.returncode not in (0, 130, -signal.SIGTERM):
                bench.problems.append(f"SIGTERM: exit code {process.returncode}: {bench.said()}")
        bench.finish()
        return bench.measured("terminated", kills=kills, allowed=0, began=began)


def badly_served(torture: Torture, *, split: bool = False) -> Measured:
    """A fifth of the answers are failures, and it is killed; failed requests are sent again."""
    began = time.monotonic()
    faults = dict.fromkeys(("rate_limited", "server_error", "reset", "truncated"), 0.05)
    with _bench(torture, faults=faults) as bench:
        bench.errors = torture.folder / "errors.jsonl" if split else None
        kills = 0
        for kill in range(torture.kills):
            process = bench.start(retry_failed=kill % 2 == 1)
            kills += bench.signal_at_a_moment(process, signal.SIGKILL)
        bench.finish(retry_failed=True)
        if bench.server.counts()["failed"] < torture.requests // 10:
            bench.problems.append("the server has failed too little")
        if bench.errors is not None and bench.errors.stat().st_size:
            bench.problems.append("there are failures left in the error file")
        allowed = kills * (torture.concurrency + GROUP)
        name = "badly served, split" if split else "badly served"
        return bench.measured(name, kills=kills, allowed=allowed, began=began)


def badly_served_and_split(torture: Torture) -> Measured:
    """The same with a file for the failures."""
    return badly_served(torture, split=True)


def in_trouble(torture: Torture) -> Measured:
    """SIGKILL while the server is overloaded, hangs, goes away or refuses the key.

    The Router is as it comes, with two deployments. The same command resumes, the trouble ends, and
    each request has its answer, without one that has failed.
    """
    from parallel_core.demo_server import Trouble

    kinds: list[Callable[[int], Trouble]] = [
        lambda after: Trouble("away", after=after, seconds=1.0),
        lambda after: Trouble("bad_key", after=after),
        lambda after: Trouble("overloaded", after=after),
        lambda after: Trouble("hang", after=after, share=0.5),
        lambda after: Trouble("unavailable", after=after, share=0.5),
        lambda after: Trouble("gemini_quota", after=after, share=0.5, retry_after=1.0),
        lambda after: Trouble("reset", after=after, share=0.5),
        lambda after: Trouble("quota", after=after),
    ]
    began = time.monotonic()
    with _bench(torture) as bench:
        bench.configure(["one", "other"])
        kills = 0
        share = torture.requests // (torture.kills + 1)
        known = set[str]()
        for number in range(torture.kills):
            trouble = kinds[number % len(kinds)](bench.random.randint(1, share))
            failed = bench.server.counts()["failed"]
            bench.server.set_trouble(trouble)
            process = bench.start()
            if trouble.kind in ("bad_key", "quota"):
                if process.wait(PATIENCE) != 1:
                    bench.problems.append(f"{trouble.kind}: exit code {process.returncode}")
            else:
                _until(lambda failed=failed: bench.server.counts()["failed"] > failed, process)  # type: ignore[misc]
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(bench.random.uniform(0, 0.3))
                kills += process.poll() is None
                process.kill()
                process.wait(PATIENCE)
            known = _check_so_far(bench, known, trouble.kind)
        bench.server.set_trouble()
        bench.server.go_away(0.5)  # it is not there yet when the last run begins
        bench.finish()
        allowed = kills * (torture.concurrency + GROUP)
        return bench.measured("in trouble", kills=kills, allowed=allowed, began=began)


def _check_so_far(bench: _Bench, known: set[str], kind: str) -> set[str]:
    """Each request has one answer or none, and none that was there is gone; return their ids."""
    if not bench.output.exists():
        return known
    ids = _ids_in(bench.output)
    if len(set(ids)) < len(ids):
        bench.problems.append(f"{kind}: {len(ids) - len(set(ids))} ids are there more than once")
    if lost := known - set(ids):
        bench.problems.append(f"{kind}: {len(lost)} answers are lost")
    lines = bench.output.read_bytes().splitlines(keepends=True)
    results = [json.loads(line) for line in lines if line.endswith(b"\n")]
    if failed := [result for result in results if _reply_of(result) is None]:
        bench.problems.append(f"{kind}: {len(failed)} requests have failed: {failed[0]}")
    return set(ids)


def killed_while_sorting(torture: Torture) -> Measured:
    """SIGKILL while the output is brought into the order of the input: nothing is paid for."""
    began = time.monotonic()
    with _bench(torture) as bench:
        bench.finish()
        unsorted = bench.output.read_bytes()
        copy = torture.folder / "copy"
        copy.mkdir()
        for path in torture.folder.glob("answers.*"):
            shutil.copy(path, copy)
        bench.finish(sort=True)
        in_order = bench.output.read_bytes()
        if _ids_in(bench.output) != [custom_id_of(number) for number in range(torture.requests)]:
            bench.problems.append("it is not in the order of the input")
        kills = 0
        for kill in range(torture.kills):
            for path in copy.iterdir():
                shutil.copy(path, torture.folder)
            if torture.light:
                # From before the first line to after the last one.
                line = kill * torture.requests // max(torture.kills - 1, 1)
                process = bench.start(sort=True, stops_at=line)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            else:
                process = bench.start(sort=True)
                # What the sorted lines are written to, before it takes the place of the output.
                _until(bench.output.with_name(".answers.jsonl.new").exists, process, poll=0.0)
                if kill % 2:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(bench.random.uniform(0.0, 0.01))
            kills += process.poll() is None
            process.kill()
            process.wait(PATIENCE)
            if bench.output.read_bytes() not in (unsorted, in_order):
                bench.problems.append("it is neither sorted nor as it was")
        bench.finish(sort=True)
        if bench.output.read_bytes() != in_order:
            bench.problems.append("it is not sorted in the end")
        return bench.measured("killed while sorting", kills=kills, allowed=0, began=began)


def restarted_server(torture: Torture) -> Measured:
    """The server goes and comes back at the same address, while the run goes on."""
    began = time.monotonic()
    with _bench(torture) as bench:
        restarts = 0
        process = bench.start()
        share = torture.requests // (torture.kills + 1)
        for _restart in range(torture.kills):
            wanted = bench.server.accepted + bench.random.randint(1, share)
            _until(lambda wanted=wanted: bench.server.accepted >= wanted, process)  # type: ignore[misc]
            restarts += process.poll() is None
            bench.server.restart()
        if process.wait(PATIENCE) not in (0, 1):
            bench.problems.append(f"exit code {process.returncode}: {bench.said()}")
        bench.finish(retry_failed=True)
        # Answers that were on their way to us when the connections were cut.
        allowed = restarts * torture.concurrency
        return bench.measured("restarted server", kills=restarts, allowed=allowed, began=began)


def full_disk(torture: Torture) -> Measured:
    """A file system that is full, then larger, and full once more. Needs to be root."""
    began = time.monotonic()
    folder = torture.folder / "disk"
    output = folder / "answers.jsonl"
    with small_file_system(folder) as resize, _bench(torture, output=output) as bench:
        failures = 0
        # Of an output of about 450 bytes a request, and statistics of another 150.
        for size in (200, 200, 400):
            resize(size * torture.requests)
            failures += _run_out_of_disk(bench)
        resize(64_000_000)
        _finish_exactly(bench)
        allowed = failures * torture.concurrency
        return bench.measured("full disk", kills=failures, allowed=allowed, began=began)


def file_too_large(torture: Torture) -> Measured:
    """A limit of the size of files, as a quota: the rescue file still has room."""
    began = time.monotonic()
    with _bench(torture) as bench:
        failures = 0
        for limit in (100, 250):
            failures += _run_out_of_disk(bench, limit * torture.requests)
        _finish_exactly(bench)
        allowed = failures * torture.concurrency
        return bench.measured("file too large", kills=failures, allowed=allowed, began=began)


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _rescued(bench: _Bench) -> list[Path]:
    places = [*bench.output.parent.glob("*.rescue.jsonl")]
    return places + [*bench.torture.folder.glob("*.rescue.jsonl")] * (
        bench.output.parent != bench.torture.folder
    )


def _run_out_of_disk(bench: _Bench, file_size: int | None = None) -> bool:
    """A run that cannot write all it has; whether it had begun."""
    before = bench.server.accepted
    known = set(_ids_in(bench.output))
    known.update(custom_id for place in _rescued(bench) for custom_id in _ids_in(place))
    process = bench.start()
    if file_size is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_size, file_size))
    code = process.wait(PATIENCE)
    made = bench.server.accepted - before
    said = " ".join(bench.said().split())
    if code not in (_NOT_WRITTEN, 2) or (code == 2 and made):
        bench.problems.append(f"a full disk: exit code {code}: {said}")
    kept = set(_ids_in(bench.output))
    for place in _rescued(bench):
        kept.update(_ids_in(place))
        if made and str(place) not in said:
            bench.problems.append(f"{place.name} is not told: {said}")
    if made and not _rescued(bench):
        bench.problems.append(f"nothing was rescued: {said}")
    if lost := known - kept:
        bench.problems.append(f"{len(lost)} results that were there are lost")
    if made > len(kept - known) + bench.torture.concurrency:
        bench.problems.append(f"{made} calls, of which {len(kept - known)} are kept")
    return made > 0


def _finish_exactly(bench: _Bench) -> None:
    """With room for all: what was rescued is not sent again."""
    kept = set(_ids_in(bench.output))
    kept.update(custom_id for place in _rescued(bench) for custom_id in _ids_in(place))
    before = bench.server.accepted
    bench.finish()
    made = bench.server.accepted - before
    if made != bench.torture.requests - len(kept):
        bench.problems.append(f"{made} calls more, though {len(kept)} results were kept")
    if left := _rescued(bench):
        bench.problems.append(f"{left[0].name} is still there")


class NotAllowedError(Exception):
    """This user cannot mount a file system."""


@contextlib.contextmanager
def small_file_system(folder: Path) -> Generator[Callable[[int], None]]:
    """A file system in memory, and what changes its size in bytes.

    Raises NotAllowedError.
    """
    folder.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        subprocess.run(command, capture_output=True, check=True)

    try:
        mount("size=64k")
    except (OSError, subprocess.CalledProcessError):
        raise NotAllowedError from None
    try:
        yield lambda size: mount(f"remount,size={size}")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


SCENARIOS: dict[str, Callable[[Torture], Measured]] = {
    "killed": killed,
    "terminated": terminated,
    "killed-while-sorting": killed_while_sorting,
    "badly-served": badly_served,
    "badly-served-and-split": badly_served_and_split,
    "restarted-server": restarted_server,
    "in-trouble": in_trouble,
    "full-disk": full_disk,
    "file-too-large": file_too_large,
    "workers": workers,
}


# --- a run without litellm, in a process of its own ---


class _HttpError(Exception):
    def __init__(self, status_code: int, body: str) -> None:
        super().__init__(body)
        self.status_code = status_code


class _LightCalls:
    """Makes calls without litellm, over a session of the loop in which it is first called."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: Any = None

    async def __call__(self, *, model: str, messages: Any, extra_body: Any, **_: Any) -> Any:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession()
        body = {"model": model, "messages": messages, **extra_body}
        async with self._session.post(f"{self._url}/chat/completions", json=body) as response:
            if response.status != 200:
                raise _HttpError(response.status, await response.text())
            return await response.json()

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


async def _light_run(options: argparse.Namespace) -> int:
    from parallel_core.errors import JournalError
    from parallel_core.run_file import RunStop, run_file

    stop = RunStop()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.request)
    async with contextlib.AsyncExitStack() as stack:
        router: Any
        concurrency = options.concurrency
        if options.workers:
            from parallel_core.ray_engine import open_ray_router

            calls = functools.partial(_LightCalls, options.url)
            router = await stack.enter_async_context(
                open_ray_router(calls, workers=options.workers, concurrency=concurrency)
            )
            concurrency = router.slots
        else:
            router = await stack.enter_async_context(contextlib.aclosing(_LightCalls(options.url)))
        try:
            summary = await run_file(
                router,
                options.source,
                options.output,
                concurrency=concurrency,
                error_file=options.error_file,
                retry_failed=options.retry_failed,
                order=options.order,
                grace=60.0,
                stop=stop,
            )
        except JournalError as error:
            print(error, file=sys.stderr)
            return _NOT_WRITTEN
    if stop.requests and summary.unfinished:
        return 130
    return 0 if summary.ok else 1


def _sabotage(how: str) -> None:
    """Break a promise on purpose."""
    from parallel_core import _journal_files, _journal_rescue, journal

    if how == "forgets":
        journal.Journal.is_finished = lambda self, custom_id: False  # type: ignore[method-assign]
    elif how == "rescues-nothing":
        _journal_rescue.Rescue.write = lambda self, blocks: None  # type: ignore[method-assign]
    elif how == "writes-torn":
        write = _journal_files.LockedFile.write
        _journal_files.LockedFile.write = (  # type: ignore[method-assign]
            lambda self, data: write(self, data.replace(b'"custom_id"', b'"custom_id', 1))
        )


def _stop_at(line: int) -> None:
    """Stop this process when it sorts and comes to this line, so that it is killed right there."""
    from parallel_core import _journal_files

    def watched(lines: Iterable[bytes]) -> Iterator[bytes]:
        for number, each in enumerate(itertools.chain(lines, [b""])):
            if number == line:
                os.kill(os.getpid(), signal.SIGSTOP)
            yield each

    replace = _journal_files.LockedFile.replace
    _journal_files.LockedFile.replace = (  # type: ignore[method-assign]
        lambda self, blocks: replace(self, watched(blocks))
    )
    _journal_files.BLOCK = 4096  # what comes before it is on disk


def _light_main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    for name in ("url", "source", "output", "sabotage"):
        parser.add_argument(name)
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--error-file")
    parser.add_argument("--retry-failed", action="store_true")
    parser.add_argument("--order", default="completion")
    parser.add_argument("--stops-at", type=int)
    options = parser.parse_args(arguments)
    _sabotage(options.sabotage)
    if options.stops_at is not None:
        _stop_at(options.stops_at)
    return asyncio.run(_light_run(options))


# --- the command ---


def _table(rows: list[Measured | str]) -> str:
    head = ("scenario", "kills", "accepted", "paid", "paid twice", "allowed", "seconds", "")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        if isinstance(row, str):
            lines.append((row, *[""] * 6, "skipped: mounting is not allowed"))
            continue
        numbers = (row.kills, row.accepted, row.paid, row.paid_twice, row.allowed)
        verdict = "kept" if row.kept else "BROKEN"
        lines.append((row.scenario, *map(str, numbers), f"{row.seconds:.1f}", verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        f"{line[0]:<{widths[0]}}  "
        + "  ".join(f"{text:>{width}}" for text, width in zip(line[1:-1], widths[1:], strict=False))
        + f"  {line[-1]}"
        for line in lines
    )


def main() -> int:
    """Torture, and tell."""
    if sys.argv[1:2] == ["--light-run"]:
        return _light_main(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=3000, help="of each scenario")
    parser.add_argument("--kills", type=int, default=10, help="of each scenario")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the faults")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="repeat for more")
    parser.add_argument("--light", action="store_true", help="calls without litellm")
    parser.add_argument("--smoke", action="store_true", help="does it run? half a minute of it")
    options = parser.parse_args()
    if options.smoke:
        options.requests, options.kills = 300, 2
        options.scenario = options.scenario or ["killed", "file-too-large"]
    print(f"{options.requests} requests in each scenario, seed {options.seed}", flush=True)
    rows: list[Measured | str] = []
    for name in options.scenario or SCENARIOS:
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            torture = Torture(
                folder=Path(folder),
                light=options.light,
                requests=options.requests,
                kills=options.kills,
                seed=options.seed,
                concurrency=options.concurrency,
            )
            try:
                row = SCENARIOS[name](torture)
            except NotAllowedError:
                rows.append(name)
                continue
        rows.append(row)
        print(f"{name}: {row.seconds:.1f} s", *row.problems[:20], sep="\n    ", flush=True)
    print(_table(rows))
    return 0 if all(isinstance(row, str) or row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
