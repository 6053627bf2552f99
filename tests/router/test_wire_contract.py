"""What is written reaches the provider, and what it answers is written down, member by member.

A real Router with its default retries and cooldowns, over HTTP, on each way that a request can
take. docs/reference/translation.md lists what litellm changes on the way; the list is read here.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.hosts import HOSTS, Host
from helpers.ray_routers import DefaultRouter
from helpers.ray_runtime import IGNORED_WARNINGS, running_ray
from helpers.routers import run_with_routers
from helpers.wire_cases import cases, name_of
from parallel_core import cli, parallel_acompletions, ray_engine
from parallel_core.config import Redactor
from parallel_core.demo_server import DemoServerSettings, DemoServerThread, RecordedRequest
from parallel_core.files.batch_output import parse_output_line, result_line

pytestmark = [pytest.mark.filterwarnings(one) for one in IGNORED_WARNINGS]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reference" / "translation.md"
MODELS = ("fast", "gpt-4o-mini", "gpt-5-mini")
CASES = cases()
# A file is UTF-8, in which there is no half of a character: such a line is refused at the check.
# What litellm refuses there it sends again twice, after a while: once is enough.
NOT_EVERYWHERE = {"half-a-character"}
CONCURRENCY = 4
ASYNCIO, TRIO = (
    next(host for host in HOSTS if host.library == library) for library in ("asyncio", "trio")
)


# --- the ways ---


@dataclass
class Outcome:
    """What has become of a request.

    Attributes:
        arrived: the bodies that the server got; more than one where it was sent again.
        answer: what the server answered.
        written: what is written down of it.
        ok: whether it is an answer.
        code: of the failure, and what it says.
    """

    arrived: list[Any]
    answer: Any
    written: Any
    ok: bool
    code: str | None
    message: str | None


Send = Callable[[DemoServerThread, Path], dict[str, bytes]]


def by_library(host: Host, *, stream: bool) -> Send:
    def send(server: DemoServerThread, _: Path) -> dict[str, bytes]:
        lines: dict[str, bytes] = {}

        async def main() -> None:
            router = DefaultRouter(server.url, MODELS)()
            await send_all(router, parallel_acompletions, lines, stream=stream)

        run_with_routers(host, main)
        return lines

    return send


def by_ray(server: DemoServerThread, _: Path) -> dict[str, bytes]:
    lines: dict[str, bytes] = {}

    async def main() -> None:
        routers = DefaultRouter(server.url, MODELS)
        async with ray_engine.open_ray_router(
            routers, workers=1, concurrency=CONCURRENCY
        ) as router:
            await send_all(router, parallel_acompletions, lines, stream=False)
            await send_all(router, parallel_acompletions, lines, stream=True)

    with running_ray(cpus=2):
        ASYNCIO.run(main)
    return lines


async def send_all(router: Any, send: Any, lines: dict[str, bytes], *, stream: bool) -> None:
    bodies = copy.deepcopy(CASES)
    if stream:
        bodies = {
            name: {**body, "stream": True}
            for name, body in bodies.items()
            if name not in NOT_EVERYWHERE
        }
    before = copy.deepcopy(bodies)
    requests = list(bodies.values())
    results = await send(router, requests, preserve_order=True, concurrency=CONCURRENCY)
    assert bodies == before  # what the user has is the user's
    for name, result in zip(bodies, results, strict=True):
        full_name = f"{name}/stream" if stream else name
        lines[full_name] = result_line(full_name, result, Redactor())


def by_command(server: DemoServerThread, folder: Path) -> dict[str, bytes]:
    deployments = [
        {"model_name": model, "litellm_params": DefaultRouter(server.url, MODELS).parameters(model)}
        for model in MODELS
    ]
    (folder / "config.yaml").write_text(json.dumps({"model_list": deployments}))
    with (folder / "in.jsonl").open("w", encoding="utf-8") as lines:
        for name, body in CASES.items():
            if name in NOT_EVERYWHERE:
                continue
            for custom_id, more in ((name, {}), (f"{name}/stream", {"stream": True})):
                line = {"custom_id": custom_id, "body": {**body, **more}}
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
    arguments = [str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl"), "--concurrency=4"]
    done = CliRunner().invoke(
        cli.app, ["run", *arguments, "--config", str(folder / "config.yaml"), "--yes"]
    )
    assert (folder / "out.jsonl").exists(), done.output
    lines_written = (folder / "out.jsonl").read_bytes().split(b"\n")[:-1]
    written = {json.loads(line)["custom_id"]: line for line in lines_written}
    assert len(written) == len(lines_written) == 2 * len(CASES.keys() - NOT_EVERYWHERE)
    return written


WAYS: dict[str, Send] = {
    "asyncio": by_library(ASYNCIO, stream=False),
    "trio": by_library(TRIO, stream=False),
    "streams": by_library(ASYNCIO, stream=True),
    "trio-streams": by_library(TRIO, stream=True),
    "command": by_command,
    "ray": by_ray,
}


# Plain answers from the command, in asyncio. Tests of streams and of trio routers have the others.
DAILY = {"command"}


@pytest.fixture(
    scope="module",
    params=[pytest.param(way, marks=[] if way in DAILY else pytest.mark.thorough) for way in WAYS],
)
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Outcome]:
    """All requests are sent at once on one way; the tests look at what has become of each."""
    if request.param == "ray":
        pytest.importorskip("ray")
    settings = DemoServerSettings(
        latency_median=0.0,
        time_to_first_token=0.0,
        chunk_gap=0.0,
        keep_requests=10 * len(CASES),
        models=dict.fromkeys(MODELS, 1.0),
    )
    with DemoServerThread(settings) as server:
        lines = WAYS[request.param](server, tmp_path_factory.mktemp(request.param))
        kept = server.requests()
    return {name: outcome_of(name, line, kept) for name, line in lines.items()}


def outcome_of(name: str, line: bytes, kept: list[RecordedRequest]) -> Outcome:
    plain_name, _, stream = name.partition("/")
    of_it = [
        one
        for one in kept
        if name_of(one.body) == plain_name and bool(one.body.get("stream")) is bool(stream)
    ]
    parsed = parse_output_line(line)
    written = None if parsed.body is None else json.loads(bytes(parsed.body))
    answer = of_it[-1].answer if of_it else None
    bodies = [one.body for one in of_it]
    failure = (parsed.error_code, parsed.error_message)
    return Outcome(bodies, answer, written, parsed.ok, *failure)


# --- the list of the document ---


@dataclass(frozen=True)
class Change:
    """A row: what a member of a request becomes, and when it does not.

    Attributes:
        path: names of members; ``*`` is any of the outermost ones. Lists are gone through.
        value: that it must have, as JSON; None for any.
        becomes: its value, as JSON; ``left out`` or ``refused``.
        unless: a path and a value that the whole must not have.
    """

    path: str
    value: str | None
    becomes: str
    unless: tuple[str, str | None] | None

    def apply(self, document: dict[str, Any]) -> bool:
        """Make the change; returns whether there was anything to change."""
        if self.unless is not None and _change(document, *self.unless, becomes=None):
            return False
        return _change(document, self.path, self.value, becomes=self.becomes)


def _change(document: Any, path: str, value: str | None, becomes: str | None) -> bool:
    if isinstance(document, list):
        found_in = [_change(item, path, value, becomes) for item in document]  # in all of them
        return any(found_in)
    if not isinstance(document, dict):
        return False
    name, _, rest = path.partition(".")
    found = False
    for member in [name] if name != "*" else list(document):
        if member not in document:
            continue
        if rest:
            found |= _change(document[member], rest, value, becomes)
        elif value is None or _fits(document[member], json.loads(value)):
            found = True
            if becomes == "left out":
                del document[member]
            elif becomes not in (None, "refused"):
                document[member] = json.loads(becomes)
    return found


def _fits(found: Any, wanted: Any) -> bool:
    # A text with an ellipsis is found anywhere.
    if isinstance(wanted, str) and wanted.startswith("…"):
        return wanted.strip("…") in json.dumps(found, ensure_ascii=False).encode(
            "utf-16", "surrogatepass"
        ).decode("utf-16", "surrogatepass")
    return type(found) is type(wanted) and found == wanted


def changes(heading: str) -> list[Change]:
    """The rows of the table under a heading."""
    section = DOCUMENT.read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    assert rows, heading
    found: list[Change] = []
    for written, becomes, unless in rows:
        path, value = _pair(written)
        quoted = re.match(r"`(.*?)`", becomes)
        found.append(
            Change(
                path,
                value,
                becomes if quoted is None else quoted[1],
                _pair(unless) if unless else None,
            )
        )
    return found


def _pair(cell: str) -> tuple[str, str | None]:
    quoted = re.match(r'`"([^"]+)"(?:: (.*?))?`', cell)
    assert quoted is not None, cell
    return quoted[1], quoted[2]


CHANGES = changes("What litellm changes")


def expected_of(body: Mapping[str, Any]) -> tuple[dict[str, Any], set[Change]]:
    """What arrives of a body, and the changes that were made."""
    expected = copy.deepcopy(dict(body))
    made = {change for change in CHANGES if change.apply(expected)}
    extra = expected.pop("extra_body", {})
    return {**expected, **extra}, made


# --- the contract ---


def test_every_request_arrives_as_it_was_written(outcomes: dict[str, Outcome]) -> None:
    wrong: dict[str, Any] = {}
    for full_name, outcome in outcomes.items():
        name, _, stream = full_name.partition("/")
        expected, made = expected_of(CASES[name])
        if any(change.becomes == "refused" for change in made):
            if outcome.arrived or outcome.ok:
                wrong[full_name] = "was not refused"
            continue
        if stream:
            expected |= {"stream": True, "stream_options": {"include_usage": True}}
        if len(outcome.arrived) != 1:
            wrong[full_name] = f"arrived {len(outcome.arrived)} times: {outcome.message}"
            continue
        if different := differences(expected, outcome.arrived[0]):
            wrong[full_name] = different
    assert not wrong, json.dumps(wrong, indent=1)


def test_every_answer_is_written_as_it_was_given(outcomes: dict[str, Outcome]) -> None:
    wrong: dict[str, Any] = {}
    for full_name, outcome in outcomes.items():
        if not outcome.arrived:
            continue
        answer = outcome.answer
        written = outcome.written
        assert isinstance(written, dict), (full_name, outcome.message)
        if full_name.endswith("/stream"):  # litellm's own time, as the document says
            assert isinstance(written["created"], int)
            answer = {**answer, "created": written["created"]}
        if different := differences(answer, written):
            wrong[full_name] = different
    assert not wrong, json.dumps(wrong, indent=1)


def test_each_change_that_is_listed_happens() -> None:
    made: set[Change] = set()
    for body in CASES.values():
        made |= expected_of(body)[1]
    assert made == set(CHANGES)


def differences(expected: Any, found: Any, path: str = "") -> dict[str, Any]:
    """What is not the same, by its path."""
    if isinstance(expected, dict) and isinstance(found, dict):
        absent = "(absent)"
        members = [
            (f"{path}.{name}".lstrip("."), expected.get(name, absent), found.get(name, absent))
            for name in {**expected, **found}
        ]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = zip(expected, found, strict=True)
        members = [(f"{path}[{number}]", *pair) for number, pair in enumerate(pairs)]
    elif type(expected) is type(found) and expected == found:  # true is not 1
        return {}
    else:
        return {path: f"{expected!r} is {found!r}"}
    different: dict[str, Any] = {}
    for member in members:
        different |= differences(member[1], member[2], member[0])
    return different
