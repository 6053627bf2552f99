"""``parallel-core run`` once more: what is sent again, and what is another run."""

from __future__ import annotations

import json

from helpers.forked_processes import PATIENCE
from helpers.run_bench import (
    FAILS,
    HELD,
    REFUSED,
    Bench,
    ids,
    the_end_of,
)


def test_an_end_without_failures_is_0_and_the_same_again_sends_nothing(bench: Bench) -> None:
    bench.write(*[{}] * 5)
    first = bench.run("in.jsonl", "-o", "out.jsonl")
    assert first.code == 0
    assert sorted(bench.ids()) == ids(0, 1, 2, 3, 4)
    assert "5/5 (100.0 %), ok 5, failed 0" in first.stderr
    assert "\x1b" not in first.stdout + first.stderr
    assert "resume with" not in first.said
    again = bench.run("in.jsonl", "-o", "out.jsonl")
    assert again.code == 0
    assert "resuming: 5 of 5 requests are finished" in again.said
    assert bench.accepted == 5


def test_failures_are_1_and_retry_failed_answers_them(bench: Bench) -> None:
    # The server fails while it has no room: whichever of them comes second.
    bench.server.set_capacity(1)
    bench.server.hold()
    bench.write(HELD, HELD)
    options = ("in.jsonl", "-o", "out.jsonl", "--error-file", "errors.jsonl", "--max-outage=0")
    run = bench.start(*options)
    bench.server.wait_finished(1, PATIENCE)
    bench.server.release()
    first = the_end_of(run)
    bench.server.set_capacity(None)
    assert first.code == 1
    (answered,) = bench.ids()
    assert sorted([answered, *bench.ids("errors.jsonl")]) == ids(0, 1)
    assert bench.results("errors.jsonl")[0]["response"]["status_code"] == 429
    assert "failed        1 (overloaded 1)\n" in first.stdout
    assert "overloaded 1: 429 over_capacity: Too many requests" in first.stdout
    same = bench.run(*options)
    assert same.code == 1
    assert "--retry-failed sends again what may pass" in same.stdout
    assert bench.accepted == 2
    done = bench.go_on(first.stdout)
    assert done.code == 0
    assert sorted(bench.ids()) == ids(0, 1)
    assert bench.results("errors.jsonl") == []
    assert bench.accepted == 3


def test_only_what_may_pass_is_sent_again_unless_kinds_are_named(bench: Bench) -> None:
    bench.write(REFUSED, FAILS, {})
    options = ("in.jsonl", "-o", "out.jsonl")
    first = bench.run(*options)
    assert first.code == 1
    assert "1 failure is final: it would fail again" in first.stdout
    assert bench.accepted == 2  # and one refused
    # The name of the input, which follows, is no value of the option.
    assert "1 failed request to send again" in bench.go_on(first.stdout).stderr
    assert bench.accepted == 3
    both = bench.run("--retry-failed=request,unknown", *options)
    assert "2 failed requests to send again" in both.stderr
    assert bench.accepted == 4
    assert "2 failed requests to send again" in bench.run(*options, "--retry-failed=all").stderr
    assert bench.accepted == 5
    bench.write(REFUSED)
    done = bench.run("in.jsonl", "-o", "other.jsonl", "--json")
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["final_failures"], summary["resume"]) == (1, None)


def test_a_trial_of_some_requests_is_gone_on_with_by_the_whole(bench: Bench) -> None:
    bench.write(*[{}] * 5)
    trial = bench.run("in.jsonl", "-o", "out.jsonl", "--limit=2")
    assert (trial.code, sorted(bench.ids())) == (0, ids(0, 1))
    whole = bench.run("in.jsonl", "-o", "out.jsonl")
    assert (whole.code, sorted(bench.ids())) == (0, ids(0, 1, 2, 3, 4))
    assert bench.accepted == 5


def test_order_input_sorts_the_answers(bench: Bench) -> None:
    bench.server.hold()
    bench.write(HELD, {}, {})
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--json")
    run.wait_for('"succeeded":2')
    bench.server.release()
    assert run.wait() == 0
    assert bench.ids() in (ids(1, 2, 0), ids(2, 1, 0))
    assert bench.run("in.jsonl", "-o", "out.jsonl", "--order=input").code == 0
    assert bench.ids() == ids(0, 1, 2)
    assert bench.accepted == 3


def test_a_different_run_is_refused_and_force_new_begins_anew(bench: Bench) -> None:
    bench.write({}, {})
    assert bench.run("in.jsonl", "-o", "out.jsonl").code == 0
    other = bench.path("in.jsonl").read_text().replace('"id-', '"other-')
    bench.path("in.jsonl").write_text(other + other.replace("other-", "more-"))
    refused = bench.run("in.jsonl", "-o", "out.jsonl")
    assert refused.code == 2
    different = "out.jsonl holds the results of a different run: the input has other requests now. "
    assert different in refused.said
    assert "--force-new" in refused.said
    assert len(bench.ids()) == 2
    forced = bench.run("in.jsonl", "-o", "out.jsonl", "--force-new")
    assert forced.code == 0
    assert "moved aside: " in forced.said
    assert (len(bench.ids()), len(bench.ids("out.jsonl.1"))) == (4, 2)


def test_a_run_is_the_same_while_its_answers_would_be(bench: Bench) -> None:
    bench.write({}, {})
    assert bench.run("in.jsonl", "-o", "out.jsonl").code == 0
    # Another address, other retries and limits, another model that nobody asks for; and the same
    # requests in another order, with a blank line at the end.
    config = bench.path("config.yaml")
    bench.config(
        ", num_retries: 2, ssl_verify: false, drop_params: true, rpm: 1000",
        "num_retries: 1, timeout: 60",
    )
    text = config.read_text().replace("127.0.0.1", "localhost")
    entry = "  - {model_name: idle, litellm_params: {model: openai/idle, api_key: none}}\n"
    config.write_text(text.replace("router_settings", f"{entry}router_settings"))
    lines = bench.path("in.jsonl").read_text().splitlines()
    bench.path("in.jsonl").write_text("\n".join([*reversed(lines), "", ""]))
    same = bench.run("in.jsonl", "-o", "out.jsonl")
    assert "2 of 2 requests are finished" in same.said
    bench.config(", temperature: 0.5")
    other = bench.run("in.jsonl", "-o", "out.jsonl")
    assert other.code == 2
    assert "model fast was 'openai/fast' and is now 'openai/fast with " in other.said
    assert "--allow-changed" in other.said
    assert bench.accepted == 2
    bench.write({}, {}, {})
    changed = bench.run("in.jsonl", "-o", "out.jsonl", "--allow-changed")
    assert changed.code == 0
    assert "resuming in spite of a change: model fast was" in changed.said
    assert "1 new request in the input" in changed.said
    assert sorted(bench.ids()) == ids(0, 1, 2)
    assert bench.accepted == 3
    assert bench.run("in.jsonl", "-o", "out.jsonl").code == 0


def test_changed_requests_are_refused_kept_or_sent_again(bench: Bench) -> None:
    bench.write({}, {}, {})
    command = ("in.jsonl", "-o", "out.jsonl")
    assert bench.run(*command).code == 0
    bench.write({}, {"reply": "better"}, {"reply": "best"}, {})
    refused = bench.run(*command)
    assert refused.code == 2
    assert "2 requests have changed since the answer in" in refused.said
    assert "line 2 ('id-1'), line 3 ('id-2'). --changed resend" in refused.said
    assert bench.accepted == 3
    kept = bench.run(*command, "--changed", "keep")
    assert kept.code == 0
    assert "1 new request in the input" in kept.said
    assert "2 changed requests: 2 with the old result kept (line 2 ('id-1')" in kept.said
    assert bench.accepted == 4
    sent = bench.run(*command, "--changed=resend", "--json")
    assert sent.code == 0
    (opened,) = (
        event for event in map(json.loads, sent.stdout.splitlines()) if event["event"] == "opened"
    )
    assert (opened["total"], opened["left"]) == (4, 2)
    assert opened["input_change"] == {
        "added": 0,
        "sent_again": 2,
        "kept": 0,
        "requests": [[2, "id-1"], [3, "id-2"]],
        "gone": 0,
        "gone_ids": [],
    }
    answers = {
        result["custom_id"]: result["response"]["body"]["choices"][0]["message"]["content"]
        for result in bench.results()
    }
    assert answers == {"id-0": "answer 0", "id-1": "better", "id-2": "best", "id-3": "answer 3"}
    assert sorted(bench.ids("out.jsonl.1")) == ids(1, 2)
    assert bench.accepted == 6


def test_a_line_that_is_appended_while_it_runs_is_not_sent(bench: Bench) -> None:
    bench.write(*[HELD] * 3)
    bench.server.hold()
    running = bench.start("in.jsonl", "-o", "out.jsonl", "--concurrency=1")
    bench.server.wait_in_flight(1, PATIENCE)
    before = bench.path("in.jsonl").read_bytes()
    evil = {"custom_id": "evil", "body": {"model": "fast", "api_base": "http://127.0.0.1:9/v1"}}
    with bench.path("in.jsonl").open("a") as lines:
        lines.write(json.dumps(evil) + "\n")
    bench.server.release()
    done = the_end_of(running)
    assert done.code == 1
    assert "has been changed since it was checked" in done.said
    assert "the same command resumes the run" in done.said
    assert "--changed" in done.said
    assert "evil" not in bench.ids()
    bench.path("in.jsonl").write_bytes(before)
    assert bench.go_on(done.stdout).code == 0
    assert (sorted(bench.ids()), bench.accepted) == (ids(0, 1, 2), 3)


def test_the_command_to_go_on_minds_arguments_after_two_dashes(bench: Bench) -> None:
    bench.write(FAILS, name="-a :heart: x.jsonl")
    done = bench.run("-o", "out [b].jsonl", "--config=config.yaml", "--", "-a :heart: x.jsonl",
                     router=False)  # fmt: skip
    assert done.code == 1
    again = bench.go_on(done.stdout)
    assert again.code == 1
    assert bench.accepted == 2
