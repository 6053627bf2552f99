"""What litellm imports at its first call is imported before the clocks of the first batch start."""

import os
import subprocess
import sys

# Callbacks of the user and a finder note what happens in the process, and in which thread.
PROGRAM = """
import asyncio, sys, threading

import litellm
from litellm.integrations.custom_logger import CustomLogger

from parallel_core import _first_call, parallel_acompletions
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

imported_in = {}
fired = []


class Finder:
    def find_spec(self, name, path=None, target=None):
        imported_in.setdefault(name, threading.current_thread())


class Logger(CustomLogger):
    def __getattribute__(self, name):
        if not name.startswith("__"):
            fired.append(name)
        return super().__getattribute__(name)


litellm.callbacks = [Logger()]
for kind in ("input", "success", "failure"):
    setattr(litellm, f"{kind}_callback", [lambda *_, **__: fired.append("function")])
with DemoServerThread(DemoServerSettings(latency_median=0.0)) as server:
    parameters = {"model": "openai/fast", "api_base": server.url, "api_key": "none"}
    router = litellm.Router([{"model_name": "fast", "litellm_params": parameters}])
    sys.meta_path.insert(0, Finder())
    requests = [{"model": "fast", "messages": [{"role": "user", "content": "?"}]}] * 4

    prepare = _first_call.import_for_calls

    def checked():
        fired.clear()
        prepare()
        assert not fired, fired
        assert server.stats().accepted == 0

    _first_call.import_for_calls = checked
    results = asyncio.run(parallel_acompletions(router, requests, timeout=0.5, retry=None))
    assert all(result.ok for result in results), [result.exception for result in results]
    assert server.stats().accepted == 4
    assert fired
    assert _first_call.preparation(router) is None
heavy = imported_in["litellm.proxy._types"]  # 0.2 s of the 0.4
assert heavy is not threading.main_thread(), heavy
print("done")
"""


def test_the_first_batch_of_a_process_has_time_for_its_calls() -> None:
    """And preparing it sends nothing, logs nothing and runs no callback."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "done\n"
    assert "WARNING" not in done.stderr, done.stderr
