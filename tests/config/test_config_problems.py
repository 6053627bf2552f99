"""What is wrong in a config is told with its place, and what is ignored is listed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.run_configs import KEYS, Write, config_with_keys, one_deployment, problems_of
from parallel_core.config.proxy_config import read_proxy_config
from parallel_core.config.run_router import RouterConfigError, router_from_config
from parallel_core.demo_server import DemoServerThread


def test_every_variable_that_is_missing_is_named_with_its_place(write: Write) -> None:
    text = """model_list:
- model_name: one
  litellm_params: {model: openai/fast, api_key: os.environ/RUN_ROUTER_A}
- model_name: two
  litellm_params:
    model: openai/fast
    api_key: none
    extra_headers: {X: os.environ/RUN_ROUTER_B}
router_settings:
  redis_password: os.environ/RUN_ROUTER_C
general_settings: {master_key: os.environ/RUN_ROUTER_D}
"""
    problems = problems_of(write(text)).splitlines()
    assert [problem.split(": the environment")[0] for problem in problems] == [
        "config.yaml, line 2: model_list[0] ('one'): litellm_params.api_key",
        "config.yaml, line 4: model_list[1] ('two'): litellm_params.extra_headers.X",
        "config.yaml, line 10: router_settings.redis_password",
    ]
    for problem, name in zip(problems, "ABC", strict=True):
        assert f"variable RUN_ROUTER_{name} is not set" in problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "config.yaml is empty"),
        ("# only a comment\n", "config.yaml is empty"),
        ("- model_name: x\n", "line 1: the file is a list"),
        ("just a text", "the file is a single value"),
        ("router_settings: {}\n", "there is no model_list"),
        ("model_list: []\n", "there is no model_list"),
        ("model_list: {a: b}\n", "line 1: model_list: must be a list"),
        ("model_list:\n- gpt\n", "line 2: model_list[0]: must have model_name"),
        ("model_list:\n- litellm_params: {model: x}\n", "line 2: model_list[0]: model_name is"),
        ("model_list:\n- model_name: x\n", "('x'): litellm_params is missing"),
        ("model_list:\n- {model_name: x, litellm_params: {}}\n", "litellm_params.model is missing"),
        ("model_list:\n\t- model_name: x\n", "line 2: not valid YAML: there is a tab"),
        ("model_list:\n- model_name: [x\n", "not valid YAML"),
        ("a: *nobody\n", "line 1: not valid YAML: found undefined alias 'nobody'; an anchor"),
        ("a: &loop [*loop]\n", "nested too deeply, or contains itself"),
        ("a: !!python/object/apply:os.system [x]\n", "tags that make objects are not allowed"),
        ("a: 2024-99-99\n", "is not valid YAML: a date"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4: b.c appears twice"),
        ("model_list: [] \n--- \nb: 1\n", "line 2: not valid YAML"),
        ("include: other.yaml\n", "line 1: include: must be a list"),
        ("include: [nowhere.yaml]\n", "nowhere.yaml cannot be read: No such file or directory"),
        ("include: [1]\n", "include[0]: must be the name of a file"),
        (one_deployment() + "router_settings: [1]\n", "router_settings: must be a mapping"),
        (
            one_deployment() + "router_settings:\n  num_retrys: 1\n",
            "line 5: router_settings.num_retrys: unknown setting; is num_retries meant?",
        ),
        (one_deployment() + "router_settings: {model_list: []}\n", "model_list: unknown setting"),
        (one_deployment() + "environment_variables: {A: [1]}\n", "A: must be a text"),
        (one_deployment() + 'environment_variables: {"A=": 1}\n', "cannot be an environment"),
        (one_deployment() + "credential_list: [{a: b}]\n", "credential_list[0]: must have"),
        (
            "model_list:\n- model_name: on\n  litellm_params: {model: openai/x}\n",
            "line 2: model_list[0]: model_name must be a text, but YAML reads true or false: put",
        ),
        (
            "model_list:\n- {model_name: x, litellm_params: {model: openai/x, api_key: 1234567}}\n",
            "('x'): litellm_params.api_key must be a text, but YAML reads a number: put it in ",
        ),
        (one_deployment(model="opnai/fast"), "is openai/fast meant?"),
        (one_deployment(model="nobody-knows"), "does not know the provider"),
        (one_deployment() + "router_settings: {timeout: soon}\n", "timeout: must be a number"),
        (one_deployment() + "litellm_settings: {num_retries: true}\n", "must be a number"),
        (one_deployment(rpm="many"), "litellm cannot make a Router of it"),
    ],
)
def test_what_is_wrong_in_a_config_is_told_with_its_line(
    text: str, says: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in problems_of(write(text))
    assert capsys.readouterr().out == ""  # litellm prints its list of providers otherwise


def test_a_package_that_is_missing_is_named_with_its_setting(
    monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    import litellm.router

    class Fails:
        def __init__(self, model_list: object, redis_host: str) -> None:
            raise ModuleNotFoundError("No module named 'redis'", name="redis.asyncio")

    monkeypatch.setattr(litellm.router, "Router", Fails)
    text = one_deployment() + "router_settings: {redis_host: localhost}\n"
    assert problems_of(write(text)) == (
        "config.yaml: redis_host needs the package redis, which is not installed: pip install redis"
    )


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in problems_of(tmp_path / "nowhere.yaml")
    assert "cannot be read: Is a directory" in problems_of(tmp_path)


@pytest.mark.thorough  # made-up bytes; the tests above have each problem
@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode("utf-8", "replace"))))
@example(b"\xff\xfe\x00")
@example(b"a: \x00")
@example(b"? [a]\n: b")
@example(b"? {a: b}\n: b")
@example(b"1: 2\nmodel_list: 3")
@example(b"[" * 5000)
@example(b"a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n".encode() for n in range(1, 9)
))  # fmt: skip
def test_no_bytes_are_anything_but_a_config_or_an_error_of_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    problems: tuple[str, ...] = ()
    try:
        config = read_proxy_config(path)
    except RouterConfigError as error:
        problems = error.problems
    else:
        assert config.deployments
        return
    assert problems
    assert all(str(path) in problem for problem in problems)


def test_included_files_are_taken_in_once_each(write: Write) -> None:
    write("include: [config.yaml, c.yaml]\n" + one_deployment().replace("gpt", "of-b"), "b.yaml")
    write(one_deployment().replace("gpt", "of-c") + "router_settings: {num_retries: 3}\n", "c.yaml")
    text = "include: [b.yaml, c.yaml]\n" + one_deployment()
    with router_from_config(write(text + "router_settings: {timeout: 9}\n")) as run_router:
        assert run_router.models == ["gpt", "of-b", "of-c"]
        assert (run_router.router.num_retries, run_router.router.timeout) == (3, 9)
    write("a: [\n", "c.yaml")
    problem = problems_of(write(text))
    assert problem.startswith("c.yaml, line 2: not valid YAML")
    assert "(included by " in problem


def test_what_is_ignored_is_listed_with_the_reason(write: Write) -> None:
    text = (
        one_deployment()
        + """
litellm_settings: {callbacks: [x], cache: true, set_verbose: true, num_retrys: 3, model_list: []}
general_settings: {master_key: sk-1}
router_setings: {}
router_settings: {debug_level: DEBUG, plugins: [a.b]}
"""
    )
    with router_from_config(write(text)) as run_router:
        told = [warning.partition(": ")[2] for warning in run_router.warnings]
    assert told == [
        "litellm_settings.set_verbose: ignored, it would write messages into logs",
        "litellm_settings.model_list: ignored, it is a section of its own",
        "litellm_settings: callbacks, cache: ignored, only the proxy server uses it",
        "general_settings: ignored, only the proxy server uses it",
        "router_setings: ignored, there is no such section; is router_settings meant?",
        "router_settings.debug_level: ignored, it would write messages into logs",
        "router_settings.plugins: ignored, a run of a file loads no code",
        "litellm_settings.num_retrys: ignored, litellm has no such setting; is num_retries meant?",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        "router_settings: {routing_strategy: nonsense}",
        "router_settings: {num_retries: sk-literal-0123456789}",
        "router_settings: [sk-literal-0123456789]",
        "model_list: sk-literal-0123456789",
        "sk-literal-0123456789\n- x: ]",
        "environment_variables: {A: [sk-literal-0123456789]}",
        "credential_list: [{credential_name: [x], credential_values: sk-literal-0123456789}]",
        "router_settings: {retry_policy: {RateLimitErrorRetries: sk-literal-0123456789}}",
    ],
)
def test_no_error_of_a_config_quotes_a_key(
    wrong: str, server: DemoServerThread, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_ROUTER_KEY", KEYS["variable"])
    problems = problems_of(write(config_with_keys(server.url) + wrong + "\n"))
    assert "0123456789" not in problems
    assert "config.yaml" in problems


def test_an_error_of_a_config_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(RouterConfigError(["one", "two"])))
    assert (error.problems, str(error)) == (("one", "two"), "one\ntwo")
