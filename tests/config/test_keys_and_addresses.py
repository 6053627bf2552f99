"""Which key goes to which address, over HTTP; and keys that are set and empty."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

import parallel_core
from parallel_core._run_endpoints import (
    _providers_by_host,  # pyright: ignore[reportPrivateUsage]
    endpoint_of,
    known_providers,
    owner_of,
    quiet_litellm,
)
from parallel_core.cli import app
from parallel_core.run_router import (
    RouterConfigError,
    RunRouter,
    router_from_config,
    router_from_model,
)

OPENAI_KEY = "sk-openai-0123456789"
ANTHROPIC_KEY = "sk-ant-0123456789"
GROQ_KEY = "gsk-groq-0123456789"


class Sent(NamedTuple):
    """A request as it arrived."""

    path: str
    model: str
    keys: set[str]


class Recorder:
    """A provider that keeps what it was sent, and speaks as OpenAI's and as Anthropic's API."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = (self.headers.get("Authorization", ""), self.headers.get("x-api-key", ""))
                keys = {text.removeprefix("Bearer ") for text in headers if text}
                recorder.sent.append(Sent(self.path, body["model"], keys))
                answer = json.dumps(_answer(self.path, body["model"])).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _answer(path: str, model: str) -> dict[str, Any]:
    if path.endswith("/messages"):
        return {
            "id": "1", "type": "message", "role": "assistant", "model": model,
            "content": [{"type": "text", "text": "yes"}], "stop_reason": "end_turn",
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }  # fmt: skip
    message = {"role": "assistant", "content": "yes"}
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": model,
        "service_tier": "default",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }  # fmt: skip


@pytest.fixture(scope="module")
def two_servers() -> Iterator[tuple[Recorder, Recorder]]:
    one, other = Recorder(), Recorder()
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def servers(two_servers: tuple[Recorder, Recorder]) -> tuple[Recorder, Recorder]:
    for server in two_servers:
        server.sent.clear()
    return two_servers


@pytest.fixture(autouse=True)
def _only_these_keys(no_keys_of_this_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", OPENAI_KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", ANTHROPIC_KEY)
    monkeypatch.setenv("GROQ_API_KEY", GROQ_KEY)


def ask(run_router: RunRouter, *models: str) -> None:
    for model in models:
        request = {"model": model, "messages": [{"role": "user", "content": "?"}]}
        (result,) = parallel_core.parallel_completions(run_router.router, [request])
        assert result.exception is None


# --- whose key goes where ---


@pytest.mark.parametrize(
    ("model", "others", "sent"),
    [
        (
            "openai/y",
            ["plain", "openai/z", "anthropic/claude-x", "groq/q", "meta-llama/L"],
            [
                ("y", OPENAI_KEY),
                ("plain", OPENAI_KEY),
                ("z", OPENAI_KEY),
                ("anthropic/claude-x", OPENAI_KEY),
                ("groq/q", OPENAI_KEY),
                ("meta-llama/L", OPENAI_KEY),
            ],
        ),
        (
            "groq/y",
            ["plain", "groq/z", "openai/gpt-oss", "anthropic/claude-x", "gpt-4o"],
            [
                ("y", GROQ_KEY),
                ("plain", GROQ_KEY),
                ("z", GROQ_KEY),
                ("openai/gpt-oss", GROQ_KEY),
                ("anthropic/claude-x", GROQ_KEY),
                ("gpt-4o", GROQ_KEY),
            ],
        ),
        (
            "anthropic/claude-y",
            ["plain", "openai/gpt", "gpt-4o"],
            [
                ("claude-y", ANTHROPIC_KEY),
                ("plain", ANTHROPIC_KEY),
                ("openai/gpt", ANTHROPIC_KEY),
                ("gpt-4o", ANTHROPIC_KEY),
            ],
        ),
        ("hosted_vllm/y", ["openai/gpt", "plain"], [("y", ""), ("openai/gpt", ""), ("plain", "")]),
        ("claude-x", ["anthropic/y"], [("claude-x", OPENAI_KEY), ("anthropic/y", OPENAI_KEY)]),
    ],
)
def test_all_names_keep_the_provider_address_and_key_of_the_model(
    model: str,
    others: list[str],
    sent: list[tuple[str, str]],
    servers: tuple[Recorder, Recorder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, elsewhere = servers
    for name in ("OPENAI", "GROQ", "ANTHROPIC"):  # a call that went there would be seen
        monkeypatch.setenv(f"{name}_API_BASE", elsewhere.url)
    with router_from_model(model, api_base=server.url, others=others) as run_router:
        ask(run_router, model, *others)
    arrived = [(one.model, one.keys) for one in server.sent]
    assert [name for name, _ in arrived] == [name for name, _ in sent]
    others_keys = {OPENAI_KEY, ANTHROPIC_KEY, GROQ_KEY}
    assert [keys & others_keys for _, keys in arrived] == [{key} - {""} for _, key in sent]
    assert elsewhere.sent == []


def test_without_an_address_each_provider_gets_its_own_key(
    servers: tuple[Recorder, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    openai, groq = servers
    monkeypatch.setenv("OPENAI_API_BASE", openai.url)
    monkeypatch.setenv("GROQ_API_BASE", groq.url)
    # A name without a provider is one of the provider of --model, also where litellm knows it as
    # another one's; a name with a provider goes to that one.
    with router_from_model("groq/y", others=["plain", "gpt-4o", "openai/gpt-4o"]) as run_router:
        ask(run_router, "groq/y", "plain", "gpt-4o", "openai/gpt-4o")
    assert [(one.model, one.keys) for one in groq.sent] == [
        ("y", {GROQ_KEY}),
        ("plain", {GROQ_KEY}),
        ("gpt-4o", {GROQ_KEY}),
    ]
    assert [(one.model, one.keys) for one in openai.sent] == [("gpt-4o", {OPENAI_KEY})]


def test_a_server_without_a_key_of_its_provider_gets_none(
    servers: tuple[Recorder, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    with router_from_model("x", api_base=servers[0].url, others=["anthropic/y"]) as run_router:
        ask(run_router, "x", "anthropic/y")
        copy = run_router.recipe
    with copy() as run_router:  # as a worker makes it, elsewhere
        ask(run_router, "anthropic/y")
    assert [(one.model, one.keys) for one in servers[0].sent] == [
        ("x", {"none"}),
        ("anthropic/y", {"none"}),
        ("anthropic/y", {"none"}),
    ]


@pytest.mark.parametrize(
    ("address", "owner"),
    [
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://openrouter.ai/api/v1", "openrouter"),
        ("https://api.anthropic.com", "anthropic"),
        ("https://api.openai.com/v1", "openai"),
        ("https://api.groq.com./openai/v1", "groq"),
        ("HTTPS://API.Groq.Com:443/openai/v1", "groq"),
        ("https://api.x.ai/v1", "xai"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini"),
        ("https://api.fireworks.ai/inference/v1", "fireworks_ai"),
        ("http://localhost:11434", None),
        ("http://127.0.0.1:8000/v1", None),
        ("https://openai.example.com/v1", None),
        ("http://openai:8000", None),
        ("http://[broken", None),
    ],
)
def test_whose_an_address_is(address: str, owner: str | None) -> None:
    assert owner_of(address) == owner


def test_an_address_of_a_variable_belongs_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_BASE", "https://llm.example.com/v1")
    _providers_by_host.cache_clear()
    assert owner_of("https://llm.example.com/v1") is None
    assert owner_of("https://api.cerebras.ai./v1") == "cerebras"
    assert os.environ["GROQ_API_BASE"] == "https://llm.example.com/v1"


def test_an_address_in_a_line_needs_a_key_in_the_line(
    run: Callable[..., tuple[int, str]], servers: tuple[Recorder, Recorder]
) -> None:
    server, elsewhere = servers
    options = ["--model", "openai/m", "--api-base", server.url]
    options += ["--trust-input", "--send-columns", "--force-new"]
    for name in ("api_base", "base_url"):
        for key in ({}, {"api_key": None}, {"api_key": " "}):
            code, output = run(*options, members={name: elsewhere.url, **key})
            assert code == 2
            assert f"'{name}' without an api_key: the key of the Router would be sent" in output
        code, _ = run(*options, members={name: elsewhere.url, "api_key": "theirs"})
        assert code == 0
    # Without an address litellm takes the usual one of the provider.
    code, _ = run(*options, members={"api_base": None})
    assert code == 2
    assert [one.keys for one in elsewhere.sent] == [{"theirs"}, {"theirs"}]
    assert server.sent == []


def test_no_key_goes_to_the_address_of_another_provider(tmp_path: Path) -> None:
    with pytest.raises(RouterConfigError) as caught:
        router_from_model("openai/llama", api_base="https://api.groq.com/openai/v1").close()
    assert "would send the key of openai to https://api.groq.com/openai/v1" in str(caught.value)
    assert "write groq/llama" in str(caught.value)
    with router_from_model("llama", api_base="https://api.groq.com/openai/v1") as run_router:
        assert [endpoint.model for endpoint in run_router.endpoints] == ["groq/llama"]
    # A key that is given for the address is sent to it.
    given = {"api_base": "https://api.groq.com/openai/v1", "api_key": GROQ_KEY}
    router_from_model("openai/llama", api_base=given["api_base"], api_key=given["api_key"]).close()
    path = tmp_path / "config.yaml"
    entry: dict[str, Any] = {
        "model_name": "gpt",
        "litellm_params": {"model": "openai/llama", **given},
    }
    path.write_text(json.dumps({"model_list": [entry]}))
    router_from_config(path).close()
    with pytest.raises(RouterConfigError, match=r"an address of xai; write xai/llama"):
        router_from_model("openai/llama", api_base="https://api.x.ai/v1").close()
    del entry["litellm_params"]["api_key"]
    path.write_text(json.dumps({"model_list": [entry]}))
    with pytest.raises(RouterConfigError, match=r"line 1: .*would send the key of openai"):
        router_from_config(path).close()


# --- keys that are set and empty ---


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


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    def run_command(
        *options: str, model: str = "gpt", members: dict[str, Any] | None = None
    ) -> tuple[int, str]:
        line = {"model": model, "messages": [{"role": "user", "content": "?"}], **(members or {})}
        (tmp_path / "requests.jsonl").write_text(json.dumps(line) + "\n")
        files = [str(tmp_path / "requests.jsonl"), "-o", str(tmp_path / "answers.jsonl")]
        result = CliRunner().invoke(app, ["run", *files, *options], env={"COLUMNS": "300"})
        return result.exit_code, result.output

    return run_command


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_key_ends_a_run_before_the_first_call(
    text: str,
    run: Callable[..., tuple[int, str]],
    servers: tuple[Recorder, Recorder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", text)
    monkeypatch.setenv("DEEPSEEK_API_BASE", servers[0].url)
    code, output = run("--model", "deepseek/x", model="deepseek/x")
    assert (code, "DEEPSEEK_API_KEY" in output) == (2, True)
    for parameters in (
        {"model": "deepseek/x"},
        {"model": "deepseek/x", "api_key": "os.environ/DEEPSEEK_API_KEY"},
        {"model": "deepseek/x", "api_key": " "},
    ):
        entry = {"model_name": "gpt", "litellm_params": parameters}
        (tmp_path / "config.yaml").write_text(json.dumps({"model_list": [entry]}))
        code, output = run("--config", str(tmp_path / "config.yaml"))
        assert (code, "DEEPSEEK_API_KEY" in output) == (2, True)
    assert servers[0].sent == []
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_missing_key_is_one_problem_however_many_models_need_it(
    run: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    code, output = run(*config, model="a")
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
    run: Callable[..., tuple[int, str]], servers: tuple[Recorder, Recorder], tmp_path: Path
) -> None:
    entries = [
        {"model_name": "gpt", "litellm_params": {"model": "openai/x", "api_base": servers[0].url}},
        {"model_name": "other", "litellm_params": {"model": "deepseek/x"}},
    ]
    (tmp_path / "config.yaml").write_text(json.dumps({"model_list": entries}))
    code, output = run("--config", str(tmp_path / "config.yaml"))
    assert (code, "other: DEEPSEEK_API_KEY is not set or empty" in output) == (0, True)
    code, output = run("--config", str(tmp_path / "config.yaml"), model="other")
    assert (code, "the model 'other' needs a key" in output) == (2, True)
    assert [one.keys for one in servers[0].sent] == [{OPENAI_KEY}]
