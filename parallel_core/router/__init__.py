"""Turn one request into one call of a Router: checks, calls, streams, usage, prices."""

from .answers import (
    MOST_REASONS,
    OTHER_REASONS,
    PROVIDER_BODY,
    Finish,
    add_finish,
    describe_finishes,
    finish_of,
    read_provider_json,
    require_choices,
)
from .call import (
    BATCH_METADATA,
    DIRECT,
    DIRECT_COUNTS,
    INDEX,
    NOT_CHAT,
    OPERATION,
    STALL_TIMEOUT,
    TIMEOUT,
    WorkerOptions,
    check_callable,
    request_call,
    send_metadata_to_store,
)
from .cost_estimate import CostEstimate, estimate_cost
from .direct import direct_lane
from .direct_counts import DirectCounts, HasDirectCounts
from .first_call import preparation
from .operation_checks import RequestChecks
from .request_checks import as_request, check_all, is_checked_as_a_whole, problem_of_chat
from .router_facts import (
    RETRIED,
    RouterOverrides,
    calls_run_in_workers,
    check_models,
    model_groups,
    parallel_limits,
    router_overrides,
    router_traits,
    unknown_models,
)
from .streaming import CHUNKS_PER_SLOT, Streams, completion_result, refuse_streams, stream_end

__all__ = [
    "BATCH_METADATA",
    "CHUNKS_PER_SLOT",
    "DIRECT",
    "DIRECT_COUNTS",
    "INDEX",
    "MOST_REASONS",
    "NOT_CHAT",
    "OPERATION",
    "OTHER_REASONS",
    "PROVIDER_BODY",
    "RETRIED",
    "STALL_TIMEOUT",
    "TIMEOUT",
    "CostEstimate",
    "DirectCounts",
    "Finish",
    "HasDirectCounts",
    "RequestChecks",
    "RouterOverrides",
    "Streams",
    "WorkerOptions",
    "add_finish",
    "as_request",
    "calls_run_in_workers",
    "check_all",
    "check_callable",
    "check_models",
    "completion_result",
    "describe_finishes",
    "direct_lane",
    "estimate_cost",
    "finish_of",
    "is_checked_as_a_whole",
    "model_groups",
    "parallel_limits",
    "preparation",
    "problem_of_chat",
    "read_provider_json",
    "refuse_streams",
    "request_call",
    "require_choices",
    "router_overrides",
    "router_traits",
    "send_metadata_to_store",
    "stream_end",
    "unknown_models",
]
