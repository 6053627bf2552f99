"""Parts of the engine: the handle, the source, the backlog, waiting, timers, the guest run.

:mod:`parallel_core.nursery_engine` combines them. Trio and asyncio differ in their backend.
"""

from .asyncio_backend import AsyncioBackend, AsyncioTasks
from .asyncio_scopes import TaskScope
from .backend import Backend, Event, Shield, TaskEnded, Tasks
from .backlog import Entry, InputOrder, Resends
from .failure import as_the_calls_own, describe
from .guest import Carrier, close_task, join_trio_run, outlive_closed_loops, raise_
from .handle import ParallelBatch, attach_results, collect, raise_crash, results_of
from .plan import BatchPlan, ResultT
from .source import NOTHING, Source
from .timers import Timers
from .trio_backend import TrioBackend, only_member, without_cancelled
from .waiting import Semaphore, Waiters

__all__ = [
    "NOTHING",
    "AsyncioBackend",
    "AsyncioTasks",
    "Backend",
    "BatchPlan",
    "Carrier",
    "Entry",
    "Event",
    "InputOrder",
    "ParallelBatch",
    "Resends",
    "ResultT",
    "Semaphore",
    "Shield",
    "Source",
    "TaskEnded",
    "TaskScope",
    "Tasks",
    "Timers",
    "TrioBackend",
    "Waiters",
    "as_the_calls_own",
    "attach_results",
    "close_task",
    "collect",
    "describe",
    "join_trio_run",
    "only_member",
    "outlive_closed_loops",
    "raise_",
    "raise_crash",
    "results_of",
    "without_cancelled",
]
