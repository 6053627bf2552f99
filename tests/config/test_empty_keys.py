"""Keys that are missing, or set and empty."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.key_recorders import OPENAI_KEY, Recorder
from parallel_core.config import endpoint_of, quiet_litellm
from parallel_core.config.providers import known_providers
from parallel_core.config.run_router import RouterConfigError, router_from_config, router_from_model

pytestmark = pytest.mark.usefixtures("three_keys")


def providers_with_a_key() -> dict[str, str]:
    """The variable of the key of each provider for which litellm names one."""
    import litellm

    module: Any = litellm
    found: dict[str, str] = {}
    with quiet_litellm():
        # These two log in over the network when they are only asked for their name.
        for provider in sorted(known_providers() - {"github_copilot", "chatgpt"}):
            names = [
                name
                for name in module.validate_environment(f"{provider}/x")["missing_keys"]
                if name.endswith("_API_KEY")
            ]
            if names:
                found[provider] = names[0]
    return found


@pytest.mark.parametrize("text", ["", " \t"])
def test_a_key_that_is_set_and_empty_is_missing_for_every_provider(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI", "ANTHROPIC", "GROQ"):
        monkeypatch.delenv(f"{name}_API_KEY")
    providers = providers_with_a_key()
    assert len(providers) > 30
    for provider, variable in providers.items():
        for value, missing in ((text, True), ("a-key-of-theirs", False)):
            monkeypatch.setenv(variable, value)
            model = "claude-x" if "anthropic" in provider else "x"
            # Azure needs an address and a version too; they are no keys.
            monkeypatch.setenv("AZURE_API_BASE", "http://127.0.0.1")
            monkeypatch.setenv("AZURE_API_VERSION", "1")
            monkeypatch.setenv("CLOUDFLARE_API_BASE", "http://127.0.0.1")
            with quiet_litellm():
                endpoint = endpoint_of("gpt", {"model": f"{provider}/{model}"})
            assert (variable in endpoint.missing_keys) is missing, provider
        assert os.environ[variable] == "a-key-of-theirs"
        monkeypatch.delenv(variable)
    # litellm names no variable for this one.
    monkeypatch.setenv("SAMBANOVA_API_KEY", text)
    with quiet_litellm():
        assert endpoint_of("x", {"model": "sambanova/x"}).missing_keys == ("SAMBANOVA_API_KEY",)
    assert os.environ["SAMBANOVA_API_KEY"] == text


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_key_ends_a_run_before_the_first_call(
    text: str,
    run_command: Callable[..., tuple[int, str]],
    servers: tuple[Recorder, Recorder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", text)
    monkeypatch.setenv("DEEPSEEK_API_BASE", servers[0].url)
    code, output = run_command("--model", "deepseek/x", model="deepseek/x")
    assert (code, "DEEPSEEK_API_KEY" in output) == (2, True)
    for parameters in (
        {"model": "deepseek/x"},
        {"model": "deepseek/x", "api_key": "os.environ/DEEPSEEK_API_KEY"},
        {"model": "deepseek/x", "api_key": " "},
    ):
        entry = {"model_name": "gpt", "litellm_params": parameters}
        (tmp_path / "config.yaml").write_text(json.dumps({"model_list": [entry]}))
        code, output = run_command("--config", str(tmp_path / "config.yaml"))
        assert (code, "DEEPSEEK_API_KEY" in output) == (2, True)
    assert servers[0].sent == []
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_missing_key_is_one_problem_however_many_models_need_it(
    run_command: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("GROQ_API_KEY")
    needs = "set the environment variable {}, which is not set or empty"
    names = ["a", "b", "c", "d", "e", "groq/f"]
    with pytest.raises(RouterConfigError) as caught:
        router_from_model("openai/m", others=names).close()
    assert list(caught.value.problems) == [
        f"the models 'openai/m', 'a', 'b' and 3 more need a key: {needs.format('OPENAI_API_KEY')}",
        f"the model 'groq/f' needs a key: {needs.format('GROQ_API_KEY')}",
    ]
    entries = [{"model_name": name, "litellm_params": {"model": "openai/x"}} for name in names]
    (tmp_path / "config.yaml").write_text(json.dumps({"model_list": entries}))
    config = ("--config", str(tmp_path / "config.yaml"))
    code, output = run_command(*config, model="a")
    assert (code, output.count("OPENAI_API_KEY")) == (2, 1)
    assert "the model 'a' needs a key" in output
    # Where other models can be asked, it is a note.
    entries.append({"model_name": "g", "litellm_params": {"model": "openai/x", "api_key": "k"}})
    (tmp_path / "config.yaml").write_text(json.dumps({"model_list": entries}))
    with router_from_config(tmp_path / "config.yaml") as run_router:
        (warning,) = run_router.key_warnings
        assert run_router.warnings == []
    assert warning == "a, b, c and 3 more: OPENAI_API_KEY is not set or empty"


def test_a_model_that_nobody_asks_for_may_miss_its_key(
    run_command: Callable[..., tuple[int, str]], servers: tuple[Recorder, Recorder], tmp_path: Path
) -> None:
    entries = [
        {"model_name": "gpt", "litellm_params": {"model": "openai/x", "api_base": servers[0].url}},
        {"model_name": "other", "litellm_params": {"model": "deepseek/x"}},
    ]
    (tmp_path / "config.yaml").write_text(json.dumps({"model_list": entries}))
    code, output = run_command("--config", str(tmp_path / "config.yaml"))
    assert (code, "other: DEEPSEEK_API_KEY is not set or empty" in output) == (0, True)
    code, output = run_command("--config", str(tmp_path / "config.yaml"), model="other")
    assert (code, "the model 'other' needs a key" in output) == (2, True)
    assert [one.keys for one in servers[0].sent] == [{OPENAI_KEY}]
