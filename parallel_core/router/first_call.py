"""Run the imports of litellm's first call in a process (0.5 to 2 s) before the first batch.

On the event loop they would block every call in flight and use up the timeouts of the first calls.
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

from parallel_core.config import unwrap_router
from parallel_core.router_hosts import plain_loop_factory

logger = logging.getLogger("parallel_core")

_MODEL: Final = "parallel-core-never-sent"
_MESSAGES: Final = [{"role": "user", "content": "never sent"}]

_lock = threading.Lock()
_is_done = False


def preparation(router: object) -> Callable[[], None] | None:
    """Return a function that imports everything that a call needs.

    Return None if that is done, or if the calls do not use litellm. The function blocks: call it in
    a thread.
    """
    return None if _is_done or not _is_of_litellm(unwrap_router(router)) else import_for_calls


def import_for_calls() -> None:
    """Make litellm import the modules that its calls need, once per process. Send nothing.

    The modules differ from release to release. So litellm makes a call with a mock answer, on a
    separate loop, without the wrapper that runs callbacks and counts.
    """
    global _is_done
    with _lock:
        if _is_done:
            return
        _is_done = True  # also if it fails: then the first call imports the rest
        try:
            with asyncio.Runner(loop_factory=plain_loop_factory()) as runner:
                runner.run(_call_without_callbacks())
        except Exception:  # this uses litellm's internals, which differ between releases
            logger.debug("litellm could not be imported ahead of the first call", exc_info=True)


async def _call_without_callbacks() -> None:
    from litellm.litellm_core_utils.litellm_logging import Logging

    class SilentLogging(Logging):  # these two methods run the input callbacks of the process
        def pre_call(self, *_: object, **__: object) -> None: ...

        def post_call(self, *_: object, **__: object) -> None: ...

    main: Any = importlib.import_module("litellm.main")
    acompletion: Any = inspect.unwrap(main.acompletion)
    number = uuid.uuid4().hex
    await acompletion(
        model=f"openai/{_MODEL}",
        messages=_MESSAGES,
        mock_response="never sent",  # not empty: older releases then send the call
        api_base="http://parallel-core.invalid",  # reserved: this host cannot exist (RFC 6761)
        api_key="none",
        # With this object, litellm makes no logging object that runs the callbacks of the process.
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
    # `__class__`, not type(): for a ParallelRouter it is the class of the Router that it holds.
    modules = [base.__module__ for base in router.__class__.__mro__]
    if not hasattr(router, "acompletion"):  # a function
        modules.append(getattr(router, "__module__", None) or "")
    return any(module.partition(".")[0] == "litellm" for module in modules)
