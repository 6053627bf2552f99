"""The process of a worker: it ends with its driver, and its garbage collector runs less often."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import signal
import threading
import time
from typing import Any, NamedTuple

from parallel_core.journal import process_is_alive

_BETWEEN_LOOKS = 0.25  # seconds


class Driver(NamedTuple):
    """Process that starts workers and gives them calls."""

    machine: str
    process: int

    @classmethod
    def here(cls) -> Driver:
        return cls(platform.node(), os.getpid())

    @property
    def has_ended(self) -> bool:
        """True if the driver is known to have ended; always False for another machine."""
        if self.machine == platform.node():
            return not process_is_alive(self.process)
        return False


def end_with_driver(driver: Driver) -> None:
    """End this process if its driver has ended or one of its main threads has died.

    Call it in the thread of the worker's loop.

    Ray also ends workers after their driver has ended, but some seconds later, and until then calls
    would be billed. Without its main thread or the thread of its loop, the process would stay, and
    the driver would wait for its calls.
    """
    threads = [threading.main_thread(), threading.current_thread()]

    def watch() -> None:
        while not driver.has_ended and all(thread.is_alive() for thread in threads):
            time.sleep(_BETWEEN_LOOKS)
        os._exit(1)

    _restore_default_sigterm()
    threading.Thread(target=watch, daemon=True).start()


def _restore_default_sigterm() -> None:
    """Make SIGTERM end the process. With Ray's handler it stays alive and does nothing.

    Only the main thread may set a handler from Python, and this is another thread, so the C
    function is called.
    """
    # The function does not exist on every system.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        set_handler: Any = ctypes.CDLL(None).signal
        set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        set_handler(signal.SIGTERM, None)  # SIG_DFL


def limit_garbage_collection() -> None:
    """Make the garbage collector skip all existing objects and run less often.

    It would traverse all of litellm again and again, for 0.15 s at a time. Together with the young
    generation, it took 11 % of a worker's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
