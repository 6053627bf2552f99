"""Parts of the engine: the handle, the source, the backlog, waiting, timers, the guest run.

:mod:`parallel_core.nursery_engine` combines them. Trio and asyncio differ in their backend.
"""

from .asyncio_backend import AsyncioBackend
from .asyncio_scopes import TaskScope
from .backend import Backend, Event, Tasks
from .backlog import DrawOrder, Entry, Resends
from .call_errors import describe, without_engine_frames
from .guest import Carrier, join_trio_run, outlive_closed_loops
from .handle import ParallelBatch, attach_results, collect, raise_crash, results_of
from .plan import BatchPlan, ResultT
from .source import NOTHING, Source
from .timers import Timers
from .trio_backend import TrioBackend, only_member, without_cancelled
from .waiting import Semaphore, Waiters

__all__ = [
    "NOTHING",
    "AsyncioBackend",
    "Backend",
    "BatchPlan",
    "Carrier",
    "DrawOrder",
    "Entry",
    "Event",
    "ParallelBatch",
    "Resends",
    "ResultT",
    "Semaphore",
    "Source",
    "TaskScope",
    "Tasks",
    "Timers",
    "TrioBackend",
    "Waiters",
    "attach_results",
    "collect",
    "describe",
    "join_trio_run",
    "only_member",
    "outlive_closed_loops",
    "raise_crash",
    "results_of",
    "without_cancelled",
    "without_engine_frames",
]
