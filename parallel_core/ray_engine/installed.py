"""What is known of workers without importing Ray: that takes a second."""

from __future__ import annotations

import importlib.util
from typing import Final

MOST_WORKERS: Final = 10_000
"""Workers of one driver: more than it can keep busy by far."""

HOW_TO_INSTALL: Final = "pip install 'parallel_core[ray]'"


def is_ray_installed() -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec("ray") is not None


def require_ray() -> None:
    """Refuse to go on where Ray is not installed.

    Raises:
        ModuleNotFoundError: says how to install it.
    """
    if not is_ray_installed():
        raise ModuleNotFoundError(f"workers need Ray: {HOW_TO_INSTALL}", name="ray")
