"""What commands show is what they say themselves."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Generator


@contextlib.contextmanager
def only_our_words() -> Generator[None]:
    """What litellm logs, and what pydantic warns of, quotes prompts, answers and keys.

    Who sets ``LITELLM_LOG`` wants to see it.
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
