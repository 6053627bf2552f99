"""Facts about workers that need no import of Ray, which takes a second."""

from __future__ import annotations

import importlib.util
from typing import Final

MOST_WORKERS: Final = 10_000
"""Maximum number of workers of one driver: far more than it can keep busy."""

HOW_TO_INSTALL: Final = "pip install 'parallel_core[ray]'"
"""Command that installs Ray."""


def is_ray_installed() -> bool:
    """Return True if Ray can be imported."""
    return importlib.util.find_spec("ray") is not None


def require_ray() -> None:
    """Check that Ray is installed.

    Raises:
        ModuleNotFoundError: Ray is not installed. The message says how to install it.
    """
    if not is_ray_installed():
        raise ModuleNotFoundError(f"workers need Ray: {HOW_TO_INSTALL}", name="ray")
