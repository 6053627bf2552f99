"""The API of the original proposal: methods on ``litellm.Router``, behind its flag.

``install()`` makes code that was written for the proposal run unchanged. litellm is imported by
``install``, not by this module.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Coroutine
from types import ModuleType
from typing import Any, Unpack

from . import dispatch
from ._handle import ParallelBatch
from ._plan import Requests
from .control.options import Concurrency, Controls
from .types import RouterParallelRequest, RouterParallelResult, StreamChunk, StreamEnd

FLAG = "LITELLM_ENABLE_PARALLEL_ACOMPLETIONS"

ENABLE_PARALLEL_ACOMPLETIONS: bool = os.environ.get(FLAG, "").strip().lower() in (
    "1",
    "true",
    "yes",
    "on",
)
"""Whether the Router methods may be used. Read from the environment when this module is imported;
reloading the module reads it again."""

_METHODS = ("parallel_acompletions", "iter_parallel_acompletions", "iter_parallel_streams")
_HELPERS_MODULE = "litellm.router_utils.parallel_acompletion"
_FLAGS_MODULE = "litellm.experimental_flags"
_OURS = "__installed_by_parallel_core__"


def _parallel_acompletions(
    self: Any,
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    **controls: Unpack[Controls],
) -> Coroutine[Any, Any, list[RouterParallelResult]]:
    """:func:`parallel_core.parallel_acompletions` with this Router.

    Raises:
        RuntimeError: the flag ``LITELLM_ENABLE_PARALLEL_ACOMPLETIONS`` is off.
    """
    _require_flag()
    return dispatch.parallel_acompletions(
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
    """:func:`parallel_core.iter_parallel_acompletions` with this Router.

    Raises:
        RuntimeError: the flag ``LITELLM_ENABLE_PARALLEL_ACOMPLETIONS`` is off.
    """
    _require_flag()
    return dispatch.iter_parallel_acompletions(
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
    """:func:`parallel_core.iter_parallel_streams` with this Router.

    Raises:
        RuntimeError: the flag ``LITELLM_ENABLE_PARALLEL_ACOMPLETIONS`` is off.
    """
    _require_flag()
    return dispatch.iter_parallel_streams(
        self, requests, concurrency=concurrency, return_exceptions=return_exceptions, **controls
    )


def _require_flag() -> None:
    if not ENABLE_PARALLEL_ACOMPLETIONS:
        raise RuntimeError(
            "parallel_acompletions disabled: it is experimental and off by default. Set the "
            f"environment variable {FLAG}=1 before parallel_core is imported, or call "
            "parallel_core.parallel_acompletions(router, …), which needs no flag"
        )


def install() -> None:
    """Put the proposal's API into litellm. Calling it again does nothing.

    ``litellm.Router`` gets ``parallel_acompletions``, ``iter_parallel_acompletions`` and
    ``iter_parallel_streams``, gated by the flag; ``litellm.router_utils.parallel_acompletion`` and
    ``litellm.experimental_flags`` become importable. This changes the ``Router`` class of the whole
    process; :class:`parallel_core.ParallelRouter` is the way without patching.

    Raises:
        RuntimeError: this litellm brings one of these itself; nothing has been changed.
    """
    router_class, packages = _litellm()
    taken = [
        f"litellm.Router.{name}"
        for name in _METHODS
        if hasattr(router_class, name) and not _is_ours(getattr(router_class, name))
    ] + [name for name in (_HELPERS_MODULE, _FLAGS_MODULE) if _exists(name)]
    if taken:
        raise RuntimeError(
            f"parallel_core.install() would overwrite {', '.join(taken)}, which this litellm "
            "brings itself; use litellm's own, or parallel_core.parallel_acompletions(router, …)"
        )
    methods = (_parallel_acompletions, _iter_parallel_acompletions, _iter_parallel_streams)
    for name, method in zip(_METHODS, methods, strict=True):
        setattr(router_class, name, method)
    contents: dict[str, dict[str, object]] = {
        _HELPERS_MODULE: {
            "RouterParallelRequest": RouterParallelRequest,
            "RouterParallelResult": RouterParallelResult,
            "gather_parallel_acompletions": dispatch.parallel_acompletions,
            "iter_parallel_acompletions": dispatch.iter_parallel_acompletions,
        },
        _FLAGS_MODULE: {"ENABLE_PARALLEL_ACOMPLETIONS": ENABLE_PARALLEL_ACOMPLETIONS},
    }
    for name, names in contents.items():
        module = ModuleType(name, "Made by parallel_core.install().")
        vars(module).update(names, **{_OURS: True})
        sys.modules[name] = module
        setattr(packages[name], name.rpartition(".")[2], module)


def uninstall() -> None:
    """Take out of litellm what :func:`install` put in. Does nothing when nothing is there."""
    router_class, packages = _litellm()
    for name in _METHODS:
        if _is_ours(vars(router_class).get(name)):
            delattr(router_class, name)
    for name, package in packages.items():
        if getattr(sys.modules.get(name), _OURS, False):
            del sys.modules[name]
            delattr(package, name.rpartition(".")[2])


def _litellm() -> tuple[type[Any], dict[str, ModuleType]]:
    """The Router class, and for each module that we make the package it belongs to."""
    litellm = importlib.import_module("litellm")
    packages = {
        name: importlib.import_module(name.rpartition(".")[0])
        for name in (_HELPERS_MODULE, _FLAGS_MODULE)
    }
    return litellm.Router, packages


def _exists(module: str) -> bool:
    """Whether litellm itself has this module."""
    if module in sys.modules:
        return not getattr(sys.modules[module], _OURS, False)
    return importlib.util.find_spec(module) is not None


def _is_ours(method: object) -> bool:
    return getattr(method, "__module__", None) == __name__


if getattr(sys.modules.get(_FLAGS_MODULE), _OURS, False):  # reloaded while installed
    install()
