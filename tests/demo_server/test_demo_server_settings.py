"""The settings of a demo server: what is drawn with its seed, what is refused, and options."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from helpers.demo_clients import (
    body_for,
    command_app,
    is_json,
    post,
    run,
)
from parallel_core.demo_server import (
    DemoServer,
    DemoServerSettings,
    DemoServerThread,
    command,
)
from parallel_core.demo_server.settings import RequestOverride, plan_request

FAULTY = DemoServerSettings(
    latency_median=0.0,
    time_to_first_token=0.0,
    chunk_gap=0.0,
    rate_limited=0.2,
    server_error=0.2,
    invalid_json=0.2,
)


def outcomes_of(
    settings: DemoServerSettings, *, with_others: bool = False, reset_after: int | None = None
) -> list[str]:
    """What happens to thirty requests of one model."""
    outcomes: list[str] = []

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        for number in range(30):
            if number == reset_after:
                server.reset_stats()
            if with_others:
                await post(server, client, "slow", demo={"fault": "none"})
            url = f"{server.url}/chat/completions"
            async with client.post(url, json=body_for("smart")) as response:
                text = await response.text()
            if response.status == 200 and is_json(text):
                text = json.loads(text)["choices"][0]["message"]["content"]
            outcomes.append(f"{response.status} {text}")

    run(test, settings)
    return outcomes


def test_same_seed_same_outcomes() -> None:
    first = outcomes_of(FAULTY)
    assert {outcome.split()[0] for outcome in first} == {"200", "429", "500"}
    assert any(outcome.startswith("200 {") for outcome in first), "no invalid JSON"
    assert outcomes_of(FAULTY) == first
    assert outcomes_of(FAULTY, with_others=True) == first
    # A reset numbers the requests from 1 again.
    assert outcomes_of(FAULTY, reset_after=10) == first[:10] + first[:20]


def test_other_seed_other_outcomes() -> None:
    assert outcomes_of(dataclasses.replace(FAULTY, seed=1)) != outcomes_of(FAULTY)


def test_latencies_are_log_normal_around_their_median() -> None:
    settings = DemoServerSettings(latency_median=2.0, latency_sigma=0.5, models={"m": 3.0})
    plans = [plan(settings, "m", number) for number in range(1, 2001)]
    latencies = sorted(each.latency for each in plans)
    assert latencies[1000] == pytest.approx(6.0, rel=0.1)
    assert latencies[1682] / latencies[1000] == pytest.approx(2.718**0.5, rel=0.1)  # + 1 sigma
    steady = DemoServerSettings(latency_median=2.0, latency_sigma=0.0, models={"m": 3.0})
    assert {plan(steady, "m", number).latency for number in range(1, 10)} == {6.0}
    assert plan(steady, "m", 1).time_to_first_token == pytest.approx(0.15)


def test_rate_of_faults_changes_nothing_else() -> None:
    faulty = DemoServerSettings(hang=0.3, reset=0.3)
    plans = [plan(faulty, "fast", number) for number in range(1, 1001)]
    assert [each.fault for each in plans].count("hang") == pytest.approx(300, abs=50)
    assert [each.fault for each in plans].count(None) == pytest.approx(400, abs=50)
    sound = [plan(DemoServerSettings(), "fast", number) for number in range(1, 1001)]
    assert [each.latency for each in plans] == [each.latency for each in sound]


def plan(settings: DemoServerSettings, model: str, number: int) -> Any:
    return plan_request(settings, model, number, RequestOverride())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"latency_median": -0.1}, "latency_median must be a finite number of at least 0"),
        ({"latency_sigma": float("nan")}, "latency_sigma"),
        ({"time_to_first_token": float("inf")}, "time_to_first_token"),
        ({"chunk_gap": "1"}, "chunk_gap"),
        ({"retry_after": -1}, "retry_after"),
        ({"hang": 1.5}, "hang must be a rate from 0 to 1, not 1.5"),
        ({"reset": -0.5}, "reset"),
        ({"hang": 0.6, "reset": 0.6}, "must be at most 1, not 1.2"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"capacity": 0}, "capacity must be None or at least 1, not 0"),
        ({"models": {}}, "at least one model"),
        ({"models": {"": 1.0}}, "must not be empty"),
        ({"models": {"fast": -1.0}}, "latency factor of model 'fast'"),
        ({"trouble": ["quota"]}, r"trouble\[0\] must be a Trouble, not 'quota'"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DemoServerSettings(**wrong)


def test_rates_may_sum_up_to_one() -> None:
    rates = ("rate_limited", "server_error", "hang", "reset", "truncated", "invalid_json")
    settings = DemoServerSettings(**dict.fromkeys(rates, 1 / 6))  # type: ignore[arg-type]
    assert set(settings.rates()) == set(rates)
    settings = DemoServerSettings(hang=0.7, reset=0.2, truncated=0.1)
    assert sum(settings.rates().values()) == pytest.approx(1.0)


def test_settings_do_not_change_with_the_callers_mapping() -> None:
    models = {"fast": 1.0}
    settings = DemoServerSettings(models=models)
    models.clear()
    assert settings.models == {"fast": 1.0}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hang", "2"], "hang must be a rate"),
        (["--hang", "0.7", "--reset", "0.7"], "at most 1"),
        (["--latency-median", "nan"], "latency_median"),
        (["--capacity", "0"], "capacity"),
        (["--keep-requests", "-1"], "keep_requests"),
        (["--port", "70000"], "65535"),
        (["--model", "fast=quick"], "must be a number"),
        (["--model", "=1"], "must not be empty"),
    ],
)
def test_wrong_option_is_explained(options: list[str], words: str) -> None:
    result = CliRunner().invoke(command_app(), ["demo-server", *options])
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_options_mean_the_same_as_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[DemoServerSettings, int]] = []

    async def serve(settings: DemoServerSettings, port: int, until_stdin_closes: bool) -> None:
        assert not until_stdin_closes
        served.append((settings, port))

    monkeypatch.setattr(command, "_serve_until_stopped", serve)
    settings = DemoServerSettings(
        seed=-1,
        latency_median=1.5,
        latency_sigma=0.25,
        time_to_first_token=0.125,
        chunk_gap=0.001,
        rate_limited=0.01,
        server_error=0.02,
        hang=0.03,
        reset=0.04,
        truncated=0.05,
        invalid_json=0.06,
        retry_after=1e-07,
        capacity=9,
        keep_requests=7,
        models={"a b": 0.1, "c": 2.0},
    )
    for each in (settings, DemoServerSettings()):
        options = ["demo-server", "--port=8123", *each.to_arguments()]
        result = CliRunner().invoke(command_app(), options)
        assert result.exit_code == 0, result.output
        assert served.pop() == (each, 8123)
    assert CliRunner().invoke(command_app(), ["demo-server", "--model", "m"]).exit_code == 0
    assert served.pop() == (DemoServerSettings(models={"m": 1.0}), 0)


def test_a_server_is_started_once() -> None:
    with (
        DemoServerThread() as server,
        pytest.raises(RuntimeError, match="a DemoServerThread can be started only once"),
    ):
        server.__enter__()
