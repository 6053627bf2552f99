"""Values that go to another process, and what is compared of them there."""

from __future__ import annotations

import importlib.util
from typing import Any

import litellm
import litellm.exceptions
import pytest

from parallel_core.ray_engine.remote_values import pack_exception, unpack_outcome

SECRET = "the text of a message"


needs_cloudpickle = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="cloudpickle comes with Ray"
)


def brought(exception: Exception) -> Exception:
    arrived = unpack_outcome(pack_exception(exception)).exception
    assert arrived is not None
    return arrived


# Responses
def answer() -> Any:
    response = litellm.mock_completion("gpt-4o", [{"role": "user", "content": "hello"}])
    response._hidden_params["response_cost"] = 0.25
    return response


class FailsToLoad:
    def __reduce__(self) -> Any:
        return fail, (SECRET,)


def fail(text: str) -> None:
    raise LookupError(text)
