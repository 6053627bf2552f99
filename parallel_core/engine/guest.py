"""The trio run on the asyncio loops of a thread.

A thread can have one trio run at a time, so all batches of a thread share one: the first batch
starts it in guest mode, the last batch ends it. If the thread already runs trio (another library's
guest run, or asyncio under trio-asyncio), that run is used and left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import outcome
import trio

from .waiting import Waiters


class CarriedBatch(Protocol):
    """A batch, as seen by the trio run that carries it."""

    async def run(self) -> None:
        """Run the batch, in trio."""
        ...

    def abort(self, reason: str) -> None:
        """Cancel the batch: its carrier is being shut down."""
        ...

    def lose_loop(self) -> None:
        """End the batch: its event loop was closed and runs no task any more."""
        ...

    def abandon(self, error: BaseException) -> None:
        """Give the batch up: its trio run has crashed and cannot finish it."""
        ...


class _ThreadState(threading.local):
    run: TrioRun | None = None


_thread = _ThreadState()


class TrioRun:
    """The trio run of a thread: our own guest run, or one that already existed."""

    def __init__(self, *, ours: bool) -> None:
        self.ours = ours
        self.ended = False
        self._ending = False
        self._batch_count = 0
        self._idle = trio.Event()
        self.carriers: dict[asyncio.AbstractEventLoop, Carrier] = {}
        self.token: trio.lowlevel.TrioToken
        # Trio passes callbacks to run "on the host loop". They wait here, and the first loop of
        # this thread that makes a pass runs them. So the trio run continues on another loop if one
        # is stopped or closed.
        self._callbacks: deque[Callable[[], object]] = deque()
        self._context = contextvars.Context()

    @classmethod
    def of_this_thread(cls, loop: asyncio.AbstractEventLoop) -> TrioRun:
        run = _thread.run
        if trio.lowlevel.in_trio_run():
            token = trio.lowlevel.current_trio_token()
            if run is None or run.token is not token:
                run = _thread.run = cls(ours=False)
                run.token = token
        else:
            run = cls(ours=True)
            try:
                run._start(loop)
            except BaseException:
                run.ended = True
                run.carriers[loop].notify()
                raise
            _thread.run = run
        return run

    async def join(self, loop: asyncio.AbstractEventLoop, batch: CarriedBatch) -> Carrier | None:
        """Carry a batch; return None if this run is ending and the next one must be joined."""
        self.outlive_closed_loops()
        carrier = self.carriers.get(loop) or self._add_carrier(loop)
        if self._ending:
            await carrier.changed.wait()
            return None
        self._batch_count += 1
        carrier.add(batch)
        trio.lowlevel.spawn_system_task(self._carry, carrier, batch, name="parallel_core batch")
        return carrier

    def _add_carrier(self, loop: asyncio.AbstractEventLoop) -> Carrier:
        carrier = self.carriers[loop] = Carrier(loop, self)
        if self._callbacks:  # left over by a loop that was closed
            carrier.wake(loop.call_soon)
        return carrier

    async def _carry(self, carrier: Carrier, batch: CarriedBatch) -> None:
        try:
            with carrier.batches[batch]:
                await batch.run()
        finally:
            self._batch_count -= 1
            if not self._batch_count:
                self._idle.set()
            carrier.remove(batch)

    @property
    def idle(self) -> bool:
        return not self._batch_count

    # --- a guest run of our own ---

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._add_carrier(loop)
        # Use a separate context: the run outlives the batch that starts it.
        self._context.run(
            _leaving_sigint_alone,
            lambda: trio.lowlevel.start_guest_run(
                self._main,
                run_sync_soon_threadsafe=self._run_sync_soon_threadsafe,
                run_sync_soon_not_threadsafe=self._run_sync_soon_not_threadsafe,
                done_callback=self._done,
                host_uses_signal_set_wakeup_fd=True,
            ),
        )
        self.token = trio.lowlevel.current_trio_token()

    async def _main(self) -> None:
        while self._batch_count:
            self._idle = trio.Event()
            try:
                await self._idle.wait()
            except KeyboardInterrupt as interrupt:
                self._raise_on_loop(interrupt)
        # From here on the run unwinds, over several passes of the loop. A batch that comes now must
        # wait for its end.
        self._ending = True

    def _done(self, result: outcome.Outcome[None]) -> None:
        self.ended = True
        if _thread.run is self:
            _thread.run = None
        if isinstance(result, outcome.Error):
            self._broke(result.error)
        for carrier in list(self.carriers.values()):
            carrier.notify()

    def _broke(self, error: BaseException) -> None:
        for carrier in self.carriers.values():
            for batch in list(carrier.batches):
                batch.abandon(error)
                carrier.remove(batch)
        interrupt = error if isinstance(error, KeyboardInterrupt) else error.__cause__
        if isinstance(interrupt, KeyboardInterrupt):
            self._raise_on_loop(interrupt)

    def _raise_on_loop(self, interrupt: KeyboardInterrupt) -> None:
        """Raise an interrupt in the loop, because SIGINT has hit a trio step instead."""
        asyncio.get_running_loop().call_soon(raise_, interrupt)

    def _run_sync_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        self._callbacks.append(callback)
        for carrier in list(self.carriers.values()):
            carrier.wake(carrier.loop.call_soon_threadsafe)

    def _run_sync_soon_not_threadsafe(self, callback: Callable[[], object]) -> None:
        self._callbacks.append(callback)
        for carrier in list(self.carriers.values()):
            carrier.wake(carrier.loop.call_soon)

    def run_callbacks(self) -> None:
        """Run the waiting callbacks of trio. The first loop that makes a pass calls this."""
        for _ in range(len(self._callbacks)):
            self._context.run(self._callbacks.popleft())

    def outlive_closed_loops(self) -> None:
        """End the batches of closed loops, on the passes of open loops."""
        for other, carrier in list(self.carriers.items()):
            if other.is_closed():
                del self.carriers[other]
                for batch, scope in list(carrier.batches.items()):
                    batch.lose_loop()
                    scope.cancel()
                close_task(carrier.keeper)


class Carrier:
    """An asyncio loop that carries batches. Its keeper task makes the shutdown wait for them.

    ``asyncio.run`` ends by cancelling every task and waiting for all of them. It cancels the keeper
    too, which distinguishes a shutdown from the cancellation of a single call. The keeper ends only
    after the batches and their trio run, so that they end in order.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, run: TrioRun) -> None:
        self.loop = loop
        self.batches: dict[CarriedBatch, trio.CancelScope] = {}
        self.changed = Waiters(asyncio.Event)
        self._run = run
        self._woken = False
        keeping = self._keep()
        keeping.send(None)  # a task that is cancelled before its first step would never run it
        self.keeper = asyncio.Task(keeping, loop=loop, name="parallel_core keeper")
        self.keeper.add_done_callback(lambda _: self._retire())

    @property
    def shutting_down(self) -> bool:
        """True if the tasks of the loop are being cancelled."""
        return self.keeper.cancelling() > 0 or self.keeper.cancelled()

    @property
    def settled(self) -> bool:
        """True if a finished batch need not wait: other batches run here, or all has ended."""
        return bool(self.batches) or self.keeper.done()

    def wake(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """Make the loop run the callbacks of trio on its next pass. Call it from any thread."""
        # `_woken` is checked after a callback is added, and reset before the callbacks run. So no
        # callback is missed, and a stopped loop does not collect wake-ups.
        if self._woken:
            return
        self._woken = True
        with contextlib.suppress(RuntimeError):  # the loop is closed: another one will run them
            call_soon(self._run_callbacks)

    def _run_callbacks(self) -> None:
        self._woken = False
        try:
            self._run.run_callbacks()
        except BaseException:
            self.wake(self.loop.call_soon)  # an interrupt: run the rest on the next pass
            raise

    def add(self, batch: CarriedBatch) -> None:
        self.batches[batch] = trio.CancelScope()
        self.notify()

    def remove(self, batch: CarriedBatch) -> None:
        self.batches.pop(batch, None)
        self.notify()

    def notify(self) -> None:
        if not self.loop.is_closed():
            self.changed.wake_all()

    async def _keep(self) -> None:
        pause: Awaitable[None] = asyncio.sleep(0)
        while True:
            try:
                await pause
            except asyncio.CancelledError:
                for batch in list(self.batches):
                    batch.abort("its event loop is being shut down")
            if not (self.batches or (self._run.ours and self._run.idle and not self._run.ended)):
                return
            pause = self.changed.wait()

    def _retire(self) -> None:
        if self._run.carriers.get(self.loop) is self:
            del self._run.carriers[self.loop]
        self.notify()


def outlive_closed_loops() -> None:
    """End the batches of closed loops of this thread, on the passes of the running loop."""
    run = _thread.run
    if run is not None:
        run.outlive_closed_loops()


async def join_trio_run(batch: CarriedBatch) -> Carrier:
    """Make the trio run of this thread carry a batch, on the running loop."""
    loop = asyncio.get_running_loop()
    while True:
        carrier = await TrioRun.of_this_thread(loop).join(loop, batch)
        if carrier is not None:
            return carrier


def _leaving_sigint_alone(start: Callable[[], None]) -> None:
    """Start the run and leave SIGINT to the loop: trio would replace Python's default handler."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        start()
        return
    signal.signal(signal.SIGINT, lambda number, frame: signal.default_int_handler(number, frame))
    try:
        start()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def raise_(exception: BaseException) -> None:
    raise exception


def close_task(task: asyncio.Task[None]) -> None:
    """Close the coroutine of a task whose loop is closed: its clean-up runs now, or never."""
    state: Any = task
    state._log_destroy_pending = False  # as asyncio does for tasks that stay unfinished
    coroutine = task.get_coro()
    if isinstance(coroutine, Coroutine):
        with contextlib.suppress(Exception):  # there is no consumer to report it to
            coroutine.close()
