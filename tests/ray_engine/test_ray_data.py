"""ParallelCompletions: tables in, tables out. Most of it needs no Ray; two tests run ray.data."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.ray_runtime import IGNORED_WARNINGS
from helpers.routers import make_router
from parallel_core import Budget
from parallel_core._ray_data import ParallelCompletions
from parallel_core._ray_data_tables import COLUMNS
from parallel_core._router_members import deployments
from parallel_core.demo_server import DemoServerSettings, DemoServerThread
from parallel_core.errors import BatchDeadlineError

numpy = pytest.importorskip("numpy")
pandas = pytest.importorskip("pandas")
pyarrow = pytest.importorskip("pyarrow")

Values = dict[str, list[Any]]
KEY = "sk-secret-key"
ARROW = {"text": "string", "count": "int64", "number": "double"}
TYPES = {name: ARROW[kind] for name, kind in COLUMNS.items()}


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServerThread]:
    settings = DemoServerSettings(latency_median=0.0, models={"fast": 1.0, "slow": 1.0})
    with DemoServerThread(settings) as started:
        yield started


@pytest.fixture
def make(server: DemoServerThread) -> Callable[[], Any]:
    server.reset_stats()
    address: Any = SimpleNamespace(url=server.url)  # a server could not be sent
    return lambda: make_router(address)


def as_numpy(values: Values) -> Any:
    columns = {}
    for name, given in values.items():
        columns[name] = numpy.empty(len(given), dtype=object)
        columns[name][:] = given
    return columns


def as_pandas(values: Values) -> Any:
    return pandas.DataFrame(
        {name: pandas.Series(given, dtype=object) for name, given in values.items()}
    )


def as_arrow(values: Values) -> Any:
    return pyarrow.table(values)


def listed(table: Any) -> Values:
    """The columns with None for whatever stands for nothing."""
    if isinstance(table, pyarrow.Table):
        return dict(table.to_pydict())
    return {
        name: [None if _is_nothing(value) else value for value in table[name]] for name in table
    }


def _is_nothing(value: Any) -> bool:
    return value is None or value is pandas.NA or value != value


@pytest.fixture(params=[as_numpy, as_pandas, as_arrow])
def table(request: pytest.FixtureRequest) -> Callable[[Values], Any]:
    return request.param  # type: ignore[no-any-return]


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def replying(reply: str, **more: Any) -> str:
    return json.dumps({"extra_body": {"demo": {"reply": reply, **more}}})


# --- rows ---


def test_a_table_gets_columns_in_the_order_of_its_rows(
    make: Callable[[], Any], table: Callable[[Values], Any]
) -> None:
    # The first answers come last.
    given = table(
        {
            "id": [7, 8, 9],
            "prompt": ["a", "b", "c"],
            "kwargs": [replying(str(n), latency=0.05 * (3 - n)) for n in range(3)],
        }
    )
    with ParallelCompletions(make, model="fast", concurrency=3) as complete:
        answered = complete(given)
    assert type(answered) is type(given)
    columns = listed(answered)
    assert list(columns) == ["id", "prompt", "kwargs", *COLUMNS]
    assert columns["id"] == [7, 8, 9]
    assert columns["text"] == ["0", "1", "2"]
    assert columns["finish_reason"] == ["stop"] * 3
    assert columns["error"] == columns["error_type"] == [None] * 3
    body = json.loads(columns["response"][1])
    assert body["choices"][0]["message"]["content"] == "1"
    assert columns["prompt_tokens"][1] == body["usage"]["prompt_tokens"] > 0
    assert columns["completion_tokens"][1] == body["usage"]["completion_tokens"] > 0
    assert columns["duration"][0] >= 0.15
    assert COLUMNS.keys().isdisjoint(listed(given))  # it was not changed


def test_messages_of_arrow_have_no_members_of_other_rows() -> None:
    seen: list[Any] = []

    async def completion(**arguments: Any) -> Any:
        seen.append(arguments)
        return {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}

    given = as_arrow(
        {
            "messages": [[user("a")], [user("b", name="z")], None],
            "kwargs": [
                {"temperature": 0.5, "top_p": None},
                {"temperature": None, "top_p": 1.0},
                None,
            ],
            "prompt": [None, None, "c"],
            "model": ["one", None, None],
        }
    )
    # As ray.data gives it by default: arrays of arrays of dicts.
    arrays = {name: given[name].to_pandas().to_numpy() for name in given.column_names}
    assert isinstance(arrays["messages"][0], numpy.ndarray)
    for one in (given, given.to_pandas(), arrays):
        seen.clear()
        with ParallelCompletions(lambda: completion, model="two", concurrency=1) as complete:
            assert listed(complete(one))["text"] == ["x"] * 3
        assert seen == [
            {"model": "one", "messages": [user("a")], "temperature": 0.5},
            {"model": "two", "messages": [user("b", name="z")], "top_p": 1.0},
            {"model": "two", "messages": [user("c")]},
        ]


def test_bad_rows_and_failed_calls_are_errors_of_their_rows(
    make: Callable[[], Any], table: Callable[[Values], Any], server: DemoServerThread
) -> None:
    given = table(
        {
            "prompt": ["a", None, "c", "d", "e"],
            "kwargs": [None, None, "{no json", replying("", fault="server_error"), "[1]"],
            "model": ["fast", "fast", "fast", "fast", "fast"],
        }
    )
    with ParallelCompletions(make) as complete:
        columns = listed(complete(given))
    assert columns["error_type"] == [
        None,
        "InvalidRequestError",
        "InvalidRequestError",
        "InternalServerError",
        "InvalidRequestError",
    ]
    errors = columns["error"]
    assert errors[0] is None
    assert "'prompt' has no value" in errors[1]
    assert "'kwargs' is a text, and no JSON" in errors[2]
    assert "kwargs must be a mapping" in errors[4]
    assert [text is None for text in columns["text"]] == [False, True, True, True, True]
    assert columns["duration"][1] is None
    assert columns["duration"][3] > 0
    assert server.stats().accepted == 2


@pytest.mark.parametrize("table", [as_pandas, as_arrow])
@pytest.mark.parametrize("fails", [False, True])
def test_columns_have_the_same_types_whatever_is_in_them(
    fails: bool, table: Callable[[Values], Any]
) -> None:
    async def completion(**_: Any) -> Any:
        if fails:
            raise ValueError("no")
        return {"choices": []}

    with ParallelCompletions(lambda: completion, model="m") as complete:
        for rows in (["a"], []):
            answered = complete(table({"prompt": rows}))
            if not isinstance(answered, pyarrow.Table):
                answered = pyarrow.Table.from_pandas(answered)
            kinds = {name: str(answered.schema.field(name).type) for name in COLUMNS}
            assert kinds == TYPES


# --- what is wrong with all rows ---


def test_missing_columns_and_taken_names_raise(make: Callable[[], Any]) -> None:
    complete = ParallelCompletions(make, model="fast")
    with pytest.raises(
        ValueError, match="neither a column 'messages' nor 'prompt': it has 'text_'"
    ):
        complete(as_numpy({"text_": ["a"]}))
    with pytest.raises(ValueError, match="has no column 'model': it has 'prompt'; give model="):
        ParallelCompletions(make)(as_numpy({"prompt": ["a"]}))
    with pytest.raises(ValueError, match="no column 'question'"):
        ParallelCompletions(make, model="fast", prompt_column="question")(
            as_numpy({"prompt": ["a"]})
        )
    with pytest.raises(ValueError, match=r"a column 'text', 'error' already.*column_prefix"):
        complete(as_numpy({"prompt": ["a"], "text": ["b"], "error": ["c"]}))
    with pytest.raises(TypeError, match=r"a batch is a dict of NumPy arrays, .* not list"):
        complete([1])
    with ParallelCompletions(
        make, model="fast", prompt_column="text", column_prefix="new_"
    ) as prefixed:
        assert "new_text" in prefixed(as_numpy({"text": ["a"]}))


def test_arguments_are_checked_at_once(make: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="cannot be sent to another process"):
        ParallelCompletions(make())
    with pytest.raises(ValueError, match="concurrency"):
        ParallelCompletions(make, concurrency=0)
    with pytest.raises(ValueError, match="on_chunk is not for tables: a row has the whole answer"):
        ParallelCompletions(make, on_chunk=print)
    with pytest.raises(ValueError, match="progress is not for tables"):
        ParallelCompletions(make, progress=True)
    with pytest.raises(ValueError, match="timeout"):
        ParallelCompletions(make, timeout=-1.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'tiemout'"):
        ParallelCompletions(make, tiemout=1.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="model must be a str, not int"):
        ParallelCompletions(make, model=3)  # type: ignore[arg-type]
    pytest.importorskip("ray")
    lock = threading.Lock()
    with pytest.raises(TypeError, match="fair_by cannot be sent to another process"):
        ParallelCompletions(make, fair_by=lambda _: lock.locked())


def test_what_the_factory_raises_is_raised() -> None:
    def broken() -> Any:
        raise LookupError("no such secret store")

    complete = ParallelCompletions(broken, model="m")
    for _ in range(2):
        with pytest.raises(LookupError, match="no such secret store"):
            complete(as_numpy({"prompt": ["a"]}))


# --- from batch to batch ---


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


def test_a_deadline_is_of_each_batch(server: DemoServerThread, make: Callable[[], Any]) -> None:
    with ParallelCompletions(make, model="fast", concurrency=2, deadline=3.0) as complete:
        assert listed(complete(as_numpy({"prompt": ["a"]})))["error"] == [None]
        hanging = [replying("", fault="hang")] * 3
        late = listed(complete(as_numpy({"prompt": ["a"] * 3, "kwargs": hanging})))
        assert late["error_type"] == [BatchDeadlineError.__name__] * 3
        assert listed(complete(as_numpy({"prompt": ["b"]})))["error"] == [None]
    assert server.stats().in_flight == 0
    assert server.stats().accepted == 4  # the third of them was not sent


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


def test_an_exit_of_a_call_is_an_error_of_its_row() -> None:
    async def completion(**_: Any) -> Any:
        raise SystemExit(3)

    with ParallelCompletions(lambda: completion, model="m") as complete:
        columns = listed(complete(as_numpy({"prompt": ["a"]})))
    assert columns["error"] == ["the call has raised SystemExit"]


# --- pickling, dropping, secrets ---


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no str")


def test_what_cannot_be_told_is_an_error_of_its_row(
    table: Callable[[Values], Any],
) -> None:
    litellm: Any = pytest.importorskip("litellm")

    async def call(*, model: str, messages: Any, **_: Any) -> Any:
        text = messages[0]["content"]
        if text == "wordless":
            raise Wordless
        tokens = 2**70 if text == "huge" else 3
        answer = litellm.ModelResponse(model=model, choices=[{"message": {"content": text}}])
        usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
        answer.usage = litellm.Usage(**usage)
        return answer

    with ParallelCompletions(lambda: call, model="m") as completions:
        done = listed(completions(table({"prompt": ["huge", "wordless", "good"]})))
    assert done["text"] == ["huge", None, "good"]
    assert done["prompt_tokens"] == [None, None, 3]
    assert [error is None for error in done["error"]] == [True, False, True]
    assert done["error_type"][1] == "Wordless"


def test_a_value_of_arrow_that_python_has_no_type_for_is_an_error_of_its_row(
    make: Callable[[], Any],
) -> None:
    times = pyarrow.array([1, 2**62], pyarrow.timestamp("us"))
    with ParallelCompletions(make, model="fast") as completions:
        errors = completions(pyarrow.table({"prompt": times}))["error"].to_pylist()
    assert ["datetime" in errors[0], "ValueOutOfRange" in errors[1]] == [True, True]


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


def test_the_interpreter_exits_in_silence(server: DemoServerThread) -> None:
    script = f"""
import numpy
from parallel_core import ParallelRouter
from parallel_core._router_members import deployments
from parallel_core._ray_data import ParallelCompletions
make = lambda: ParallelRouter(model_list=[{{"model_name": "fast", "litellm_params": {{
    "model": "openai/fast", "api_base": {server.url!r}, "api_key": {KEY!r}}}}}])
complete = ParallelCompletions(make, model="fast")
print(complete({{"prompt": numpy.array(["a"])}})["error"][0])
"""
    done = subprocess.run(
        [sys.executable, "-W", "default::ResourceWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=100.0,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")


def test_keys_and_contents_are_nowhere(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_API_KEY", "in-no-request")
    caplog.set_level(logging.DEBUG, "parallel_core")

    class Router:
        model_list = deployments(make())

        async def acompletion(self, **_: Any) -> Any:
            raise ValueError(f"refused: {KEY} in-no-request")

    with ParallelCompletions(Router, model="fast") as complete:
        columns = listed(complete(as_numpy({"prompt": ["a secret prompt"]})))
        assert columns["error"] == ["refused: [redacted] in-no-request"]
        assert repr(complete) == "<ParallelCompletions concurrency=8>"
    records = [record for record in caplog.records if record.name == "parallel_core"]
    assert "secret" not in "".join(record.getMessage() for record in records)


# --- ray.data ---


@pytest.fixture
def data(ray: Any) -> Any:
    import ray.data as ray_data

    context = ray_data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray_data


pytestmark = [pytest.mark.filterwarnings(one) for one in IGNORED_WARNINGS]


@pytest.mark.parametrize("batch_format", ["numpy", "pyarrow", "pandas"])
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
