"""Controls of calls and batches: timeouts, retries, budgets, limits, hedges, fairness, progress.

A control that wraps a call is a function from call to call, so that one version serves trio and
asyncio. One that orders requests hands them to the engine in another order. A control asks the
engine through the protocols in ``protocols``; ``compose`` puts the controls around each other.
"""

from .adaptive_limit import AdaptiveConcurrency, LimitChange
from .budget import Budget, held_reservation
from .call import Call, RetryLater
from .checks import checked_callback, checked_count, checked_flag, checked_number
from .compose import CallTraits, Composition, compose, needs_tokens
from .failover import Failover
from .hedge import Hedge
from .live_output import LinePace, is_live
from .local_limits import (
    allow_connections,
    fit_open_files,
    most_calls,
    raise_open_files,
    warn_of_connections,
)
from .metering import BatchMeter, ItemMeter, RouterMeter
from .options import BatchOptions, Concurrency, Controls, check_controls, checked_concurrency
from .prices import UnpricedError
from .progress import BudgetUse, Delay, Progress, Straggler, Waiting, eta_range
from .progress_texts import (
    cost_in_words,
    cost_of_budget,
    eta_in_words,
    figures_in_words,
    held_up_in_words,
    measured_rates,
)
from .protocols import Attachment, Engine, Group, Scope
from .rate_limit import RateLimit
from .reported_usage import cost_reported, tokens_of
from .retry import Retry, RouterTraits
from .router_rates import KINDS, ModelRates, RateKind, rates_of
from .stopping import Stopping
from .timeout import Timeouts
from .watching import UsageTally

__all__ = [
    "KINDS",
    "AdaptiveConcurrency",
    "Attachment",
    "BatchMeter",
    "BatchOptions",
    "Budget",
    "BudgetUse",
    "Call",
    "CallTraits",
    "Composition",
    "Concurrency",
    "Controls",
    "Delay",
    "Engine",
    "Failover",
    "Group",
    "Hedge",
    "ItemMeter",
    "LimitChange",
    "LinePace",
    "ModelRates",
    "Progress",
    "RateKind",
    "RateLimit",
    "Retry",
    "RetryLater",
    "RouterMeter",
    "RouterTraits",
    "Scope",
    "Stopping",
    "Straggler",
    "Timeouts",
    "UnpricedError",
    "UsageTally",
    "Waiting",
    "allow_connections",
    "check_controls",
    "checked_callback",
    "checked_concurrency",
    "checked_count",
    "checked_flag",
    "checked_number",
    "compose",
    "cost_in_words",
    "cost_of_budget",
    "cost_reported",
    "eta_in_words",
    "eta_range",
    "figures_in_words",
    "fit_open_files",
    "held_reservation",
    "held_up_in_words",
    "is_live",
    "measured_rates",
    "most_calls",
    "needs_tokens",
    "raise_open_files",
    "rates_of",
    "tokens_of",
    "warn_of_connections",
]
