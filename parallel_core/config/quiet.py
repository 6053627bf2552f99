"""Silence logs and warnings of libraries while a command runs."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Generator


@contextlib.contextmanager
def only_our_words() -> Generator[None]:
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
