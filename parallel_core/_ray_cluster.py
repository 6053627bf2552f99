"""Ray itself: used as it is found, or started on this machine and ended again."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from typing import Any

# Answers are small, and are taken at once.
_OBJECT_STORE = 128 * 1024 * 1024  # bytes

_lock = threading.Lock()
_users = 0  # of the Ray that was started or connected to here


def require_ray() -> None:
    """Refuse to go on where Ray is not installed.

    Raises:
        ModuleNotFoundError: says how to install it.
    """
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError(
            "workers need Ray: pip install 'parallel_core[ray]'", name="ray"
        )


def enter_ray(address: str | None, workers: int) -> bool:
    """Connect to Ray, or start it on this machine. Blocks for seconds.

    Args:
        address: of a cluster, as ``ray.init`` takes it; None: the one that this process is
            connected to, the one that RAY_ADDRESS names, else a new one on this machine.
        workers: so many shall have a place on this machine.

    Returns:
        Whether :func:`leave_ray` has to be called.

    Raises:
        ConnectionError: nothing is at the address.
    """
    global _users
    # It asks the network otherwise whether it may tell of its use.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    with _lock:
        if ray.is_initialized():
            if _users:
                _users += 1
            return bool(_users)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        address = address or os.environ.get("RAY_ADDRESS") or None
        if address is not None:
            options["address"] = address
        else:
            options |= {
                "address": "local",
                "num_cpus": max(workers, os.cpu_count() or 1),
                "object_store_memory": _OBJECT_STORE,
                "include_dashboard": False,
            }
        ray.init(**options)
        _users = 1
        return True


def leave_ray() -> None:
    """The last one that has entered ends what was started. Blocks for a second."""
    global _users
    import ray

    with _lock:
        _users -= 1
        if not _users:
            ray.shutdown()
