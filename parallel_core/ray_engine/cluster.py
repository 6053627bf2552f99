"""Connect to Ray, or start it on this machine and end it."""

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

from .messages import Given, Kind, Message, Pace, WorkerHandle
from .router_recipe import Recipe
from .worker import Worker
from .worker_process import Driver

# Answers are small and are fetched at once.
_OBJECT_STORE = 128 * 1024 * 1024  # bytes

_PATIENCE_WITH_A_PROCESS = 2.0  # seconds
_PATIENCE_WITH_A_CLUSTER = 5.0  # seconds
_BETWEEN_LOOKS = 0.005  # seconds

_lock = threading.Lock()


def _ray() -> Any:
    import ray

    return ray


class Entered(Enum):
    """Result of :func:`enter_ray`."""

    FOUND = "found"  # other code in this process had connected already
    CONNECTED = "connected"  # connected to a cluster
    STARTED = "started"  # started on this machine


_users = 0  # users of the Ray that this module started or connected to
_entered = Entered.FOUND


def enter_ray(address: str | None) -> Entered:
    """Connect to Ray, or start it on this machine. Blocks for seconds.

    Args:
        address: address of a cluster, as for ``ray.init``; None: start Ray on this machine. A Ray
            to which this process is connected takes precedence over both.

    Returns:
        The way in which Ray was entered. Unless it is FOUND, call :func:`leave_ray` later.

    Raises:
        ConnectionError: no cluster answers at the address.
    """
    global _entered, _users
    # Without this, Ray uses the network to find out whether it may report its usage.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = _ray()
    with _lock:
        if ray.is_initialized():
            if _users:
                _users += 1
            return _entered if _users else Entered.FOUND
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is not None:
            _check_cluster_answers(address)
            options["address"] = address
        else:
            # Ray's default niceness is 15. With it, a worker took 20 s to start instead of 1 s
            # beside two busy processes. Here the workers do the main work.
            os.environ.setdefault("RAY_worker_niceness", "0")
            options |= {
                "address": "local",
                "num_cpus": os.cpu_count() or 1,
                "object_store_memory": _OBJECT_STORE,
                "include_dashboard": False,
            }
        with _terminal_signals_blocked():
            ray.init(**options)
        _silence_ray_prints()
        _restore_excepthook()
        _users = 1
        _entered = Entered.STARTED if address is None else Entered.CONNECTED
        return _entered


async def enter_ray_async(address: str | None) -> Entered:
    """Do the same as :func:`enter_ray` without blocking. RAY_ADDRESS is the default address.

    When cancelled, it waits for a Ray that is being started, so that it can be ended. It does not
    wait for a cluster, because Ray may try to reach it for minutes.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is None:
        return await to_the_end(asyncio.to_thread(enter_ray, None))
    loop = asyncio.get_running_loop()
    connected = asyncio.Event()
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
        except BaseException as error:  # noqa: BLE001 - raised in the waiting task
            how = error
        with lock:
            outcome.append(how)
            if not given_up:
                loop.call_soon_threadsafe(connected.set)
                return
        undo()

    threading.Thread(target=connect, daemon=True).start()
    try:
        await connected.wait()
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
    """Block the signals of a terminal in processes that start in this block: they inherit the mask.

    Ray's processes are in the process group of this process. They block only SIGINT: closing the
    terminal (SIGHUP), Ctrl-\\ or Ctrl-Z would end or stop them and their calls in flight.
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


def _check_cluster_answers(address: str) -> None:
    """Check that a server accepts connections at an address.

    Ray itself would try for minutes and could not be interrupted.

    Raises:
        ConnectionError: no server answers.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # for instance "auto", which Ray resolves or refuses
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_WITH_A_CLUSTER).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error}): start one there (ray start --head), "
            "or correct the address"
        ) from error


def _silence_ray_prints() -> None:
    """Stop Ray from printing worker deaths on standard output, which it does even without logs."""
    from ray._private import worker

    cast("Any", worker)._worker_logs_enabled = False


def _restore_excepthook() -> None:
    """Restore the excepthook that Ray replaced.

    Ray's hook first reports the error to the cluster. If the cluster is gone, it tries for a
    minute.
    """
    from ray._private import worker

    module = cast("Any", worker)
    if sys.excepthook is getattr(module, "custom_excepthook", None):
        sys.excepthook = module.normal_excepthook


def leave_ray() -> None:
    """Give up one use of Ray. The last user shuts it down, which blocks for a second."""
    global _users
    ray = _ray()
    with _lock:
        _users -= 1
        if not _users:
            ray.shutdown()


def restore_sigterm() -> None:
    """Restore the SIGTERM handler that Ray replaced with its own, which prints a stack.

    If Ray was started in another thread, Python still knows the previous handler. Only the main
    thread can restore it.
    """
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGTERM)
        if handler is not None:  # None: a handler that was not set from Python
            signal.signal(signal.SIGTERM, handler)


class RayWorkers:
    """Source of workers that are Ray actors.

    Args:
        recipe: recipe of their Routers.
        actor_options: options with which Ray places the actors.
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
            f"{free:g} CPUs of the cluster are free; use fewer workers or other actor_options, "
            "and read the logs of Ray (session_latest/logs)"
        )


class _RayWorker:
    """A worker that is a Ray actor. Only its messages report its state."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._process: int | None = None  # process id, if the worker is on this machine

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
        # For another machine, Ray only confirms that it received the order to kill the worker.
        if self._process is None:
            return
        until = time.monotonic() + _PATIENCE_WITH_A_PROCESS
        while process_is_alive(self._process) and time.monotonic() < until:  # noqa: ASYNC110 - another process sets no event
            await asyncio.sleep(_BETWEEN_LOOKS)
