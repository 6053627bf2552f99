"""Ray itself: used as it is found, or started on this machine and ended again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from enum import Enum
from typing import Any, cast

from parallel_core.journal import process_is_alive
from parallel_core.uninterrupted import to_the_end

from .fleet import WorkerHandle
from .router_recipe import Recipe
from .worker import Driver, Given, Kind, Message, Pace, Worker

# Answers are small, and are taken at once.
_OBJECT_STORE = 128 * 1024 * 1024  # bytes

_PATIENCE_WITH_A_PROCESS = 2.0  # seconds
_PATIENCE_WITH_A_CLUSTER = 5.0  # seconds
_BETWEEN_LOOKS = 0.005  # seconds

_lock = threading.Lock()


def _ray() -> Any:
    import ray

    return ray


class Entered(Enum):
    """How Ray was found."""

    FOUND = "found"  # connected already, by somebody else
    CONNECTED = "connected"  # to a cluster
    STARTED = "started"  # on this machine


_users = 0  # of the Ray that was started or connected to here
_entered = Entered.FOUND


def enter_ray(address: str | None) -> Entered:
    """Connect to Ray, or start it on this machine. Blocks for seconds.

    Args:
        address: of a cluster, as ``ray.init`` takes it; None: a new one on this machine. A Ray
            that this process is connected to goes before both.

    Returns:
        How it was found; unless somebody else had it, :func:`leave_ray` has to be called.

    Raises:
        ConnectionError: nothing is at the address.
    """
    global _entered, _users
    # It asks the network otherwise whether it may tell of its use.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = _ray()
    with _lock:
        if ray.is_initialized():
            if _users:
                _users += 1
            return _entered if _users else Entered.FOUND
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is not None:
            _check_that_somebody_answers(address)
            options["address"] = address
        else:
            # Ray gives way to everything else on a machine, with 15: beside two busy processes a
            # worker took 20 s to start instead of one. Here its workers are what is to be done.
            os.environ.setdefault("RAY_worker_niceness", "0")
            options |= {
                "address": "local",
                "num_cpus": os.cpu_count() or 1,
                "object_store_memory": _OBJECT_STORE,
                "include_dashboard": False,
            }
        with _terminal_signals_blocked():
            ray.init(**options)
        _silence_its_prints()
        _take_back_excepthook()
        _users = 1
        _entered = Entered.STARTED if address is None else Entered.CONNECTED
        return _entered


async def entered(address: str | None) -> Entered:
    """:func:`enter_ray`, for asyncio. Without an address, RAY_ADDRESS may name one.

    Cancelled, it waits for a Ray that is being started, which can be ended then, and not for a
    cluster, which Ray may try to reach for minutes.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        return await to_the_end(asyncio.to_thread(enter_ray, None))
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    outcome: list[Entered | BaseException] = []
    lock = threading.Lock()
    given_up = False

    def undo() -> None:
        if outcome[0] in (Entered.CONNECTED, Entered.STARTED):
            leave_ray()

    def connect() -> None:
        how: Entered | BaseException
        try:
            how = enter_ray(address)
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            how = error
        with lock:
            outcome.append(how)
            if not given_up:
                loop.call_soon_threadsafe(told.set)
                return
        undo()

    threading.Thread(target=connect, daemon=True).start()
    try:
        await told.wait()
    except asyncio.CancelledError:
        with lock:
            given_up = True
            is_done = bool(outcome)
        if is_done:
            threading.Thread(target=undo).start()
        raise
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


@contextlib.contextmanager
def _terminal_signals_blocked() -> Generator[None]:
    """Block the signals of a terminal in what is started meanwhile, which inherits the mask.

    Ray's processes are in the process group of this one. They block SIGINT alone: a terminal that
    is closed (SIGHUP), Ctrl-\\ or Ctrl-Z would end or stop them, with the calls in flight.
    """
    names = ("SIGINT", "SIGHUP", "SIGQUIT", "SIGTSTP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check_that_somebody_answers(address: str) -> None:
    """Ray itself would try for minutes, and could not be interrupted.

    Raises:
        ConnectionError: nobody does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto", for instance, which Ray finds or refuses
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_WITH_A_CLUSTER).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from error


def _silence_its_prints() -> None:
    """It prints on standard output that a worker has died, also where it shall not log."""
    from ray._private import worker

    cast("Any", worker)._worker_logs_enabled = False


def _take_back_excepthook() -> None:
    """Its own tells the cluster first, and tries for a minute where there is none any more."""
    from ray._private import worker

    module = cast("Any", worker)
    if sys.excepthook is getattr(module, "custom_excepthook", None):
        sys.excepthook = module.normal_excepthook


def leave_ray() -> None:
    """The last one that has entered ends what was started. Blocks for a second."""
    global _users
    ray = _ray()
    with _lock:
        _users -= 1
        if not _users:
            ray.shutdown()


def restore_sigterm() -> None:
    """Ray's handler, which prints a stack, has taken the place of the one that was there.

    That is known to Python still, if Ray was started in another thread. In the main thread it can
    be put back.
    """
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGTERM)
        if handler is not None:  # not one of another language
            signal.signal(signal.SIGTERM, handler)


class RayWorkers:
    """Workers that are actors of Ray.

    Args:
        recipe: of their Routers.
        actor_options: how Ray places them.
    """

    def __init__(self, recipe: Recipe, actor_options: Mapping[str, Any]) -> None:
        ray = _ray()
        self._actor_class: Any = ray.remote(Worker)
        self._recipe: Any = ray.put(recipe)
        self._options = {
            "scheduling_strategy": "SPREAD",
            **actor_options,
            "max_restarts": 0,
            "max_task_retries": 0,
        }

    def spawn(self, concurrency: int, pace: Pace) -> WorkerHandle:
        actor_class = self._actor_class.options(**self._options)
        return _RayWorker(actor_class.remote(self._recipe, concurrency, pace, Driver.here()))

    def why_none_starts(self) -> str:
        ray = _ray()
        free = ray.available_resources().get("CPU", 0.0)
        return (
            f"{free:g} CPUs of the cluster are free; take fewer workers, or other actor_options, "
            "and look into the logs of Ray (session_latest/logs)"
        )


class _RayWorker:
    """A worker that is an actor of Ray. What becomes of it is told by its messages alone."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._process: int | None = None  # where it is on this machine

    async def messages(self) -> AsyncGenerator[list[Message], None]:
        async for reference in self._actor.run.options(num_returns="streaming").remote():
            messages: list[Message] = await reference
            for kind, number, machine in messages[:1]:
                if kind is Kind.READY and machine.decode() == platform.node():
                    self._process = number
            yield messages

    def give(self, sequence: int, given: Given) -> None:
        with contextlib.suppress(Exception):
            self._actor.give.remote(sequence, given)

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self._actor.stop.remote()

    def kill(self) -> None:
        ray = _ray()
        with contextlib.suppress(Exception):
            ray.kill(self._actor)

    async def gone(self) -> None:
        # Of another machine, Ray tells no more than that it has been told.
        if self._process is None:
            return
        until = time.monotonic() + _PATIENCE_WITH_A_PROCESS
        while process_is_alive(self._process) and time.monotonic() < until:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(_BETWEEN_LOOKS)
