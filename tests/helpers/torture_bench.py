"""Files, server and processes of a run that is killed or starved, and the check of its output."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from helpers.forked_processes import ForkedProcess, ForkedProcesses
from helpers.process_trees import workers_of
from helpers.torture_output import examine, has_content, write_requests
from parallel_core.demo_server import DemoServerSettings, DemoServerThread
from parallel_core.journal.run_paths import RunPaths

GROUP = 32  # results that the journal writes at once

PATIENCE = 120.0  # seconds for what must come

_POLL = 0.004  # seconds between two looks at the server or at a process

NOT_WRITTEN = 3
STOPPED = "stopped"  # what a light run says when it has come to where it is to be killed
_LIGHT_RUN = Path(__file__).resolve().parents[1] / "run" / "scripts" / "light_run.py"

_ROUNDS = 40  # of trying failed requests again: far more than it takes

Sabotage: TypeAlias = Literal["", "forgets", "rescues-nothing", "writes-torn"]


@dataclass(frozen=True)
class Torture:
    """One run of a file, and the trouble that it gets.

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
        commands: forks the runs; with None each run is a new Python.
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
    commands: ForkedProcesses | None = None


@dataclass(frozen=True)
class Measured:
    """The outcome of a scenario.

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
        """Return True if every promise was kept."""
        return not self.problems and 0 <= self.paid_twice <= self.allowed


class RunProcess(Protocol):
    """The process of a run, with the methods of ``subprocess.Popen`` that are needed."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | Any: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float) -> int: ...
    def send_signal(self, number: int) -> None: ...
    def kill(self) -> None: ...


class _Forked:
    """The same for a forked process."""

    def __init__(self, process: ForkedProcess) -> None:
        self.pid = process.pid
        self.returncode: int | None = None
        self._process = process

    def poll(self) -> int | None:
        if self.returncode is None and self._process.ends_within(0.0):
            self.returncode = self._process.wait()
        return self.returncode

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            if not self._process.ends_within(timeout):
                raise subprocess.TimeoutExpired("light run", timeout)
            self.returncode = self._process.wait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                self._process.send_signal(signal.Signals(number))

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@dataclass
class Server:
    """A demo server that may be restarted at the same address."""

    settings: dict[str, Any]
    port: int = 0
    _before: Counter[str] = field(default_factory=Counter[str])
    _thread: Any = None

    def start(self) -> None:
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


class TortureBench:
    """The files of a scenario, its server and its processes."""

    def __init__(self, torture: Torture, server: Server, output: Path) -> None:
        self.torture = torture
        self.server = server
        self.output = output
        self.errors: Path | None = None
        self.input = torture.folder / "requests.jsonl"
        self.random = random.Random(torture.seed)
        self.problems: list[str] = []
        self.environment: dict[str, str] = {}
        self._log = torture.folder / "output.log"
        self._said: Callable[[], str] = str
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

    def _arguments(
        self, *, retry_failed: bool, sort: bool, stops_at: int | None, file_size: int | None
    ) -> list[str]:
        if self.torture.light:
            command = [self.server.url, str(self.input), str(self.output), self.torture.sabotage]
            command += [] if stops_at is None else [f"--stops-at={stops_at}"]
            command += [] if file_size is None else [f"--file-size={file_size}"]
        else:
            command = ["run", str(self.input), "-o", str(self.output)]
            command += ["--config", str(self._config), "--grace=60", "--yes"]
        command += [f"--concurrency={self.torture.concurrency}"]
        if self.torture.workers:
            command += [f"--workers={self.torture.workers}"]
        if self.errors is not None:
            command += [f"--error-file={self.errors}"]
        command += ["--retry-failed"] if retry_failed else []
        return command + (["--order=input"] if sort else [])

    def start(
        self,
        *,
        retry_failed: bool = False,
        sort: bool = False,
        stops_at: int | None = None,
        file_size: int | None = None,
    ) -> RunProcess:
        """Start a run.

        Args:
            retry_failed: whether failed requests are sent again.
            sort: whether the output is brought into the order of the input.
            stops_at: the line at which a light run stops while it sorts.
            file_size: what no file of the run may exceed.
        """
        torture = self.torture
        arguments = self._arguments(
            retry_failed=retry_failed, sort=sort, stops_at=stops_at, file_size=file_size
        )
        variables = {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "TMPDIR": str(torture.folder),
            **self.environment,
        }
        if torture.commands is not None:
            started = torture.commands.start(
                arguments,
                folder=torture.folder,
                script=_LIGHT_RUN if torture.light else None,
                environment=variables,
            )
            self._said = lambda: started.output
            return _Forked(started)
        program = [str(_LIGHT_RUN)] if torture.light else ["-m", "parallel_core.cli"]
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **variables},
                cwd=torture.folder,
            )
        if file_size is not None and not torture.light:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_size, file_size))
        self._said = functools.partial(self._log.read_text, errors="replace")
        return process

    def said(self) -> str:
        """Output of the last process."""
        return self._said()

    def signal_at_a_moment(self, process: RunProcess, number: int) -> bool:
        """Send a signal after some more requests; return whether the run still ran."""
        self._wait_for_a_moment(process)
        hit = process.poll() is None
        process.send_signal(number)
        process.wait(PATIENCE)
        return hit

    def kill_a_worker_at_a_moment(self, process: RunProcess) -> bool:
        """Kill a worker after some more requests; return whether there was one."""
        self._wait_for_a_moment(process)
        workers = workers_of(process.pid)
        if not workers or process.poll() is not None:
            return False
        os.kill(self.random.choice(workers), signal.SIGKILL)
        return True

    def _wait_for_a_moment(self, process: RunProcess) -> None:
        moments = self.torture.kills * (2 if self.torture.workers else 1)
        share = self.torture.requests // (moments + 1)
        wanted = self.server.accepted + self.random.randint(0, share)
        manifest = RunPaths.of(self.output).manifest
        # Before anything is written, a broken promise is none yet.
        output = self.output if self.torture.sabotage else manifest
        until(lambda: has_content(output) and self.server.accepted >= wanted, process)
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
def torture_bench(
    torture: Torture, *, output: Path | None = None, faults: dict[str, float] | None = None
) -> Generator[TortureBench]:
    settings = {"seed": torture.seed, "latency_median": torture.latency, "retry_after": 0.0}
    server = Server({**settings, **(faults or {})})
    server.start()
    try:
        yield TortureBench(torture, server, output or torture.folder / "answers.jsonl")
    finally:
        server.stop()


def until(condition: Callable[[], bool], process: RunProcess, *, poll: float = _POLL) -> None:
    """Wait until something holds, or the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it never came to that")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(poll)
            return


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
