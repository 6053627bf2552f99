"""What litellm's first call in a process costs: 0.5 to 2 s of imports, made before the first batch.

On the event loop they would stop every call in flight, and use up the timeouts of the first ones.
"""

from __future__ import annotations

import asyncio
import datetime
import importlib
import inspect
import logging
import sys
import threading
import uuid
from collections.abc import Callable
from typing import Any, Final

from parallel_core.router_hosts import plain_loop_factory

from .call import unwrap_router

logger = logging.getLogger("parallel_core")

_MODEL: Final = "parallel-core-never-sent"
_MESSAGES: Final = [{"role": "user", "content": "never sent"}]

_lock = threading.Lock()
_is_done = False


def preparation(router: object) -> Callable[[], None] | None:
    """Return what imports all that a call needs; None if that is done, or litellm is not called.

    The function blocks: call it in a thread.
    """
    return None if _is_done or not _is_of_litellm(unwrap_router(router)) else import_for_calls


def import_for_calls() -> None:
    """Have litellm import what its calls import, once in a process. It sends nothing.

    What litellm imports differs from release to release, so litellm makes a call: one whose answer
    it is given, on a loop of its own, without the wrapper that runs callbacks and counts.
    """
    global _is_done
    with _lock:
        if _is_done:
            return
        _is_done = True  # also if it fails: the first call imports the rest then
        try:
            with asyncio.Runner(loop_factory=plain_loop_factory()) as runner:
                runner.run(_call_without_callbacks())
        except Exception:  # of any litellm, whose inside this is
            logger.debug("litellm's imports could not be made ahead", exc_info=True)


async def _call_without_callbacks() -> None:
    from litellm.litellm_core_utils.litellm_logging import Logging

    class SilentLogging(Logging):  # these two run the input callbacks of the process
        def pre_call(self, *_: object, **__: object) -> None: ...

        def post_call(self, *_: object, **__: object) -> None: ...

    main: Any = importlib.import_module("litellm.main")
    acompletion: Any = inspect.unwrap(main.acompletion)
    number = uuid.uuid4().hex
    await acompletion(
        model=f"openai/{_MODEL}",
        messages=_MESSAGES,
        mock_response="never sent",  # older releases send a call whose answer is empty
        api_base="http://parallel-core.invalid",  # reserved: no such host can be (RFC 6761)
        api_key="none",
        # Given one that nobody runs, litellm makes none with the callbacks of the process.
        litellm_logging_obj=SilentLogging(
            model=_MODEL,
            messages=_MESSAGES,
            stream=False,
            call_type="acompletion",
            start_time=datetime.datetime.now(),
            litellm_call_id=number,
            function_id=number,
        ),
    )


def _is_of_litellm(router: Any) -> bool:
    if "litellm" not in sys.modules:
        return False
    # A ParallelRouter names the class of the Router that it holds.
    modules = [base.__module__ for base in router.__class__.__mro__]
    if not hasattr(router, "acompletion"):  # a function
        modules.append(getattr(router, "__module__", None) or "")
    return any(module.partition(".")[0] == "litellm" for module in modules)
