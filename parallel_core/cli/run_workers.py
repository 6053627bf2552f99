"""Workers on Ray for the command ``run``: started when there is something to send, and not before.

Importing this imports no Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from parallel_core.config.run_router import RouterConfigError, RunRouter
from parallel_core.control import AdaptiveConcurrency, Concurrency, checked_concurrency
from parallel_core.errors import WorkersLostError
from parallel_core.files import Redactor
from parallel_core.run import RunProgress, RunStop

from .run_view import Painter

if TYPE_CHECKING:
    from parallel_core.ray_engine import RayRouter

# Their texts tell all.
_OWN_ERRORS: Final = (RouterConfigError, WorkersLostError)


class Workers(NamedTuple):
    """What the user asks for.

    Attributes:
        number: of worker processes.
        address: of a Ray cluster; None: Ray is started on this machine.
    """

    number: int
    address: str | None


class WorkersNotStartedError(Exception):
    """There are no workers for a run, and so nothing was sent. The text says why, without keys."""


class RunWorkers:
    """The workers of one run: an async context manager that gives the Router of the run.

    Attributes:
        router: the Router of this process, for checks.
        concurrency: of the run, so that all workers are busy.
    """

    def __init__(
        self,
        router: RunRouter,
        workers: Workers,
        concurrency: Concurrency,
        *,
        stop: RunStop,
        painter: Painter,
        redactor: Redactor,
    ) -> None:
        from parallel_core.ray_engine import RayRouter

        self.router = router.router
        limit = checked_concurrency(concurrency)
        is_adaptive = isinstance(limit, AdaptiveConcurrency)
        self._number = workers.number
        self._workers: RayRouter = RayRouter(
            router.recipe,
            workers=workers.number,
            concurrency=limit.maximum if isinstance(limit, AdaptiveConcurrency) else limit,
            address=workers.address,
            actor_options=None,
        )
        self.concurrency: Concurrency = limit if is_adaptive else self._workers.slots
        self._stop = stop
        self._painter = painter
        self._redactor = redactor
        self._told = 0  # lost workers

    async def __aenter__(self) -> Any:
        """Start them, unless the run is to stop meanwhile: then nothing is sent any more.

        Raises:
            WorkersNotStartedError: they cannot be.
        """
        starting = asyncio.ensure_future(self._workers.start())

        def no_more() -> None:
            starting.cancel()

        self._stop.watch(no_more)
        plural = "s" if self._number > 1 else ""
        try:
            with self._painter.waiting(f"starting {self._number} worker{plural}"):
                await asyncio.wait({starting})
        finally:
            self._stop.watch(None)
            if not starting.done():  # this task is cancelled, not that one
                starting.cancel()
                await asyncio.wait({starting})
        if starting.cancelled():
            return self.router
        error = starting.exception()
        if error is None:
            return self._workers
        if not isinstance(error, Exception):
            raise error
        # Ray raises what it likes.
        kind = "" if isinstance(error, _OWN_ERRORS) else f"{type(error).__name__}: "
        text = self._redactor.redact_secrets(f"{kind}{error}")
        raise WorkersNotStartedError(f"the workers cannot be started: {text}") from error

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tell_losses()
        await self._workers.aclose()

    def progress(self, progress: RunProgress) -> None:
        """Show it, after what there is to tell of the workers."""
        self._tell_losses()
        self._painter.progress(progress)

    def close(self) -> None:
        """The run has ended, maybe before it had workers. Idempotent."""
        self._workers.discard()

    def _tell_losses(self) -> None:
        lost = self._workers.lost_workers
        if lost > self._told:
            self._painter.note(
                f"a worker has died, and is replaced ({lost:,} up to now, "
                f"{self._workers.resent_requests:,} requests sent again)"
            )
        self._told = lost


@contextlib.contextmanager
def quiet_ray() -> Generator[None]:
    """What Ray has to say stays in its logs: the view tells what there is to know."""
    loggers = [logging.getLogger(name) for name in ("ray", "parallel_core")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
