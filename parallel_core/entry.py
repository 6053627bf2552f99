"""Parts that the functions of users share: their options, and the library that is running.

A function finds out which library is running: in asyncio it makes a batch of
:mod:`parallel_core.bridge`, in trio one of :mod:`parallel_core.nursery_engine`.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import textwrap
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Final, TypeVar

from anyio.from_thread import start_blocking_portal

from .bridge import AsyncioParallelBatch
from .control import Concurrency, Controls, checked_flag
from .engine import BatchPlan, ParallelBatch, ResultT, attach_results, collect
from .event_loops import running_library
from .nursery_engine import TrioParallelBatch
from .router_hosts import (
    RouterHost,
    RouterHostName,
    enter_loop,
    leave_this_loop,
    plain_loop_factory,
    router_for_trio,
)
from .types import RouterParallelResult


class StreamArguments(Controls, total=False):
    """The options of :func:`iter_parallel_streams`."""

    concurrency: Concurrency
    return_exceptions: bool
    router_host: RouterHost | RouterHostName | None


class BatchArguments(StreamArguments, total=False):
    """The options of :func:`parallel_acompletions` and :func:`iter_parallel_acompletions`."""

    preserve_order: bool


class OperationArguments(BatchArguments, total=False):
    """The options of :func:`parallel_calls` and :func:`iter_parallel_calls`."""

    operation: str


FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

ONLY_FOR_REQUESTS = ("attempt_timeout", "direct", "on_chunk", "stall_timeout")


def with_controls(*without: str) -> Callable[[FunctionT], FunctionT]:
    """Write the controls, which all functions take, into the signature and the docstring of one.

    Args:
        without: controls that the function refuses.
    """

    def decorate(function: FunctionT) -> FunctionT:
        signature = inspect.signature(function)
        own = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        controls = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_DEFAULTS.get(name),
                annotation=getattr(annotation, "__forward_arg__", annotation),
            )
            for name, annotation in Controls.__annotations__.items()
            if name not in without
        ]
        vars(function)["__signature__"] = signature.replace(parameters=[*own, *controls])
        if function.__doc__ and Controls.__doc__:
            # Clean: Python 3.13 takes the indentation out of docstrings, older ones do not.
            texts = inspect.cleandoc(Controls.__doc__).partition("Attributes:\n")[2]
            entries = re.split(r"\n(?=\w+: )", textwrap.dedent(texts))
            kept = [entry for entry in entries if entry.partition(":")[0] not in without]
            function.__doc__ = inspect.cleandoc(function.__doc__).replace(
                "    {controls}", textwrap.indent("\n".join(kept), "    ")
            )
        return function

    return decorate


# Controls whose default is not None. The default of `retry` depends on what the batch calls.
_DEFAULTS: Final[dict[str, object]] = {"progress": False, "retry": ..., "direct": False}


def _is_for_trio() -> bool:
    """Return True if trio is running here, and False for asyncio.

    Raises:
        RuntimeError: neither is running.
    """
    library = running_library()
    if library is None:
        raise RuntimeError(
            "neither asyncio nor trio is running here: use asyncio.run or trio.run, or, for a "
            "Router in synchronous code, parallel_core.parallel_completions"
        )
    if library not in ("asyncio", "trio"):
        raise RuntimeError(f"parallel_core works in asyncio and trio, not in {library}")
    return library == "trio"


def batch_of(plan: BatchPlan[ResultT]) -> ParallelBatch[ResultT]:
    """Return a batch of the library that is running here.

    Raises:
        RuntimeError: neither asyncio nor trio is running here.
    """
    return TrioParallelBatch(plan) if _is_for_trio() else AsyncioParallelBatch(plan)


def call_for_this_library(router: object, router_host: RouterHost | RouterHostName | None) -> Any:
    """Return what makes the calls in the library that is running here."""
    here = router_for_trio if _is_for_trio() else router_in_asyncio
    return here(router, router_host)


def router_in_asyncio(router: object, router_host: RouterHost | RouterHostName | None) -> Any:
    """Return what makes the calls in asyncio: the Router itself.

    Raises:
        TypeError: it is a host, which is for trio.
        ValueError: a host was given.
    """
    if router_host is not None:
        raise ValueError(
            "router_host is for trio: in asyncio a Router's calls run on your own loop; leave it "
            "out"
        )
    if isinstance(router, RouterHost):
        raise TypeError("a RouterHost is for trio: in asyncio pass the Router itself")
    return router


def run_in_thread(
    plan: BatchPlan[RouterParallelResult], preserve_order: bool
) -> list[RouterParallelResult]:
    """Run a batch on an asyncio loop in a helper thread, and wait for its results.

    Ctrl-C in the calling thread cancels every call and waits for it.
    """
    batch = AsyncioParallelBatch(plan)
    in_order = checked_flag("preserve_order", preserve_order)
    results: list[RouterParallelResult] = []

    async def run() -> list[RouterParallelResult]:
        enter_loop(asyncio.get_running_loop())
        try:
            return await collect(batch, in_order, results)
        finally:
            await leave_this_loop()

    # A plain loop, whatever is installed as the process's default: on a loop of trio-asyncio,
    # which its import makes the default, Router calls fail.
    try:
        with start_blocking_portal("asyncio", {"loop_factory": plain_loop_factory()}) as portal:
            return portal.call(run)
    except CancelledError:
        interrupt = batch.interrupt
        if interrupt is None:
            raise
    except KeyboardInterrupt as exception:  # Ctrl-C while this thread waited
        attach_results(exception, results, preserve_order)
        raise
    # A call has raised it, in the helper thread, where it has ended the loop.
    attach_results(interrupt, results, preserve_order)
    raise interrupt
