"""ParallelCompletions: tables in, tables out, without Ray."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from helpers.ray_runtime import IGNORED_WARNINGS
from helpers.ray_tables import (
    KEY,
    TYPES,
    Values,
    as_arrow,
    as_numpy,
    as_pandas,
    listed,
    replying,
    user,
)
from parallel_core.config.router_members import deployments
from parallel_core.demo_server import DemoServerThread
from parallel_core.ray_engine.ray_data import ParallelCompletions
from parallel_core.ray_engine.ray_data_tables import COLUMNS

numpy = pytest.importorskip("numpy")


pandas = pytest.importorskip("pandas")


pyarrow = pytest.importorskip("pyarrow")


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
    assert "'kwargs' is a text, but not valid JSON" in errors[2]
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
    with pytest.raises(ValueError, match="prompt_column must not be empty"):
        ParallelCompletions(make, prompt_column="")
    with pytest.raises(TypeError, match="column_prefix must be a str, not int"):
        ParallelCompletions(make, column_prefix=3)  # type: ignore[arg-type]
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


def test_an_exit_of_a_call_is_an_error_of_its_row() -> None:
    async def completion(**_: Any) -> Any:
        raise SystemExit(3)

    with ParallelCompletions(lambda: completion, model="m") as complete:
        columns = listed(complete(as_numpy({"prompt": ["a"]})))
    assert columns["error"] == ["the call has raised SystemExit"]


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


pytestmark = [pytest.mark.filterwarnings(one) for one in IGNORED_WARNINGS]
