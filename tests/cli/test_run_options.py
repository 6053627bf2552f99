"""``parallel-core run``: where its Router comes from, and what controls do as options."""

from __future__ import annotations

import json

import pytest

from helpers.forked_processes import PATIENCE
from helpers.run_bench import (
    HANGS,
    HELD,
    Bench,
    ids,
    the_end_of,
)


def test_a_model_without_a_price_gets_one_in_the_config(bench: Bench) -> None:
    bench.write({}, {})
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--max-cost=1")
    assert (done.code, bench.accepted) == (2, 0)
    assert "the price of 'fast' is unknown. Give input_cost_per_token and output" in done.said
    assert "Budget(" not in done.said
    prices = "input_cost_per_token: 0.001, output_cost_per_token: 0.001"
    bench.config(f", max_tokens: 10, {prices}")
    assert bench.run("in.jsonl", "-o", "out.jsonl", "--max-cost=1").code == 0
    assert bench.accepted == 2
    assert [line["error"] for line in bench.results()] == [None, None]


def test_model_and_api_base_are_enough_for_a_text_file(bench: Bench) -> None:
    bench.path("in.txt").write_text("one\ntwo\n")
    router = ["--model=openai/fast", "--api-base", bench.server.url]
    done = bench.run("in.txt", "-o", "out.jsonl", "--template=Say {{line}}.", *router, router=False)
    assert done.code == 0, done.said
    assert sorted(bench.ids()) == ["1", "2"]


def test_demo_needs_no_key_and_leaves_no_server(bench: Bench) -> None:
    bench.write({}, {}, model="gpt-4o-mini")
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--demo", router=False)
    assert done.code == 0, done.said
    assert len(bench.ids()) == 2
    assert bench.accepted == 0


def test_a_model_that_the_config_lacks_is_told_before_the_first_call(bench: Bench) -> None:
    bench.write({}, {}, model="other")
    done = bench.run("in.jsonl", "-o", "out.jsonl")
    assert done.code == 2
    assert (
        "nothing was sent: the Router has no model 'other' (first asked for in line 1" in done.said
    )
    assert not bench.path("out.jsonl").exists()


def test_a_model_of_no_known_provider_is_told(bench: Bench) -> None:
    bench.path("in.txt").write_text("one\n")
    done = bench.run("in.txt", "-o", "out.jsonl", "--model=nosuchmodel", router=False)
    assert done.code == 2
    assert "litellm does not know the provider of the model 'nosuchmodel'" in done.said


def test_controls_are_options(bench: Bench) -> None:
    bench.write(*[{}] * 4)
    options = [
        "--concurrency=auto",
        "--rpm=6000",
        "--tpm=1000000",
        "--timeout=30",
        "--total-timeout=60",
    ]
    options += ["--hedge=p95", "--fair-by=model", "--grace=1", "--yes"]
    done = bench.run("in.jsonl", "-o", "out.jsonl", *options)
    assert done.code == 0, done.said
    assert bench.accepted == 4


def test_the_rates_of_the_config_are_held_by_waiting(bench: Bench) -> None:
    deployment = (
        "  - model_name: fast\n"
        f"    litellm_params: {{model: openai/fast, api_base: '{bench.server.url}', api_key: none, "
        "rpm: 120}\n"
    )
    bench.path("config.yaml").write_text(f"model_list:\n{deployment}{deployment}")
    bench.write(*[{}] * 8)
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.code == 0, done.said
    assert [event["text"] for event in events if event["event"] == "note"] == [
        "holding 240 requests per minute for fast (its 2 deployments)"
    ]
    assert bench.accepted == 8
    # Four may go at once; the others, one each quarter of a second.
    assert events[-1]["elapsed"] >= 0.99


def test_hedged_calls_are_sent_twice(bench: Bench) -> None:
    bench.server.hold()
    bench.write(*[HELD] * 21)  # at most one of twenty calls
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--hedge=0.3", "--concurrency=40")
    bench.server.wait_in_flight(22, PATIENCE)
    bench.server.release()
    assert run.wait() == 0
    assert (bench.accepted, len(bench.ids())) == (22, 21)


@pytest.mark.parametrize(
    ("options", "left"), [(["--timeout=0.2"], 0), (["--total-timeout=0.5", "--concurrency=1"], 2)]
)
def test_a_timeout_fails_a_request_and_a_total_timeout_ends_the_run(
    bench: Bench, options: list[str], left: int
) -> None:
    bench.write(HANGS, {})
    done = bench.run("in.jsonl", "-o", "out.jsonl", *options)
    assert done.code == 1
    if left:
        assert "(the total timeout has passed)" in done.stdout
        assert bench.results() == []
        assert "--retry-failed" not in done.stdout
    else:
        assert sorted(bench.ids()) == ids(0, 1)
        assert "--retry-failed" in done.stdout


def test_fail_fast_ends_at_the_first_failure(bench: Bench) -> None:
    # The server fails while it has no room: whichever of the first two comes second.
    bench.server.set_capacity(1)
    bench.server.hold()
    bench.write(*[HELD] * 6)
    options = ("--fail-fast", "--concurrency=2", "--max-outage=0")
    run = bench.start("in.jsonl", "-o", "out.jsonl", *options)
    bench.server.wait_finished(1, PATIENCE)
    bench.server.release()
    done = the_end_of(run)
    bench.server.set_capacity(None)
    assert done.code == 1
    assert "(a call has failed)" in done.stdout
    assert len(bench.ids()) < 6
    assert "parallel-core run --retry-failed" in done.stdout  # what failed is sent again, too
    assert bench.go_on(done.stdout).code == 0
    assert sorted(bench.ids()) == ids(0, 1, 2, 3, 4, 5)


PRICES = ", input_cost_per_token: 0.000001, output_cost_per_token: 0.1"


def test_a_budget_ends_the_run_and_a_larger_one_goes_on(bench: Bench) -> None:
    bench.config(PRICES)
    bench.write(*[{"reply": "word " * 100}] * 4)  # 10 USD each
    options = ["--assume-output-tokens=10", "--concurrency=1"]
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--max-cost=25", *options)
    assert done.code == 1, done.said
    assert "(the budget is used up)" in done.stdout
    assert 0 < bench.accepted < 4
    assert bench.run("in.jsonl", "-o", "out.jsonl", "--max-cost=300", *options).code == 0
    assert (bench.accepted, len(bench.ids())) == (4, 4)
