"""The API of the original proposal: methods on ``litellm.Router``, behind its flag.

With ``install()``, code that was written for the proposal runs unchanged. ``install`` imports
litellm; this module does not. The defaults of the methods are those of the proposal and do not
follow those of the package's own functions.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Coroutine
from pathlib import Path
from types import ModuleType
from typing import Any, Unpack, cast

from parallel_core import api
from parallel_core.batch_plans import Requests
from parallel_core.control import Concurrency, Controls
from parallel_core.engine import ParallelBatch
from parallel_core.types import RouterParallelResult, StreamChunk, StreamEnd

from .import_finder import ImportFinder

FLAG = "LITELLM_ENABLE_PARALLEL_ACOMPLETIONS"

_FLAG_NAME = "ENABLE_PARALLEL_ACOMPLETIONS"
_FLAGS_MODULE = "litellm.experimental_flags"
_HELPERS_MODULE = "litellm.router_utils.parallel_acompletion"
_ROUTER_MODULE = "litellm.router"


def _parallel_acompletions(
    self: Any,
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    **controls: Unpack[Controls],
) -> Coroutine[Any, Any, list[RouterParallelResult]]:
    """Call :func:`parallel_core.parallel_acompletions` with this Router.

    Raises:
        RuntimeError: the flag ``LITELLM_ENABLE_PARALLEL_ACOMPLETIONS`` is off.
    """
    _require_flag()
    return api.parallel_acompletions(
        self,
        requests,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=preserve_order,
        **controls,
    )


def _iter_parallel_acompletions(
    self: Any,
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    **controls: Unpack[Controls],
) -> ParallelBatch[RouterParallelResult]:
    """Call :func:`parallel_core.iter_parallel_acompletions` with this Router.

    Raises:
        RuntimeError: the flag ``LITELLM_ENABLE_PARALLEL_ACOMPLETIONS`` is off.
    """
    _require_flag()
    return api.iter_parallel_acompletions(
        self,
        requests,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=preserve_order,
        **controls,
    )


def _iter_parallel_streams(
    self: Any,
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    **controls: Unpack[Controls],
) -> ParallelBatch[StreamChunk | StreamEnd]:
    """Call :func:`parallel_core.iter_parallel_streams` with this Router.

    Raises:
        RuntimeError: the flag ``LITELLM_ENABLE_PARALLEL_ACOMPLETIONS`` is off.
    """
    _require_flag()
    return api.iter_parallel_streams(
        self, requests, concurrency=concurrency, return_exceptions=return_exceptions, **controls
    )


def _require_flag() -> None:
    # Look it up for every call: tests patch it, and a reload may have changed it.
    if not getattr(importlib.import_module(_ROUTER_MODULE), _FLAG_NAME, False):
        raise RuntimeError(
            "parallel_acompletions disabled: it is experimental and off by default. Set the "
            f"environment variable {FLAG}=1 before parallel_core.install() (or reload "
            f"{_FLAGS_MODULE} after it), or call "
            "parallel_core.parallel_acompletions(router, …), which needs no flag"
        )


_METHODS = {
    "parallel_acompletions": _parallel_acompletions,
    "iter_parallel_acompletions": _iter_parallel_acompletions,
    "iter_parallel_streams": _iter_parallel_streams,
}
# The mark identifies the methods after this module has been reloaded or imported again.
_MARK = "_put_into_litellm_by_parallel_core"
for _method in _METHODS.values():
    setattr(_method, _MARK, True)
_SOURCES = Path(__file__).parent
_ADDED = {
    _FLAGS_MODULE: _SOURCES / "experimental_flags.py",
    _HELPERS_MODULE: _SOURCES / "parallel_acompletion.py",
}


def install() -> None:
    """Add the proposal's API to litellm. Calling it again does nothing.

    ``litellm.Router`` gets ``parallel_acompletions``, ``iter_parallel_acompletions`` and
    ``iter_parallel_streams``, gated by the flag ``litellm.router.ENABLE_PARALLEL_ACOMPLETIONS``;
    ``litellm.router_utils.parallel_acompletion`` and ``litellm.experimental_flags`` become
    importable. Reloading ``litellm.experimental_flags`` or ``litellm.router`` reads the environment
    variable ``LITELLM_ENABLE_PARALLEL_ACOMPLETIONS`` again. This changes the ``Router`` class of
    the whole process. :class:`parallel_core.ParallelRouter` needs no patching.

    Raises:
        RuntimeError: the installed litellm already has one of these. Nothing has been changed.
    """
    finder = _installed_finder()
    if isinstance(finder, ImportFinder):
        return
    if finder is not None:  # it comes from an earlier import of parallel_core
        uninstall()
    router = importlib.import_module(_ROUTER_MODULE)
    taken = [
        f"litellm.Router.{name}"
        for name in _METHODS
        if any(hasattr(router_class, name) for router_class in _router_classes(router))
    ]
    taken += [name for name in _ADDED if _exists(name)]
    if taken:
        raise RuntimeError(
            f"parallel_core.install() would overwrite {', '.join(taken)}, which the installed "
            "litellm already has; use litellm's own, or "
            "parallel_core.parallel_acompletions(router, …)"
        )
    sys.meta_path.insert(0, ImportFinder(_ADDED, {_ROUTER_MODULE: _extend}))
    for name in _ADDED:
        importlib.import_module(name)
    _extend(router)


def uninstall() -> None:
    """Remove from litellm what :func:`install` added. Do nothing if nothing is installed."""
    finder = _installed_finder()
    if finder is None:
        return
    sys.meta_path.remove(finder)
    for router_class in finder.extended_classes:
        for name in _METHODS:
            if hasattr(vars(router_class).get(name), _MARK):
                delattr(router_class, name)
    vars(sys.modules[_ROUTER_MODULE]).pop(_FLAG_NAME, None)
    for name in _ADDED:
        module = sys.modules.get(name)
        if finder.has_loaded(module):
            del sys.modules[name]
            package, _, attribute = name.rpartition(".")
            if vars(sys.modules[package]).get(attribute) is module:
                delattr(sys.modules[package], attribute)


def _extend(router: ModuleType) -> None:
    """Add the methods and the flag to ``litellm.router``, which has just been (re)loaded."""
    flags = importlib.import_module(_FLAGS_MODULE)
    if flags.ENABLE_PARALLEL_ACOMPLETIONS is flags.VALUE_IN_ENVIRONMENT:  # the flag is not patched
        flags = importlib.reload(flags)
    setattr(router, _FLAG_NAME, flags.ENABLE_PARALLEL_ACOMPLETIONS)
    finder = _installed_finder()
    assert finder is not None
    for router_class in _router_classes(router):
        for name, method in _METHODS.items():
            setattr(router_class, name, method)
        finder.extended_classes.append(router_class)


def _router_classes(router: ModuleType) -> list[type[Any]]:
    """Return the Router classes that users import.

    After a reload of ``litellm.router``, ``litellm.Router`` is still the earlier class.
    """
    exported = vars(sys.modules["litellm"]).get("Router", router.Router)
    return [router.Router] if exported is router.Router else [router.Router, exported]


def _installed_finder() -> ImportFinder | None:
    """Return the finder of :func:`install`, even if an earlier import made its class."""
    wanted = ImportFinder.__module__, ImportFinder.__qualname__
    for finder in sys.meta_path:
        cls = finder if isinstance(finder, type) else type(finder)
        if (cls.__module__, cls.__qualname__) == wanted:
            return cast("ImportFinder", finder)
    return None


def _exists(module: str) -> bool:
    """Return True if the installed litellm has this module."""
    return module in sys.modules or importlib.util.find_spec(module) is not None
