"""Send many LLM requests at once through a litellm Router; nothing leaks, nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._handle import ParallelBatch as ParallelBatch
from .dispatch import iter_parallel_acompletions as iter_parallel_acompletions
from .dispatch import iter_parallel_map as iter_parallel_map
from .dispatch import parallel_acompletions as parallel_acompletions
from .dispatch import parallel_completions as parallel_completions
from .dispatch import parallel_map as parallel_map
from .errors import BatchAbortedError as BatchAbortedError
from .errors import CallCancelledError as CallCancelledError
from .errors import InvalidRequestError as InvalidRequestError
from .router_api import install as install
from .router_api import uninstall as uninstall
from .types import ParallelResult as ParallelResult
from .types import RouterParallelRequest as RouterParallelRequest
from .types import RouterParallelResult as RouterParallelResult
from .types import SupportsAcompletion as SupportsAcompletion

if TYPE_CHECKING:
    from .parallel_router import ParallelRouter as ParallelRouter

__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted([name for name in globals() if name[0] != "_"] + ["ParallelRouter"])


def __getattr__(name: str) -> object:
    if name == "ParallelRouter":  # a subclass of litellm.Router, whose import takes seconds
        from .parallel_router import ParallelRouter

        return ParallelRouter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
