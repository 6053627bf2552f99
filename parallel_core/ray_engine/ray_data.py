"""Chat completions for the rows of a ``ray.data`` dataset, or of any table."""

from __future__ import annotations

import pickle
import threading
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, Unpack, cast

from parallel_core.config import Redactor, deployments, secrets_sent, unwrap_router
from parallel_core.control import Concurrency, Controls, check_controls, checked_concurrency
from parallel_core.types import RouterParallelRequest, RouterParallelResult

from .ray_data_tables import InputColumns, cells, check_new_columns, with_columns
from .router_recipe import RouterSource, checked_recipe
from .standing_batch import StandingBatch

_REFUSED = {
    "progress": "each process makes only its own calls; ray.data shows the overall progress",
    "on_progress": "each process makes only its own calls; ray.data shows the overall progress",
    "on_chunk": "a row has the whole answer",
}
_MESSAGES, _PROMPT, _MODEL, _KWARGS = "messages", "prompt", "model", "kwargs"


class ParallelCompletions:
    """Send a request for each row of a batch and return the batch with the answers.

    For ``map_batches`` of ``ray.data``::

        dataset.map_batches(
            ParallelCompletions,
            fn_constructor_kwargs={"router": make_router, "model": "gpt-4o-mini"},
            batch_size=256,
            concurrency=2,  # processes
        )

    It is also an ordinary function of tables: ``ParallelCompletions(make_router)(frame)``. A batch
    is a dict of NumPy arrays, a pandas DataFrame or a pyarrow Table. The result has the same type,
    the same columns, the rows in the same order, and these new columns:

    - ``text`` and ``finish_reason`` of the first choice, ``response``: the whole answer, as JSON;
    - ``prompt_tokens`` and ``completion_tokens``, if reported; ``cost``: USD, if the price is
      known; ``duration``: seconds, retries included;
    - ``error``: the reason why there is no answer, and ``error_type``: the name of its class. Both
      are null if there is an answer. Keys are removed.

    An unknown value is null, and a column has the same type in every batch. A dict of NumPy arrays
    gets floats for numbers, with NaN for null, and objects for texts.

    **A row never raises.** An invalid value or a failed call becomes the error of its row. Problems
    of all rows raise: an invalid argument, a missing column, a Router that cannot be made.

    The first batch makes the Router, in the calling process. The Router and an event loop in a
    helper thread stay until :meth:`close`. So connections, the pace of ``rate_limit``, the limit of
    ``concurrency="auto"`` and the rest of ``budget`` carry over from batch to batch. All of them
    belong to one process: each of two processes has the whole budget.

    An unpickled copy is new and has made nothing yet.

    Args:
        router: source from which each process makes its Router; a Router itself cannot be sent to
            another process.
        concurrency: maximum calls in flight in each process.
        model: model of the rows that name none.
        messages_column: column of conversations: lists of dicts, or the same as JSON texts.
        prompt_column: column of texts, each one a user message; for rows without messages.
        model_column: column of model names.
        kwargs_column: column of further arguments of ``acompletion``: dicts, or the same as JSON
            texts. In Arrow columns a struct has the members of all rows: null members are not sent.
        column_prefix: prefix of the names of the new columns.
        controls: the controls of :class:`Controls`, but ``total_timeout`` applies to each batch of
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
        # Packed before the first use: afterwards the arguments hold objects that cannot be pickled
        # and a budget that is partly spent.
        self._packed = _packed(self._arguments)
        self._lock = threading.Lock()
        self._opened: tuple[StandingBatch, Redactor] | None = None

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the answers to its rows.

        Blocks; may be called from several threads. Ctrl-C cancels the calls and waits for them.

        Raises:
            TypeError: ``batch`` is not a table.
            ValueError: a column is missing, or a new column exists already.
            RuntimeError: it was closed during the call.
            Exception: any exception that making the Router raises.
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
        new_rows = [
            cells(
                RouterParallelResult(row, _NO_REQUEST, exception=request, attempts=0)
                if isinstance(request, Exception)
                else sent[row],
                redactor,
            )
            for row, request in enumerate(rows)
        ]
        return with_columns(batch, new_rows, self._prefix)

    def _open(self) -> tuple[StandingBatch, Redactor]:
        with self._lock:
            if self._opened is None or not self._opened[0].usable:
                standing = StandingBatch(self._recipe.open, self._concurrency, self._controls)
                # If this object is dropped without close(), the finalizer ends the batch.
                weakref.finalize(self, standing.stop).atexit = False
                self._opened = standing, Redactor(_secrets_of(standing.router))
            return self._opened

    def close(self) -> None:
        """Cancel the calls in flight and close the connections. Idempotent.

        The next batch makes a new Router.
        """
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


# Request in the result of a row that is not a valid request.
_NO_REQUEST = RouterParallelRequest("", ())


def _made_of(arguments: dict[str, Any]) -> ParallelCompletions:
    return ParallelCompletions(**arguments)


def _unpacked(packed: bytes) -> ParallelCompletions:
    return _made_of(pickle.loads(packed))  # noqa: S301 - from this class


def _packed(arguments: dict[str, Any]) -> bytes | None:
    """Pickle the arguments for other processes. Return None if Ray, which does it, is missing.

    Raises:
        TypeError: an argument cannot be sent. The message names it.
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
                f"{name} cannot be sent to another process ({type(error).__name__}): create the "
                "objects that it refers to, such as a Router or a connection, inside a function"
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
