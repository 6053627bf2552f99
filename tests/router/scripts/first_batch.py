"""The first batch of a process: when, where and how often litellm imports what a call needs.

Callbacks of the user and a finder note what happens in the process, and in which thread.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

import litellm
from litellm.integrations.custom_logger import CustomLogger
from litellm.router import Router

from parallel_core import parallel_acompletions
from parallel_core.demo_server import DemoServerSettings, DemoServerThread
from parallel_core.router import first_call

imported_in: dict[str, threading.Thread] = {}
fired: list[str] = []


class Finder:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        imported_in.setdefault(name, threading.current_thread())


class Logger(CustomLogger):
    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__"):
            fired.append(name)
        return super().__getattribute__(name)


def main() -> None:
    module: Any = litellm
    module.callbacks = [Logger()]
    for kind in ("input", "success", "failure"):
        setattr(module, f"{kind}_callback", [lambda *_, **__: fired.append("function")])
    with DemoServerThread(DemoServerSettings(latency_median=0.0)) as server:
        parameters = {"model": "openai/fast", "api_base": server.url, "api_key": "none"}
        router = Router([{"model_name": "fast", "litellm_params": parameters}])
        finder: Any = Finder()
        sys.meta_path.insert(0, finder)
        request = {"model": "fast", "messages": [{"role": "user", "content": "?"}]}
        prepare = first_call.import_for_calls
        prepared_at: list[float] = []

        def checked() -> None:
            fired.clear()
            prepare()
            assert not fired, fired
            assert server.stats().accepted == 0
            prepared_at.append(time.perf_counter())

        first_call.import_for_calls = checked
        results = asyncio.run(parallel_acompletions(router, [request] * 4, retry=None))
        since = time.perf_counter() - prepared_at[0]
        assert all(result.ok for result in results), [result.exception for result in results]
        # The clocks of the calls started when all was prepared, or they would show more time.
        assert all(result.duration <= since for result in results), (since, results)
        assert server.stats().accepted == 4
        assert fired
        assert first_call.preparation(router) is None
    heavy = imported_in["litellm.proxy._types"]  # 0.2 s of the 0.4
    assert heavy is not threading.main_thread(), heavy
    print("done")


if __name__ == "__main__":
    main()
