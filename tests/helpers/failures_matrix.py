"""Each kind of failure on each way to send, through a Router as it comes, over HTTP.

A cell of the matrix is a way, a concurrency and a number of deployments. All models of a cell have
their trouble at once, and all cells of a way run at the same time; the tests check each model
afterwards. A way has a file of its own, so that ways can run in parallel.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import anyio
import pytest

import parallel_core
from helpers.forked_processes import ForkedProcesses
from helpers.hosts import Host
from helpers.routers import run_with_routers
from helpers.thorough import thorough_but
from parallel_core import AdaptiveConcurrency, classify_failure
from parallel_core.demo_server import DemoServerSettings, DemoServerThread, Trouble

IN_FLIGHT = {"fixed": 8, "auto": 20}  # calls, at most
SHORTEST_TIMEOUT = 5.0  # seconds, of the deployments of a model that hangs
DOOMED = 30  # requests of a model whose account is at fault


@dataclass(frozen=True)
class Case:
    """What happens to a model, and what must become of its requests.

    Attributes:
        kind: of the failures that are left.
        failures: requests that fail.
        resent: attempts beyond one for each request.
    """

    trouble: Trouble | None
    requests: int = 6
    kind: str | None = None
    failures: int = 0
    resent: int = 0
    deployment: Mapping[str, Any] = field(default_factory=dict[str, Any])


CASES: dict[str, Case] = {
    "calm": Case(None),
    # It passes.
    "told": Case(Trouble("rate_limited", count=3, retry_after=0.3), resent=3),
    "gemini": Case(Trouble("gemini_quota", count=3, retry_after=0.3), resent=3),
    "anthropic": Case(Trouble("overloaded", count=3), resent=3),
    "page": Case(Trouble("bad_gateway", count=3), resent=3),
    "broken": Case(Trouble("server_error", count=1), resent=1),
    "reset": Case(Trouble("reset", count=2), resent=2),
    "slow": Case(Trouble("hang", count=1), resent=1, deployment={"timeout": SHORTEST_TIMEOUT}),
    "away": Case(Trouble("away", after=2, seconds=1.0)),  # on a server of its own
    # It is the request's own fault, or the answer's.
    "empty": Case(Trouble("empty", count=1), kind="answer", failures=1),
    "garbage": Case(Trouble("invalid_json", count=1), kind="answer", failures=1),
    "large": Case(Trouble("request_too_large", count=1), kind="request", failures=1),
    "long": Case(Trouble("context_length", count=1), kind="request", failures=1),
    "refused": Case(Trouble("content_refused", count=1), kind="request", failures=1),
    # It is everybody's.
    **{
        kind: Case(Trouble(kind), DOOMED, kind="account", failures=DOOMED)
        for kind in ("bad_key", "forbidden", "unknown_model", "quota", "no_credit")
    },
    # ... of one deployment: the Router is all but certain to choose it for one of so many.
    "one_key": Case(Trouble("bad_key", key="sk-one_key-0"), 40),
}
PASSING = [name for name, case in CASES.items() if case.kind is None]
FAILING = [name for name, case in CASES.items() if case.kind in ("answer", "request")]
ACCOUNT = [name for name, case in CASES.items() if case.kind == "account"]

Concurrency = Literal["fixed", "auto"]
Send: TypeAlias = "Callable[[list[Cell], Path, ForkedProcesses], None]"

CELLS: list[tuple[Concurrency, int]] = [
    (concurrency, deployments) for concurrency in ("fixed", "auto") for deployments in (1, 2, 3)
]


@dataclass
class Cell:
    """A Router, its servers, and what has come of the requests."""

    concurrency: Concurrency
    deployments: int
    servers: dict[str, DemoServerThread]
    kinds: dict[str, list[str | None]] = field(
        default_factory=lambda: defaultdict[str, list[str | None]](list)
    )
    not_sent: Counter[str] = field(default_factory=Counter[str])
    written: Counter[str] = field(default_factory=Counter[str])  # lines, by model
    exit_code: int | None = None
    said: str = ""

    @property
    def cases(self) -> dict[str, Case]:
        """Cases of this cell: a bad key of one deployment needs a second deployment."""
        return {
            name: case for name, case in CASES.items() if name != "one_key" or self.deployments > 1
        }

    def model_list(self) -> list[dict[str, Any]]:
        def deployment(model: str, number: int) -> dict[str, Any]:
            server = self.servers.get(model, self.servers["all"])
            return {
                "model": f"openai/{model}",
                "api_base": server.url,
                # litellm keeps 200 clients, and leaves those open that it drops.
                "api_key": f"sk-one_key-{number}" if model == "one_key" else f"sk-{number}",
                **CASES[model].deployment,
            }

        return [
            {"model_name": model, "litellm_params": deployment(model, number)}
            for model in self.cases
            for number in range(self.deployments)
        ]

    def requests(self) -> Iterator[dict[str, Any]]:
        for model, case in self.cases.items():
            for number in range(case.requests):
                message = {"role": "user", "content": f"{model} {number}"}
                yield {"model": model, "messages": [message]}

    def attempts(self) -> Counter[str]:
        """Requests that the servers got, by model."""
        kept = (one for server in self.servers.values() for one in server.requests())
        return Counter(one.body["model"] for one in kept)


def concurrency_of(cell: Cell) -> int | AdaptiveConcurrency:
    at_most = IN_FLIGHT[cell.concurrency]
    return at_most if cell.concurrency == "fixed" else AdaptiveConcurrency(maximum=at_most)


def send_by_library(host: Host, cells: list[Cell]) -> None:
    async def send(cell: Cell) -> None:
        from litellm import Router

        results = await parallel_core.parallel_acompletions(
            Router(model_list=cell.model_list()),
            list(cell.requests()),
            concurrency=concurrency_of(cell),
        )
        assert len(results) == len(list(cell.requests()))
        for result in results:
            model, error = result.request.model, result.exception
            cell.kinds[model].append(None if error is None else classify_failure(error).kind)
            cell.not_sent[model] += isinstance(error, parallel_core.NotSentError)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for cell in cells:
                tasks.start_soon(send, cell)

    run_with_routers(host, main)


def send_by_command(
    cells: list[Cell], folder: Path, commands: ForkedProcesses, *options: str
) -> None:
    started = [start_run(commands, cell, folder / str(n), options) for n, cell in enumerate(cells)]
    for number, (cell, run) in enumerate(zip(cells, started, strict=True)):
        cell.exit_code = run.wait()
        cell.said = run.stdout
        assert "Traceback" not in run.stderr
        for line in (folder / str(number) / "out.jsonl").read_text().splitlines():
            result = json.loads(line)
            model = result["custom_id"].split()[0]
            cell.written[model] += 1
            answered = result["error"] is None and result["response"]["status_code"] == 200
            cell.kinds[model].append(None if answered else "failure")


def start_run(commands: ForkedProcesses, cell: Cell, folder: Path, options: tuple[str, ...]) -> Any:
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps({"model_list": cell.model_list()}))
    with (folder / "in.jsonl").open("w") as lines:
        for body in cell.requests():
            lines.write(
                json.dumps({"custom_id": body["messages"][0]["content"], "body": body}) + "\n"
            )
    return commands.start(
        [
            *("run", "in.jsonl", "-o", "out.jsonl", "--config=config.yaml"),
            f"--concurrency={IN_FLIGHT['fixed'] if cell.concurrency == 'fixed' else 'auto'}",
            *options,
        ],
        folder=folder,
    )


@contextlib.contextmanager
def ran(
    send: Send, which: list[tuple[Concurrency, int]], folder: Path, commands: ForkedProcesses
) -> Iterator[dict[tuple[Concurrency, int], Cell]]:
    with contextlib.ExitStack() as stack:
        cells = [
            Cell(
                concurrency,
                deployments,
                {name: stack.enter_context(server) for name, server in servers()},
            )
            for concurrency, deployments in which
        ]
        send(cells, folder, commands)
        yield {(cell.concurrency, cell.deployments): cell for cell in cells}


def servers() -> Iterator[tuple[str, DemoServerThread]]:
    """Make the server of a cell, and a second one, since a server goes away with all its models."""
    for name, models in (("all", [name for name in CASES if name != "away"]), ("away", ["away"])):
        trouble = [
            Trouble(**{**trouble.to_json(), "model": model})
            for model in models
            if (trouble := CASES[model].trouble)
        ]
        settings = DemoServerSettings(
            latency_median=0.0,
            keep_requests=2000,
            models=dict.fromkeys(models, 1.0),
            trouble=trouble,
        )
        yield name, DemoServerThread(settings)


class FailuresOfAWay:
    """Checks of each model. A subclass says how the requests are sent.

    Attributes:
        ahead: factor by which requests on their way may exceed those in flight.
        daily: the cells that `make test` takes: a call through litellm costs 15 ms of CPU.
    """

    ahead: ClassVar = 1
    daily: ClassVar[list[tuple[Concurrency, int]]] = []

    @staticmethod
    def send(cells: list[Cell], folder: Path, commands: ForkedProcesses) -> None:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def daily_cells(
        cls, tmp_path_factory: pytest.TempPathFactory, commands: ForkedProcesses
    ) -> Iterator[Any]:
        with ran(cls.send, cls.daily, tmp_path_factory.mktemp("daily"), commands) as cells:
            yield cells

    @pytest.fixture(scope="class")
    @classmethod
    def other_cells(
        cls, tmp_path_factory: pytest.TempPathFactory, commands: ForkedProcesses
    ) -> Iterator[Any]:
        others = [cell for cell in CELLS if cell not in cls.daily]
        with ran(cls.send, others, tmp_path_factory.mktemp("other"), commands) as cells:
            yield cells

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "cell" in metafunc.fixturenames:
            cells = thorough_but(self.daily, CELLS, lambda cell: "-".join(map(str, cell)))
            metafunc.parametrize("cell", cells, indirect=True)

    @pytest.fixture
    def cell(self, request: pytest.FixtureRequest) -> Any:
        daily = request.param in self.daily
        return request.getfixturevalue("daily_cells" if daily else "other_cells")[request.param]

    @pytest.mark.parametrize("model", PASSING)
    def test_what_passes_is_answered(self, model: str, cell: Cell) -> None:
        if model not in cell.cases:
            pytest.skip("of no interest with one deployment")
        case = CASES[model]
        assert cell.kinds[model] == [None] * case.requests
        attempts = cell.attempts()[model]
        if model in ("away", "one_key"):  # what was in flight is sent again
            assert case.requests <= attempts <= 2 * case.requests
        else:
            assert attempts == case.requests + case.resent

    @pytest.mark.parametrize("model", FAILING)
    def test_a_fault_of_one_request_is_its_failure_at_once(self, model: str, cell: Cell) -> None:
        case = CASES[model]
        kind = "failure" if cell.exit_code is not None else case.kind
        expected = {None: case.requests - case.failures, kind: case.failures}
        assert Counter(cell.kinds[model]) == expected
        assert cell.attempts()[model] == case.requests

    @pytest.mark.parametrize("model", ACCOUNT)
    def test_a_fault_of_the_account_stops_its_model(self, model: str, cell: Cell) -> None:
        attempts = cell.attempts()[model]
        # Each that is in flight, and three in a row, may try every deployment.
        in_flight = IN_FLIGHT[cell.concurrency] * self.ahead
        if cell.exit_code is not None and cell.concurrency == "auto":
            in_flight = DOOMED  # the command has no maximum to set
        assert 3 <= attempts <= (in_flight + 3) * cell.deployments
        if cell.exit_code is None:
            assert cell.kinds[model] == ["account"] * DOOMED
            assert cell.not_sent[model] >= DOOMED - in_flight - 3
        else:
            assert cell.written[model] == 0


class FailuresOfARun(FailuresOfAWay):
    """The same checks for a run of a file, and for what it prints."""

    def test_a_run_says_what_has_stopped_it(self, cell: Cell) -> None:
        assert cell.exit_code == 1
        left = len(ACCOUNT) * DOOMED
        assert f"{left:,}" in cell.said
        for model in ACCOUNT:
            assert model in cell.said
        if cell.deployments > 1:
            assert "skipped       the key of deployment openai/one_key" in cell.said
