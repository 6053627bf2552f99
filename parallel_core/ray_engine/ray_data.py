"""Chat completions for the rows of a ``ray.data`` dataset, or of any table."""

from __future__ import annotations

import pickle
import threading
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, Unpack, cast

from parallel_core.config import deployments, secrets_sent
from parallel_core.control import Concurrency, Controls, check_controls, checked_concurrency
from parallel_core.files import Redactor
from parallel_core.router import unwrap_router
from parallel_core.types import RouterParallelRequest, RouterParallelResult

from .ray_data_tables import InputColumns, cells, check_new_columns, with_columns
from .router_recipe import RouterSource, checked_recipe
from .standing_batch import StandingBatch

_REFUSED = {
    "progress": "each process has calls of its own; ray.data shows the progress of the whole",
    "on_progress": "each process has calls of its own; ray.data shows the progress of the whole",
    "on_chunk": "a row has the whole answer",
}
_MESSAGES, _PROMPT, _MODEL, _KWARGS = "messages", "prompt", "model", "kwargs"


class ParallelCompletions:
    """Sends a request for each row of a batch and gives the batch back with the answers.

    For ``map_batches`` of ``ray.data``::

        dataset.map_batches(
            ParallelCompletions,
            fn_constructor_kwargs={"router": make_router, "model": "gpt-4o-mini"},
            batch_size=256,
            concurrency=2,  # processes
        )

    It is an ordinary function of tables, too: ``ParallelCompletions(make_router)(frame)``. A batch
    is a dict of NumPy arrays, a pandas DataFrame or a pyarrow Table, and what is given back is of
    the same kind: all columns that were there, in the same order of rows, and

    - ``text`` and ``finish_reason`` of the first choice, ``response``: the whole answer, as JSON;
    - ``prompt_tokens`` and ``completion_tokens``, as far as they are told; ``cost``: USD, where the
      price is known; ``duration``: seconds, retries included;
    - ``error``: why there is no answer, and ``error_type``: the name of its class. Both are null
      where there is one. Keys are taken out.

    **A row never raises.** A bad value in it, or a failed call, makes an error of this row. What is
    wrong with all rows raises: an argument, a missing column, a Router that cannot be made.

    The Router is made at the first batch, in the process that calls, and is kept with an event loop
    in a helper thread until :meth:`close`: connections, the pace of ``rate_limit``, the limit of
    ``concurrency="auto"`` and what is left of ``budget`` go on from batch to batch. All of them are
    of one process: where there are two, each has the whole budget.

    Pickled, it is a new one that has made nothing yet.

    Args:
        router: how each process makes its Router; a Router itself cannot be sent to one.
        concurrency: calls in flight in each process at most.
        model: of rows that name none.
        messages_column: of conversations: lists of dicts, or the same as JSON texts.
        prompt_column: of texts, each of them one message of a user; for rows without messages.
        model_column: of names of models.
        kwargs_column: of further arguments of ``acompletion``: dicts, or the same as JSON texts.
            In columns of Arrow a struct has the members of all rows: members that are null are not
            sent.
        column_prefix: before the names of the new columns.
        controls: as :class:`Controls` describes them, but ``total_timeout`` is of each batch of
            rows, and ``progress``, ``on_progress`` and ``on_chunk`` are refused.

    Raises:
        TypeError, ValueError: an argument is out of range, or cannot be sent to other processes.
    """

    def __init__(
        self,
        router: RouterSource,
        *,
        concurrency: Concurrency = 8,
        model: str | None = None,
        messages_column: str = _MESSAGES,
        prompt_column: str = _PROMPT,
        model_column: str = _MODEL,
        kwargs_column: str = _KWARGS,
        column_prefix: str = "",
        **controls: Unpack[Controls],
    ) -> None:
        self._recipe = checked_recipe(router)
        self._concurrency = checked_concurrency(concurrency)
        check_controls(controls)
        for name, reason in _REFUSED.items():
            if controls.get(name):
                raise ValueError(f"{name} is not for tables: {reason}")
        self._controls = controls
        columns = {
            "messages_column": (messages_column, _MESSAGES),
            "prompt_column": (prompt_column, _PROMPT),
            "model_column": (model_column, _MODEL),
            "kwargs_column": (kwargs_column, _KWARGS),
        }
        _check_texts({name: given for name, (given, _) in columns.items()})
        if not isinstance(cast("object", column_prefix), str):
            raise TypeError(f"column_prefix must be a str, not {type(column_prefix).__qualname__}")
        if model is not None:
            _check_texts({"model": model})
        self._prefix = column_prefix
        self._columns = InputColumns(
            messages_column,
            prompt_column,
            model_column,
            kwargs_column,
            model,
            tuple(given for given, usual in columns.values() if given != usual),
        )
        self._arguments: dict[str, Any] = {
            "router": router,
            "concurrency": concurrency,
            "model": model,
            "column_prefix": column_prefix,
            **{name: given for name, (given, _) in columns.items()},
            **controls,
        }
        # As it is now: what is used holds what cannot be sent, and a budget that is partly spent.
        self._packed = _packed(self._arguments)
        self._lock = threading.Lock()
        self._opened: tuple[StandingBatch, Redactor] | None = None

    def __call__(self, batch: Any) -> Any:
        """The batch with the answers to its rows. Blocks; may be called from several threads.

        Interrupted (Ctrl-C), it cancels its calls and waits for their end.

        Raises:
            TypeError: it is no table.
            ValueError: a column is missing, or one of the new ones is there already.
            RuntimeError: it was closed meanwhile.
            Exception: what making the Router raises.
        """
        rows = self._columns.requests(batch)
        check_new_columns(batch, self._prefix)
        if not rows:
            return with_columns(batch, [], self._prefix)
        good = {
            row: request for row, request in enumerate(rows) if not isinstance(request, Exception)
        }
        standing, redactor = self._open()
        sent = dict(zip(good, standing.results(list(good.values())), strict=True))
        told = [
            cells(
                RouterParallelResult(row, _NOTHING, exception=request, attempts=0)
                if isinstance(request, Exception)
                else sent[row],
                redactor,
            )
            for row, request in enumerate(rows)
        ]
        return with_columns(batch, told, self._prefix)

    def _open(self) -> tuple[StandingBatch, Redactor]:
        with self._lock:
            if self._opened is None or not self._opened[0].usable:
                standing = StandingBatch(self._recipe.open, self._concurrency, self._controls)
                # Dropped without being closed, it ends on its own.
                weakref.finalize(self, standing.stop).atexit = False
                self._opened = standing, Redactor(_secrets_of(standing.router))
            return self._opened

    def close(self) -> None:
        """Cancel what is in flight, and close the connections. Idempotent; the next batch opens
        it again."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> Any:
        if self._packed is None:
            return _made_of, (self._arguments,)
        return _unpacked, (self._packed,)

    def __repr__(self) -> str:
        return f"<ParallelCompletions concurrency={self._arguments['concurrency']!r}>"


# Of a row that is no request.
_NOTHING = RouterParallelRequest("", ())


def _made_of(arguments: dict[str, Any]) -> ParallelCompletions:
    return ParallelCompletions(**arguments)


def _unpacked(packed: bytes) -> ParallelCompletions:
    return _made_of(pickle.loads(packed))  # noqa: S301 - of our own


def _packed(arguments: dict[str, Any]) -> bytes | None:
    """The arguments as they can be sent; None where Ray is not installed, which sends them.

    Raises:
        TypeError: names the argument that cannot be sent.
    """
    try:
        from ray import cloudpickle  # pyright: ignore[reportPrivateImportUsage]
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        return None
    pickler = cast("Any", cloudpickle)
    for name, value in arguments.items():
        try:
            pickler.dumps(value)
        except Exception as error:
            raise TypeError(
                f"{name} cannot be sent to another process ({type(error).__name__}): what it "
                "refers to, a Router or a connection for instance, has to be made inside of a "
                "function"
            ) from error
    return cast("bytes", pickler.dumps(arguments))


def _check_texts(texts: Mapping[str, object]) -> None:
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a str, not {type(text).__qualname__}")
        if not text:
            raise ValueError(f"{name} must not be empty")


def _secrets_of(router: object) -> frozenset[str]:
    return secrets_sent(
        deployment.get("litellm_params", {}) for deployment in deployments(unwrap_router(router))
    )
