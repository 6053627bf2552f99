"""Configs of a Router, and what is made of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import parallel_core
from parallel_core.cli import doctor_command
from parallel_core.config.run_router import RouterConfigError, RunRouter, router_from_config

KEYS = {
    "literal": "sk-literal-0123456789",
    "variable": "sk-variable-0123456789",
    "header": "sk-header-0123456789",
    "master": "sk-master-0123456789",
    "url": "sk-url-0123456789",
    "set by the file": "sk-set-by-file-0123456789",
    "of a credential": "sk-credential-0123456789",
    "of redis": "sk-redis-0123456789",
}


Write = Callable[..., Path]


def one_deployment(**parameters: object) -> str:
    """The lines of a config with one deployment."""
    all_parameters = {"model": "openai/fast", "api_key": "none", **parameters}
    return "model_list:\n- model_name: gpt\n  litellm_params: " + json.dumps(all_parameters) + "\n"


def problems_of(path: Path) -> str:
    with pytest.raises(RouterConfigError) as caught:
        router_from_config(path).close()
    return str(caught.value).replace(f"{path.parent}{os.sep}", "")


def ask(run_router: RunRouter, *models: str) -> list[Any]:
    requests = [
        {"model": model, "messages": [{"role": "user", "content": "?"}]} for model in models
    ]
    return parallel_core.parallel_completions(run_router.router, requests, concurrency=4)


def config_with_keys(api_base: str) -> str:
    # Under a name of its own: a client that sends its key as a header cannot call there.
    address = api_base.replace("://", f"://user:{KEYS['url']}@")
    return f"""
model_list:
- model_name: walled
  litellm_params: {{model: openai/fast, api_base: "{address}", api_key: {KEYS["literal"]}}}
- model_name: gpt
  litellm_params:
    model: openai/fast
    api_base: {api_base}
    api_key: os.environ/RUN_ROUTER_KEY
    extra_headers: {{Authorization: "Bearer {KEYS["header"]}", X-Team: the-team}}
- model_name: smart
  litellm_params: {{model: openai/smart, litellm_credential_name: mine}}
credential_list:
- credential_name: mine
  credential_values: {{api_key: {KEYS["of a credential"]}, api_base: {api_base}}}
environment_variables: {{RUN_ROUTER_OTHER_KEY: {KEYS["set by the file"]}}}
general_settings: {{master_key: {KEYS["master"]}}}
litellm_settings: {{cache: true, cache_params: {{password: {KEYS["of redis"]}}}}}
"""


def doctor(*arguments: str, exit_code: int) -> str:
    app = typer.Typer()
    app.command()(doctor_command.command)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == exit_code, result.output
    return result.output
