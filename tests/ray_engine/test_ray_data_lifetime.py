"""ParallelCompletions from batch to batch: opened, closed, pickled, dropped; in ray.data."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.forked_processes import ForkedProcesses
from helpers.ray_runtime import IGNORED_WARNINGS
from helpers.ray_tables import (
    KEY,
    TYPES,
    Values,
    as_numpy,
    listed,
    user,
)
from parallel_core import Budget
from parallel_core.demo_server import DemoServerThread
from parallel_core.errors import BatchTimeoutError
from parallel_core.ray_engine.ray_data import ParallelCompletions
from parallel_core.ray_engine.ray_data_tables import COLUMNS

numpy = pytest.importorskip("numpy")


pandas = pytest.importorskip("pandas")


pyarrow = pytest.importorskip("pyarrow")


def test_connections_go_on_and_close_ends_them(
    make: Callable[[], Any], server: DemoServerThread
) -> None:
    threads = set(threading.enumerate())
    complete = ParallelCompletions(make, model="fast", concurrency=1)
    before = server.stats().open_connections
    for _ in range(3):
        complete(as_numpy({"prompt": ["a", "b"]}))
    assert server.stats().open_connections == before + 1
    complete.close()
    complete.close()
    left = {thread for thread in threading.enumerate() if "standing" in thread.name} - threads
    assert left == set()
    # And it may be used again.
    with complete:
        assert listed(complete(as_numpy({"prompt": ["c"]})))["error"] == [None]


def test_a_budget_is_one_for_all_batches() -> None:
    calls: list[str] = []

    async def completion(**arguments: Any) -> Any:
        calls.append(arguments["model"])
        return {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 9}}

    class Meter:
        def worst_case(self, _: Any) -> Any:
            from parallel_core import Usage

            return Usage(prompt_tokens=1, completion_tokens=9)

        def usage(self, _: Any) -> Any:
            return self.worst_case(None)

    budget = Budget(max_tokens=30)
    with ParallelCompletions(
        lambda: completion, model="m", budget=budget, meter=Meter()
    ) as complete:
        first = listed(complete(as_numpy({"prompt": ["a", "b"]})))
        second = listed(complete(as_numpy({"prompt": ["c", "d"]})))
    assert first["error_type"] == [None, None]
    assert sorted(map(str, second["error_type"])) == ["BudgetExceededError", "None"]
    assert len(calls) == 3


@pytest.mark.thorough  # a pipeline of Ray Data
def test_a_total_timeout_is_of_each_batch() -> None:
    asked: list[str] = []

    async def completion(*, messages: Any, **_: Any) -> Any:
        asked.append(messages[0]["content"])
        if asked[-1] == "hang":
            await asyncio.Event().wait()
        return {"choices": [{"message": {"content": "x"}}]}

    with ParallelCompletions(
        lambda: completion, model="m", concurrency=2, total_timeout=2.0
    ) as complete:
        assert listed(complete(as_numpy({"prompt": ["a"]})))["error"] == [None]
        late = listed(complete(as_numpy({"prompt": ["hang"] * 3})))
        assert late["error_type"] == [BatchTimeoutError.__name__] * 3
        assert listed(complete(as_numpy({"prompt": ["b"]})))["error"] == [None]
    assert asked == ["a", "hang", "hang", "b"]  # the third of them was not sent


def test_several_threads_share_the_slots() -> None:
    both = threading.Barrier(2, timeout=30.0)
    most: list[int] = []
    running = 0

    async def completion(**arguments: Any) -> Any:
        nonlocal running
        running += 1
        most.append(running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        text = arguments["messages"][0]["content"]
        return {"choices": [{"message": {"content": text}}]}

    with ParallelCompletions(lambda: completion, model="m", concurrency=2) as complete:
        answers: dict[str, list[Any]] = {}

        def ask(name: str) -> None:
            both.wait()
            prompts = [f"{name}{n}" for n in range(20)]
            answers[name] = listed(complete(as_numpy({"prompt": prompts})))["text"]

        threads = [threading.Thread(target=ask, args=(name,)) for name in "xy"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {name: [f"{name}{n}" for n in range(20)] for name in "xy"}
    assert max(most) == 2


_begun, _cancelled = threading.Event(), threading.Event()


def _router_that_hangs() -> Any:
    async def completion(**_: Any) -> Any:
        _begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            _cancelled.set()

    return completion


def test_closing_ends_a_batch_in_another_thread() -> None:
    complete = ParallelCompletions(_router_that_hangs, model="m", concurrency=1)
    answers: list[Values] = []
    thread = threading.Thread(
        target=lambda: answers.append(listed(complete(as_numpy({"prompt": ["a", "b"]}))))
    )
    thread.start()
    assert _begun.wait(30.0)
    complete.close()
    thread.join()
    assert _cancelled.is_set()
    assert answers[0]["error_type"] == ["StoppedError"] * 2


def test_pickled_it_is_unopened(make: Callable[[], Any]) -> None:
    pytest.importorskip("ray")
    with ParallelCompletions(
        make, model="fast", budget=Budget(max_tokens=1000, assume_output_tokens=100)
    ) as complete:
        complete(as_numpy({"prompt": ["a"]}))
        assert (budget := complete._controls["budget"]) is not None
        assert budget.spent_tokens > 0
        with pickle.loads(pickle.dumps(complete)) as copy:
            assert copy._opened is None
            assert (budget := copy._controls["budget"]) is not None
            assert budget.spent_tokens == 0
            assert listed(copy(as_numpy({"prompt": ["b"]})))["error"] == [None]


def test_dropped_it_ends(make: Callable[[], Any]) -> None:
    complete = ParallelCompletions(make, model="fast")
    complete(as_numpy({"prompt": ["a"]}))
    assert complete._opened is not None
    thread = complete._opened[0]._thread
    del complete
    gc.collect()
    thread.join(30.0)
    assert not thread.is_alive()


def test_the_interpreter_exits_in_silence(
    server: DemoServerThread, tmp_path: Path, commands: ForkedProcesses
) -> None:
    script = Path(__file__).with_name("scripts") / "complete_a_table.py"
    done = commands.start([server.url, KEY], script=script, folder=tmp_path)
    assert (done.wait(), done.stdout, done.stderr) == (0, "None\n", "")


@pytest.fixture
def data(ray: Any) -> Any:
    import ray.data as ray_data

    context = ray_data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray_data


pytestmark = [pytest.mark.filterwarnings(one) for one in IGNORED_WARNINGS]


@pytest.mark.thorough  # a pipeline of Ray Data
@pytest.mark.parametrize(
    "batch_format",
    [
        pytest.param("numpy", marks=pytest.mark.thorough),
        "pyarrow",
        pytest.param("pandas", marks=pytest.mark.thorough),
    ],
)
def test_map_batches(data: Any, server: DemoServerThread, batch_format: str) -> None:
    server.reset_stats()
    url = server.url

    def make_it() -> Any:
        from parallel_core import ParallelRouter

        parameters = {"model": "openai/fast", "api_base": url, "api_key": KEY}
        return ParallelRouter(
            model_list=[{"model_name": "fast", "litellm_params": parameters}], num_retries=0
        )

    rows = [{"id": n, "messages": [user(f"row {n}")]} for n in range(12)]
    rows[5]["messages"] = []
    dataset = data.from_items(rows, override_num_blocks=2).map_batches(
        ParallelCompletions,
        fn_constructor_kwargs={"router": make_it, "concurrency": 4, "model": "fast"},
        batch_size=4,
        batch_format=batch_format,
        concurrency=1,
    )
    blocks = list(dataset.iter_batches(batch_size=1, batch_format="pyarrow"))
    for block in blocks:  # also where there is nothing in some columns
        assert {name: str(block.schema.field(name).type) for name in COLUMNS} == TYPES
    answered = {row["id"]: row for block in blocks for row in block.to_pylist()}
    assert sorted(answered) == list(range(12))
    assert answered[5]["error_type"] == "InvalidRequestError"
    assert all(answered[n]["text"].startswith("[synthetic]") for n in answered if n != 5)
    assert server.stats().accepted == 11
