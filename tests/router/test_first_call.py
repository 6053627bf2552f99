"""What litellm imports at its first call is imported before the clocks of the first batch start."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import litellm
import pytest

from helpers.hosts import Host
from helpers.mocked_routers import make_mocked_router
from helpers.routers import run_with_routers
from parallel_core import ParallelRouter, parallel_acompletions
from parallel_core.router import first_call

SCRIPT = Path(__file__).parent / "scripts" / "first_batch.py"
REQUEST: dict[str, Any] = {
    "model": "gpt-3.5-turbo",
    "messages": [{"role": "user", "content": "hi"}],
}


@pytest.mark.parametrize("is_done", [False, True])
def test_a_batch_prepares_litellm_once_before_its_calls(
    either_library: Host, monkeypatch: pytest.MonkeyPatch, is_done: bool
) -> None:
    happened: list[str] = []
    prepared_in: list[threading.Thread] = []

    def prepare() -> None:
        happened.append("prepared")
        prepared_in.append(threading.current_thread())

    class Spy(ParallelRouter):
        async def acompletion(self, *args: Any, **kwargs: Any) -> Any:
            happened.append("called")
            return await super().acompletion(*args, **kwargs)

    monkeypatch.setattr(first_call, "_is_done", is_done)
    monkeypatch.setattr(first_call, "import_for_calls", prepare)
    router = make_mocked_router(Spy)

    async def main() -> None:
        results = await parallel_acompletions(router, [REQUEST] * 3)
        assert [result.exception for result in results] == [None] * 3

    run_with_routers(either_library, main)
    assert happened == [*([] if is_done else ["prepared"]), *["called"] * 3]
    assert threading.main_thread() not in prepared_in


def test_preparing_litellm_runs_no_callback_and_sends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fired: list[object] = []
    for kind in ("input", "success", "failure"):
        monkeypatch.setattr(
            litellm, f"{kind}_callback", [lambda *given, **_: fired.append(given)], raising=False
        )
    monkeypatch.setattr(first_call, "_is_done", False)
    with caplog.at_level("DEBUG", logger="parallel_core"):
        first_call.import_for_calls()
    assert vars(first_call)["_is_done"]
    assert not fired
    assert not caplog.records  # a call that was sent has failed: there is no such host


@pytest.mark.thorough  # a fresh process, with all that litellm imports
def test_the_first_batch_of_a_process_has_time_for_its_calls() -> None:
    """And preparing it sends nothing, logs nothing and runs no callback."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "done\n"
    assert "WARNING" not in done.stderr, done.stderr
