"""Runs that are cut short again and again, in many ways, end with each request once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.file_runs import Provider, ids_of, line, lines_of, write_lines
from helpers.hosts import EACH_LIBRARY, Host
from parallel_core.run import RunStop, run_file

Cut = st.tuples(
    st.sampled_from(["stop", "stop twice", "cancel", "total_timeout", "none"]), st.integers(0, 12)
)


@pytest.mark.parametrize("world", EACH_LIBRARY, ids=lambda world: world.name)
@given(
    cuts=st.lists(Cut, max_size=4),
    failing=st.sets(st.integers(0, 19)),
    concurrency=st.integers(1, 9),
    split=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=max(12, settings().max_examples // 8))
def test_runs_that_are_cut_short_end_with_each_request_once(
    tmp_path_factory: pytest.TempPathFactory,
    world: Host,
    cuts: list[tuple[str, int]],
    failing: set[int],
    concurrency: int,
    split: bool,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    source = write_lines(folder / "in.jsonl", [line(number) for number in range(20)])
    output, errors = folder / "out.jsonl", folder / "errors.jsonl" if split else None
    draw = random.Random(seed)
    at_calls: Callable[[], None] = lambda: None  # noqa: E731 - replaced for each run

    async def behave(number: int) -> None:
        at_calls()
        for _ in range(draw.randrange(4)):
            await anyio.lowlevel.checkpoint()
        if number in failing:
            raise ValueError("no")

    provider = Provider(behave)
    cut_off = 0

    async def run(cut: str, after: int) -> None:
        nonlocal at_calls, cut_off
        stop = RunStop()
        calls = 0
        before = Counter(provider.calls)
        with anyio.CancelScope() as scope:

            def count() -> None:
                nonlocal calls
                calls += 1
                if calls == after + 1:
                    if cut == "cancel":
                        scope.cancel()
                    elif cut != "none":
                        stop.request()
                        if cut == "stop twice":
                            stop.request()

            at_calls = count
            summary = await run_file(
                provider,
                source,
                output,
                error_file=errors,
                concurrency=concurrency,
                stop=stop,
                total_timeout=0.001 * after + 0.0001 if cut == "total_timeout" else None,
            )
            cut_off += summary.cut_off
            assert provider.in_flight == 0
            return
        # A cancelled run has nobody to tell: whatever was sent and has no line was cut off.
        lines = set(ids_of(output)) | (set(ids_of(errors)) if errors else set())
        cut_off += sum((provider.calls - before)[name] for name in provider.calls - before
                       if name not in lines)  # fmt: skip

    async def main() -> None:
        for cut, after in cuts:
            await run(cut, after)
        await run("none", 0)

    world.run(main)
    answered = ids_of(output) + (ids_of(errors) if errors else [])
    assert sorted(answered) == sorted(f"id-{number}" for number in range(20))
    assert sum(provider.calls.values()) == 20 + cut_off  # nothing that has a line is sent again
    failed = {name for name in answered if int(name[3:]) in failing}
    in_errors = {entry["custom_id"] for entry in lines_of(errors or output) if entry["error"]}
    assert in_errors == failed
