"""What a control asks of its engine, without a batch."""

from __future__ import annotations

import asyncio
from typing import Any

import sniffio

from parallel_core.engine import AsyncioBackend
from parallel_core.engine.trio_backend import TrioBackend


def engine_here() -> Any:
    """Scopes, groups and the clock of the library that is running."""
    if sniffio.current_async_library() == "trio":
        return TrioBackend()
    backend = AsyncioBackend()
    backend.loop = asyncio.get_running_loop()
    return backend


def begun(control: Any) -> Any:
    """A control whose batch has begun."""
    control.begin(engine_here())
    return control


def engine_of(batch: Any) -> Any:
    """The engine of a batch that is running."""
    return batch._engine
