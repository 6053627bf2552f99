"""The command ``parallel-core``."""

from .commands import app, main

__all__ = ["app", "main"]
