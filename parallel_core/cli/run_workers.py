"""Workers on Ray for the command ``run``. They start when there is something to send.

Importing this module does not import Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from parallel_core.config import Redactor
from parallel_core.config.run_router import RouterConfigError, RunRouter
from parallel_core.control import AdaptiveConcurrency, Concurrency, checked_concurrency
from parallel_core.errors import WorkersLostError
from parallel_core.quantities import counted
from parallel_core.run import RunProgress, RunStop

from .run_view import Painter

if TYPE_CHECKING:
    from parallel_core.ray_engine import RayRouter

# The texts of these errors are complete: the name of the class is not needed.
_OWN_ERRORS: Final = (RouterConfigError, WorkersLostError)


class Workers(NamedTuple):
    """The options of the user for workers.

    Attributes:
        number: number of worker processes.
        address: address of a Ray cluster; None: Ray is started on this machine.
    """

    number: int
    address: str | None


class WorkersNotStartedError(Exception):
    """The workers of a run cannot be started, so nothing was sent. The text has the reason, without
    keys."""


class RunWorkers:
    """The workers of one run: an async context manager that returns the Router of the run.

    Attributes:
        router: the Router of this process, for checks.
        concurrency: concurrency of the run that keeps all workers busy.
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
        self._reported_losses = 0

    async def __aenter__(self) -> Any:
        """Start the workers. If the run is stopped meanwhile, nothing is sent any more.

        Raises:
            WorkersNotStartedError: the workers cannot be started.
        """
        starting = asyncio.ensure_future(self._workers.start())

        def stop_starting() -> None:
            starting.cancel()

        self._stop.watch(stop_starting)
        try:
            with self._painter.waiting(f"starting {counted(self._number, 'worker')}"):
                await asyncio.wait({starting})
        finally:
            self._stop.watch(None)
            if not starting.done():  # this task was cancelled, not the starting task
                starting.cancel()
                await asyncio.wait({starting})
        if starting.cancelled():
            return self.router
        error = starting.exception()
        if error is None:
            return self._workers
        if not isinstance(error, Exception):
            raise error
        # Ray may raise any exception.
        kind = "" if isinstance(error, _OWN_ERRORS) else f"{type(error).__name__}: "
        text = self._redactor.redact_secrets(f"{kind}{error}")
        raise WorkersNotStartedError(f"the workers cannot be started: {text}") from error

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._report_losses()
        await self._workers.aclose()

    def progress(self, progress: RunProgress) -> None:
        """Show the progress, after the losses of workers."""
        self._report_losses()
        self._painter.progress(progress)

    def close(self) -> None:
        """Discard the workers at the end of the run, even if they were not started. Idempotent."""
        self._workers.discard()

    def _report_losses(self) -> None:
        lost, resent = self._workers.lost_workers, self._workers.resent_requests
        if lost > self._reported_losses:
            self._painter.note(
                f"a worker died and was replaced ({lost:,} so far, "
                f"{counted(resent, 'request')} sent again)"
            )
        self._reported_losses = lost


@contextlib.contextmanager
def quiet_ray() -> Generator[None]:
    """Keep Ray's messages in its own log files. The view reports what the user needs to know."""
    loggers = [logging.getLogger(name) for name in ("ray", "parallel_core")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
