"""What doctor says of versions, keys, configs and addresses."""

from __future__ import annotations

import json
import socket

import pytest

from helpers.run_configs import KEYS, Write, ask, config_with_keys, doctor, one_deployment
from parallel_core.cli import doctor_command
from parallel_core.config.proxy_config import read_proxy_config
from parallel_core.config.run_router import router_from_config
from parallel_core.demo_server import DemoServerThread


def test_keys_are_known_and_are_shown_nowhere(
    server: DemoServerThread, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_ROUTER_KEY", KEYS["variable"])
    monkeypatch.setenv("ELSEWHERE_API_KEY", "sk-elsewhere-0123456789")
    monkeypatch.setenv("SHORT_API_KEY", "abc")
    path = write(config_with_keys(server.url))
    with router_from_config(path) as run_router:
        assert run_router.secrets == {
            *KEYS.values(),
            f"Bearer {KEYS['header']}",
        }
        results = ask(run_router, "gpt", "smart")
        assert [result.exception for result in results] == [None, None]
        config = read_proxy_config(path)
        shown = [
            *(repr(run_router), repr(run_router.description), repr(run_router.endpoints)),
            *(repr(run_router.warnings), repr(run_router.models)),
            *(repr(config), repr(config.deployments), repr(config.router_settings)),
            *(repr(config.credentials), repr(config.variables)),
        ]
    for arguments in (["--config", str(path)], ["--config", str(path), "--json"]):
        shown.append(doctor(*arguments, exit_code=0))
    everything = "\n".join(shown)
    # Not "sk-" alone: the name of a folder may have it.
    for key in (*KEYS.values(), "sk-elsewhere-0123456789"):
        assert key.removesuffix("0123456789") not in everything
    assert "0123456789" not in everything
    assert "gpt" in everything


def test_doctor_tells_versions_and_names_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_API_KEY", KEYS["variable"])
    monkeypatch.setenv("https_proxy", f"http://user:{KEYS['url']}@proxy:3128")
    for text in (doctor(exit_code=0), doctor("--json", exit_code=0)):
        assert litellm_version() in text
        assert "MISTRAL_API_KEY" in text
        assert "https_proxy" in text
        assert "0123456789" not in text
        assert "proxy:3128" not in text


def litellm_version() -> str:
    from importlib.metadata import version

    return version("litellm")


def test_doctor_tries_each_address(server: DemoServerThread, write: Write) -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    root = server.url.removesuffix("/v1")
    text = "model_list:\n" + "".join(
        f"- {{model_name: {name}, litellm_params: "
        f"{{model: openai/{name}, api_base: '{address}', api_key: none}}}}\n"
        for name, address in (
            ("good", server.url),
            ("odd", f"{root}/odd"),  # any status is an answer
            ("closed", f"http://127.0.0.1:{port}/v1"),
        )
    )
    found = json.loads(doctor("--config", str(write(text)), "--json", exit_code=1))
    answers = {e["model_name"]: (e["reachable"], e["answer"]) for e in found["endpoints"]}
    assert answers == {
        "good": (True, "HTTP 200"),
        "odd": (True, "HTTP 404"),
        "closed": (False, "Connection refused"),
    }
    assert found["ok"] is False
    assert "Connection refused" in doctor("--config", str(write(text)), exit_code=1)


def test_doctor_is_content_where_all_is_well(server: DemoServerThread, write: Write) -> None:
    path = write(one_deployment(api_base=server.url))
    assert "all is well" in doctor("--config", str(path), exit_code=0)
    assert "HTTP 200" in doctor("--model", "fast", "--api-base", server.url, exit_code=0)


def test_doctor_waits_a_limited_time(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    monkeypatch.setattr(doctor_command, "CONNECT_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        path = write(one_deployment(api_base=f"http://127.0.0.1:{silent.getsockname()[1]}/v1"))
        assert "no answer within 0.05 s" in doctor("--config", str(path), exit_code=1)


def test_doctor_finds_what_is_missing(server: DemoServerThread, write: Write) -> None:
    path = write(one_deployment(api_base=server.url, api_key="os.environ/RUN_ROUTER_NONE"))
    assert "RUN_ROUTER_NONE is missing" in doctor("--config", str(path), exit_code=1)
    path = write(
        one_deployment(api_base=server.url) + "router_settings: {redis_host: os.environ/X}"
    )
    found = json.loads(doctor("--config", str(path), "--json", exit_code=1))
    assert ["router_settings.redis_host" in missing for missing in found["missing"]] == [True]
    path = write(
        '{"model_list": [{"model_name": "x", "litellm_params": {"model": "bedrock/x", '
        '"aws_region_name": "y"}}]}'
    )
    assert "not known" in doctor("--config", str(path), exit_code=0)
    # Without a key of its own, this one needs that of the environment.
    without_key = one_deployment(api_base=server.url).replace('"api_key": "none", ', "")
    assert "OPENAI_API_KEY is missing" in doctor("--config", str(write(without_key)), exit_code=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "nowhere.yaml"], "cannot be read"),
        (["--model", "opnai/x"], "is openai/x meant?"),
        (["--model", "x", "--api-base", "no-url"], "must be a URL"),
        (["--api-base", "http://x"], "give --model, too"),
        (["--config", "c", "--model", "x"], "not both"),
    ],
)
def test_doctor_tells_wrong_options(arguments: list[str], says: str) -> None:
    assert says in doctor(*arguments, exit_code=2)
