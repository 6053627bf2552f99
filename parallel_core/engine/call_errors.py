"""Tools for the errors of calls: clean tracebacks, and names for logs."""

from __future__ import annotations

from typing import cast

from parallel_core.types import RouterParallelRequest

_ENGINE_MODULES = tuple(
    f"parallel_core.{name}"
    for name in ("nursery_engine", "control.", "router.answers", "router_hosts.")
)


def without_engine_frames(exception: Exception) -> Exception:
    """Strip the engine's frames from an exception raised by a call.

    Its traceback then begins in the user's function, and a kept exception does not keep the engine
    alive, with its current item and result.

    A StopIteration, which only a plain function can raise, becomes a RuntimeError, as in a
    coroutine (PEP 479). Otherwise it would silently end a generator of the user.
    """
    traceback = exception.__traceback__
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").startswith(
        _ENGINE_MODULES
    ):
        traceback = traceback.tb_next
    exception = exception.with_traceback(traceback)
    if not isinstance(exception, StopIteration):
        return exception
    error = RuntimeError("the call raised StopIteration")
    error.__cause__ = exception
    return error


def describe(index: int, item: object) -> str:
    """Name a call in a log or a note by index and model, without its contents."""
    model: object = None
    if isinstance(item, RouterParallelRequest):
        model = item.model
    elif isinstance(item, dict):  # anything else might run code of the user
        model = dict[object, object].get(cast("dict[object, object]", item), "model")
    return f"request {index} (model {model!r})" if isinstance(model, str) else f"request {index}"
