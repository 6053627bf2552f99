"""What ``--rpm`` and ``--tpm`` make of the rates of a config."""

from __future__ import annotations

from typing import Any

import pytest
from litellm import Router

from parallel_core.cli.run_rates import RunRates
from parallel_core.control.rate_limit import RateLimit

NAMES = ["fast", "slow", "free", "quick"]


@pytest.fixture(scope="module")
def router() -> Router:
    def deployment(model: str, **rates: int) -> dict[str, Any]:
        parameters = {"model": "openai/gpt-4o", "api_key": "x", **rates}
        return {"model_name": model, "litellm_params": parameters}

    made: Router = Router(
        model_list=[
            deployment("fast", rpm=40, tpm=1000),
            deployment("fast", rpm=20),
            deployment("slow", rpm=1, tpm=500),
            deployment("free"),
        ],
        model_group_alias={"quick": "fast"},
    )
    return made


FAST = "holding 60 requests per minute for fast (its 2 deployments)"
SLOW = "holding 1 request and 500 tokens per minute for slow (its deployment)"
NO_TOKENS = "not holding tokens per minute for fast: 1 of its 2 deployments has no tpm"
NO_TPM = (
    "not holding the tpm of the config, since --rpm is for all models together: give --tpm as "
    "well, or --rpm by model"
)
A_MINUTE, BOTH = "tokens per minute for", "fast and quick"
FAST_LIMITS = {"fast": (60, None), "quick": (60, None)}


@pytest.mark.parametrize(
    ("asked", "rpm", "tpm", "limits", "notes"),
    [
        (["fast"], [], [], FAST_LIMITS, [NO_TOKENS, FAST]),
        (["free"], [], [], None, []),
        (["slow", "free"], [], [], {"slow": (1, 500)}, [SLOW]),
        (
            ["fast"],
            ["fast=5"],
            [],
            {"fast": (5, None), "quick": (5, None)},
            [NO_TOKENS, "holding 5 requests per minute for fast (--rpm)"],
        ),
        # Of an alias it is the limit of its model.
        (
            ["fast", "quick"],
            [],
            ["quick=1e6"],
            {"fast": (60, 1e6), "quick": (60, 1e6)},
            [f"holding 60 requests and 1,000,000 {A_MINUTE} {BOTH} (its 2 deployments, --tpm)"],
        ),
        (["slow"], ["slow=off"], ["slow=off"], None, []),
        (["slow", "fast"], ["off"], ["off"], None, []),
        (
            ["slow", "fast"],
            ["off", "free=3", "fast=7.5"],
            ["off"],
            {"fast": (7.5, None), "quick": (7.5, None)},
            ["holding 7.5 requests per minute for fast (--rpm)"],
        ),
        # One number is for all models together.
        (
            ["fast", "free"],
            ["9"],
            ["800"],
            (9, 800),
            [f"holding 9 requests and 800 {A_MINUTE} all models together (--rpm and --tpm)"],
        ),
        (
            ["slow", "fast"],
            ["9"],
            [],
            (9, None),
            [
                "holding 9 requests per minute for all models together (--rpm)",
                NO_TPM,
            ],
        ),
        (
            ["slow", "fast"],
            ["9"],
            ["off"],
            (9, None),
            ["holding 9 requests per minute for all models together (--rpm)"],
        ),
        # Of a file with one model, that number is the model's.
        (
            ["slow"],
            ["9"],
            [],
            {"slow": (9, 500)},
            ["holding 9 requests and 500 tokens per minute for slow (--rpm, its deployment)"],
        ),
    ],
)
def test_what_is_held(
    router: Router, asked: list[str], rpm: list[str], tpm: list[str], limits: Any, notes: list[str]
) -> None:
    held = RunRates(rpm, tpm).held(router, asked, NAMES)
    assert held.notes == notes
    if isinstance(held.limit, dict):
        assert {name: rates(limit) for name, limit in held.limit.items()} == limits
        assert len({id(held.limit[name]) for name in FAST_LIMITS if name in held.limit}) <= 1
    else:
        assert (None if held.limit is None else rates(held.limit)) == limits


def rates(limit: RateLimit) -> tuple[float | None, float | None]:
    return limit.requests_per_minute, limit.tokens_per_minute


def test_many_models_of_a_pattern_share_its_rate() -> None:
    parameters = {"model": "openai/*", "api_key": "x", "rpm": 30}
    router = Router(model_list=[{"model_name": "openai/*", "litellm_params": parameters}])
    asked = [f"openai/{name}" for name in "abcde"]
    held = RunRates(None, None).held(router, asked, ["openai/*"])
    names = "openai/a, openai/b, openai/c and 2 more"
    assert held.notes == [f"holding 30 requests per minute for {names} (its deployment)"]
    assert isinstance(held.limit, dict)
    assert len({id(held.limit[name]) for name in asked}) == 1
    chosen = RunRates(["openai/*=6"], None).held(router, asked, ["openai/*"]).limit
    assert isinstance(chosen, dict)
    assert chosen["openai/e"].requests_per_minute == 6


@pytest.mark.parametrize(
    ("rpm", "says"),
    [
        (
            ["gtp=5"],
            "--rpm names the model 'gtp', and there are only 'fast', 'free', 'quick', 'slow'",
        ),
        (
            ["fast=5", "quick=6"],
            "--rpm is given twice, for fast and quick, which are the same model",
        ),
    ],
)
def test_models_that_are_not_there_or_the_same_are_refused(
    router: Router, rpm: list[str], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        RunRates(rpm, None).held(router, ["fast"], NAMES)
