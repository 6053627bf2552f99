"""Silence logs, warnings and advice of libraries."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Generator


@contextlib.contextmanager
def silence_libraries() -> Generator[None]:
    """Silence the logs of litellm and asyncio, and all Python warnings, until the block is left.

    They quote prompts, answers and keys. If ``LITELLM_LOG`` is set, nothing is silenced.
    """
    loggers = [
        logging.getLogger(name)
        for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "asyncio")
    ]
    silent = [logger for logger in loggers if not logger.disabled]
    with warnings.catch_warnings():
        if not os.environ.get("LITELLM_LOG"):
            warnings.simplefilter("ignore")
            for logger in silent:
                logger.disabled = True
        try:
            yield
        finally:
            for logger in silent:
                logger.disabled = False


@contextlib.contextmanager
def quiet_litellm() -> Generator[None]:
    """Keep litellm from printing advice to the terminal, until the block is left."""
    import litellm

    before = litellm.suppress_debug_info
    litellm.suppress_debug_info = True  # otherwise it prints a list of its providers
    try:
        yield
    finally:
        litellm.suppress_debug_info = before
