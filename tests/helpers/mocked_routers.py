"""Routers that need no server."""

from __future__ import annotations

from typing import Any

from litellm import Router


def make_mocked_router(cls: Any = None) -> Any:
    """A Router whose calls need no server: litellm answers them itself."""
    return (cls or Router)(
        model_list=[
            {
                "model_name": "gpt-3.5-turbo",
                "litellm_params": {
                    "model": "openai/gpt-3.5-turbo",
                    "api_key": "none",
                    "mock_response": "made up",
                },
            }
        ]
    )
