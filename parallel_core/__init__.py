"""Send many LLM requests at once through a litellm Router; nothing leaks, nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .api import (
    iter_parallel_acompletions,
    iter_parallel_map,
    iter_parallel_streams,
    parallel_acompletions,
    parallel_completions,
    parallel_map,
)
from .control import (
    AdaptiveConcurrency,
    Budget,
    BudgetUse,
    Concurrency,
    Controls,
    Delay,
    Hedge,
    LimitChange,
    Progress,
    RateLimit,
    Retry,
    Straggler,
    Waiting,
)
from .engine import ParallelBatch, results_of
from .errors import (
    BatchAbortedError,
    BatchTimeoutError,
    BudgetExceededError,
    CallCancelledError,
    ChangedRequestsError,
    DifferentRunError,
    EmptyResponseError,
    InputFileError,
    InvalidRequestError,
    JournalError,
    JournalInUseError,
    NotSentError,
    PartialAnswerError,
    RemoteCallError,
    RequestTimeoutError,
    RouterHostClosedError,
    StreamInterruptedError,
    StreamStalledError,
)
from .failures import Failure, FailureKind
from .failures import classify as classify_failure
from .files import FileResult, InputFile, read_results, to_pandas, to_polars
from .journal import Journal, JournalEntry
from .litellm_patch import install, uninstall
from .operations import iter_parallel_calls, parallel_calls, parallel_calls_sync
from .router_hosts import (
    RouterHost,
    RouterHostName,
    RouterStream,
    open_router_host,
    open_trio_asyncio,
)
from .run import FailureGroup, RunOpening, RunProgress, RunStop, RunStraggler, RunSummary, run_file
from .types import (
    Meter,
    ParallelResult,
    RouterParallelRequest,
    RouterParallelResult,
    StreamChunk,
    StreamEnd,
    SupportsAcompletion,
    Usage,
)

if TYPE_CHECKING:
    from .litellm_patch.parallel_router import ParallelRouter as ParallelRouter

# Without ParallelRouter: `from parallel_core import *` is to stay light, too.
__all__ = [
    "AdaptiveConcurrency",
    "BatchAbortedError",
    "BatchTimeoutError",
    "Budget",
    "BudgetExceededError",
    "BudgetUse",
    "CallCancelledError",
    "ChangedRequestsError",
    "Concurrency",
    "Controls",
    "Delay",
    "DifferentRunError",
    "EmptyResponseError",
    "Failure",
    "FailureGroup",
    "FailureKind",
    "FileResult",
    "Hedge",
    "InputFile",
    "InputFileError",
    "InvalidRequestError",
    "Journal",
    "JournalEntry",
    "JournalError",
    "JournalInUseError",
    "LimitChange",
    "Meter",
    "NotSentError",
    "ParallelBatch",
    "ParallelResult",
    "PartialAnswerError",
    "Progress",
    "RateLimit",
    "RemoteCallError",
    "RequestTimeoutError",
    "Retry",
    "RouterHost",
    "RouterHostClosedError",
    "RouterHostName",
    "RouterParallelRequest",
    "RouterParallelResult",
    "RouterStream",
    "RunOpening",
    "RunProgress",
    "RunStop",
    "RunStraggler",
    "RunSummary",
    "Straggler",
    "StreamChunk",
    "StreamEnd",
    "StreamInterruptedError",
    "StreamStalledError",
    "SupportsAcompletion",
    "Usage",
    "Waiting",
    "classify_failure",
    "install",
    "iter_parallel_acompletions",
    "iter_parallel_calls",
    "iter_parallel_map",
    "iter_parallel_streams",
    "open_router_host",
    "open_trio_asyncio",
    "parallel_acompletions",
    "parallel_calls",
    "parallel_calls_sync",
    "parallel_completions",
    "parallel_map",
    "read_results",
    "results_of",
    "run_file",
    "to_pandas",
    "to_polars",
    "uninstall",
]
__version__ = "0.1.0"


def __dir__() -> list[str]:
    return sorted([*__all__, "ParallelRouter", "__version__"])


def __getattr__(name: str) -> object:
    if name == "ParallelRouter":  # a subclass of litellm.Router, whose import takes seconds
        from .litellm_patch.parallel_router import ParallelRouter

        return ParallelRouter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
