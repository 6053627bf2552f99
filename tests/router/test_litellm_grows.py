"""Settings and keys that are kept by hand, compared with the litellm that is installed.

Each test here fails when a newer litellm has something that nobody has decided on yet, and its
message says what to decide.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import litellm
import litellm.router
import pytest

from parallel_core.config import config_router, endpoint_of, is_key_variable, quiet_litellm
from parallel_core.config.litellm_settings import (
    LOADS_CODE,
    PROXY_ONLY,
    WRITES_LOGS,
    deployment_parameters,
    module_settings,
    router_settings,
)
from parallel_core.config.providers import known_providers
from parallel_core.config.proxy_config import _BLOCKED_VARIABLES, _SECTIONS
from parallel_core.config.proxy_values import nearest
from parallel_core.config.run_router import router_from_config
from parallel_core.config.run_router_base import make_router
from parallel_core.secret_names import is_secret_name

# They pass as long as litellm stays the same.
pytestmark = [pytest.mark.usefixtures("no_keys_of_this_machine"), pytest.mark.thorough]

FOLDER = Path(litellm.__file__).parent
OUTSIDE_OF_CALLS = ("proxy", "integrations")  # folders of litellm

READ = re.compile(
    r"""\blitellm(?:_module)?\.(?P<dotted>[a-z]\w*)
      | getattr\(\s*litellm,\s*["'](?P<named>\w+)
      | from\ litellm\ import\ (?:\((?P<many>[^)]*)\)|(?P<few>[^\n(]+))
    """,
    re.VERBOSE,
)
VARIABLE = re.compile(
    r'(?:get_secret(?:_str)?|os\.getenv|os\.environ\.get)\(\s*"([A-Z][A-Z0-9_]+)"'
)


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    """Each module of litellm, by its path in the package."""
    return {
        path.relative_to(FOLDER).as_posix(): path.read_text("utf-8", "replace")
        for path in FOLDER.rglob("*.py")
    }


@pytest.fixture(scope="module")
def readers(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """The folders of litellm, and its single modules, in which each name of its module is read."""
    found: dict[str, set[str]] = {}
    for path, text in sources.items():
        if path == "__init__.py":
            continue
        folder = path.partition("/")[0]
        for match in READ.finditer(text):
            group = match.lastgroup or ""
            names = re.findall(r"\w+", match[group]) if group in ("many", "few") else [match[group]]
            for name in names:
                found.setdefault(name, set()).add(folder)
    return found


# --- the settings of a config ---

# Read by integrations or by the proxy server only, in this litellm or another, and passed on all
# the same: they change calls.
CHANGE_CALLS = {
    "anthropic_prompt_caching_ttl",
    "enable_anthropic_prompt_caching",
    "include_cost_in_streaming_usage",
    "provider_url_destination_allowed_hosts",
    "vector_store_search_failure_mode",
}
# Values that litellm keeps in its module, and no settings.
DATA = re.compile("_models$|^model_list$|^initialized_langfuse_clients$")


def test_settings_that_only_the_proxy_server_reads_are_listed(
    readers: Mapping[str, set[str]],
) -> None:
    known = module_settings()
    unseen = {
        name
        for name in known
        if name.islower()
        and not DATA.search(name)
        and (where := readers.get(name))
        and where <= set(OUTSIDE_OF_CALLS)
        and name not in PROXY_ONLY | LOADS_CODE | WRITES_LOGS | CHANGE_CALLS
    }
    assert not unseen, (
        "only the proxy server or an integration reads these settings of litellm: add them to "
        "PROXY_ONLY, or to CHANGE_CALLS if a call depends on them"
    )


# Listed, though the code of calls reads them: they do nothing without a callback, a cache, a
# guardrail or the users of the proxy server.
NEED_THE_PROXY = re.compile(
    "callback|^prometheus_|prometheus_only$|^custom_prometheus|^cache|caching|_ttl$|_cache_|guardrail"
    "|^priority_reservation|^cold_storage|^extra_spend_tag|^suppress_startup"
)


def test_no_setting_that_a_call_reads_is_listed_for_the_proxy_server(
    readers: Mapping[str, set[str]],
) -> None:
    known = module_settings()
    lost = {
        name
        for name in PROXY_ONLY
        if name in known
        and readers.get(name, set()) - set(OUTSIDE_OF_CALLS)
        and not NEED_THE_PROXY.search(name)
    }
    assert not lost, "calls of this litellm read these settings: take them out of PROXY_ONLY"


def test_settings_that_load_code_or_write_logs_are_listed() -> None:
    annotations: Mapping[str, object] = litellm.__annotations__
    takes_code = {
        name
        for name, annotation in annotations.items()
        if not name.startswith("_")
        and re.search(r"Callable|CustomLogger\b|CustomProviderMapItem", str(annotation))
    }
    assert {"pre_call_rules", "callbacks"} <= takes_code
    assert takes_code <= LOADS_CODE | PROXY_ONLY, "does a config name code with these settings?"
    of_logs = {
        name
        for name in (*module_settings(), *router_settings())
        if re.search(r"verbose|debug|(^|_)logs?(_|$)|raw_request", name)
    }
    decided = {
        # Modules and levels of logging; a text in errors that names deployments; fields of records.
        *("verbose_logger", "log_level", "expose_router_debug_in_errors", "error_logs"),
        *("request_correlation_in_logs", "global_disable_no_log_param"),
    }
    undecided = of_logs - WRITES_LOGS - PROXY_ONLY - decided
    assert not undecided, "do these settings have messages written into logs? Then: WRITES_LOGS"


def test_what_the_proxy_server_takes_of_litellm_settings_is_known(
    sources: Mapping[str, str],
) -> None:
    names = {
        name
        for path, text in sources.items()
        if path.startswith("proxy/")
        for name in re.findall(r'\blitellm_settings(?:\.get\(|\[)\s*"(\w+)"', text)
    }
    assert {"cache_params", "callbacks"} & names
    known = {*module_settings(), *PROXY_ONLY, *LOADS_CODE, *WRITES_LOGS, *CHANGE_CALLS}
    assert names <= known, "the proxy server reads these of litellm_settings: add to PROXY_ONLY"


def test_a_setting_of_a_newer_litellm_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(litellm, "brand_new_setting", None, raising=False)
    given: dict[str, Any] = {}
    make: Any = make_router

    def make_newer(
        whose: str, secrets: Any, model_list: Any, settings: Mapping[str, Any], *more: Any
    ) -> Any:
        given.update(settings)
        return make(whose, secrets, model_list, {}, *more)

    init = litellm.router.Router.__init__
    signature = inspect.signature(init)
    new = inspect.Parameter("brand_new", inspect.Parameter.KEYWORD_ONLY, annotation=int | None)
    newer = signature.replace(parameters=[*signature.parameters.values(), new])
    monkeypatch.setattr(init, "__signature__", newer, raising=False)
    monkeypatch.setattr(config_router, "make_router", make_newer)
    deployment = {"model": "openai/x", "api_key": "none", "api_base": "http://127.0.0.1:1"}
    config = {
        "model_list": [{"model_name": "gpt", "litellm_params": deployment}],
        "litellm_settings": {"brand_new_setting": [1], "ssl_verify": True, "max_budget": 3},
        "router_settings": {"brand_new": "7"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))
    with router_from_config(path) as run_router:
        assert run_router.warnings == []
        assert given == {"brand_new": 7}
        assert vars(litellm)["brand_new_setting"] == [1]
        assert litellm.max_budget == 3
    assert vars(litellm)["brand_new_setting"] is None
    assert litellm.max_budget == 0


def test_settings_of_the_router_are_those_that_the_proxy_server_takes() -> None:
    parameters = set(inspect.signature(litellm.router.Router.__init__).parameters)
    outside = set(litellm.constants.ROUTER_SETTINGS_MANAGED_OUTSIDE_CONFIG)
    assert set(router_settings()) == parameters - outside - {"self"}
    assert {"num_retries", "fallbacks", "routing_strategy"} <= set(router_settings())


# --- the rest of the file ---


def test_sections_of_the_proxy_server_are_no_misspelt_ones(sources: Mapping[str, str]) -> None:
    text = sources["proxy/proxy_server.py"]
    sections = set(re.findall(r'\bconfig(?:\.get\(|\[)"([a-z_]+)"', text)) - _SECTIONS
    assert {"general_settings", "guardrails"} <= sections
    assert [name for name in sections if nearest(name, _SECTIONS, likeness=0.85)] == []


def test_a_config_sets_no_variable_that_the_proxy_server_refuses(
    sources: Mapping[str, str],
) -> None:
    found = re.search(r"_BLOCKED_ENV_KEYS\b[^{]*\{([^}]*)\}", sources["proxy/proxy_server.py"])
    assert found is not None
    assert set(re.findall(r'"(\w+)"', found[1])) <= _BLOCKED_VARIABLES, "add to _BLOCKED_VARIABLES"


# --- keys ---

# Of parameters that litellm hides in its own logs: they say where, how much, or what refers to a
# key, and are no keys.
NOT_KEYS = re.compile("(_ref|_file|_url|_endpoint|_method|_scope|_profile|_audience|_id)$|rpm|tpm")


def test_parameters_that_litellm_hides_are_keys_here_too() -> None:
    from litellm.litellm_core_utils.sensitive_data_masker import SensitiveDataMasker

    is_hidden: Callable[[str], bool] = SensitiveDataMasker().is_sensitive_key
    names = [
        *deployment_parameters(),
        *(name for name in module_settings() if name.endswith(("_key", "_token"))),
    ]
    shown = {name for name in names if is_hidden(name) and not is_secret_name(name)}
    decided = {
        # A header for affinity, names of fields and of texts, prices and counts.
        *("configurable_clientside_auth_params", "use_xai_oauth", "provider_affinity_header"),
        *("anthropic_identity_source", "ssl_certificate"),
    }
    undecided = {name for name in shown - decided if not NOT_KEYS.search(name)}
    assert not undecided, "are these keys? Then: parallel_core/secret_names.py"


def test_variables_of_keys_are_known_by_their_names(sources: Mapping[str, str]) -> None:
    names = {
        name
        for path, text in sources.items()
        if path == "main.py" or path.startswith("llms/")
        for name in VARIABLE.findall(text)
        if name.endswith(("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIALS"))
    }
    assert len(names) > 50
    decided = {
        "DATAFORSEO_PASSWORD",  # of a search engine
    }
    undecided = {name for name in names - decided if not is_key_variable(name)}
    assert not undecided, "are these variables of keys? Then: is_key_variable of _run_endpoints"


def test_a_key_is_found_under_each_name_that_litellm_reads(
    sources: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    beside: dict[str, set[str]] = {}
    for path, text in sources.items():
        if path.partition("/")[0] in OUTSIDE_OF_CALLS:
            continue
        last: re.Match[str] | None = None
        for match in VARIABLE.finditer(text):  # get_secret("A") or get_secret("B")
            between = "" if last is None else text[last.end() : match.start()]
            if last and re.fullmatch(r"[^)]{0,30}\)\s*or\s*(?:litellm\.\w+\s*or\s*)*", between):
                beside.setdefault(last[1], set()).add(match[1])
                beside.setdefault(match[1], set()).add(last[1])
            last = match
    # The keys of other providers: qwencloud takes that of dashscope, and not the reverse.
    decided = {
        *(("dashscope", "QWENCLOUD_API_KEY"), ("dashscope", "QWEN_AI_PLATFORM_API_KEY")),
        ("nvidia_nim", "NVIDIA_RIVA_API_KEY"),
    }
    module: Any = litellm
    unseen: set[tuple[str, str]] = set()
    with quiet_litellm():
        # These log in over the network when they are only asked for their name.
        for provider in sorted(known_providers() - {"github_copilot", "chatgpt", "ragflow"}):
            missing = module.validate_environment(f"{provider}/x")["missing_keys"]
            for name in missing:
                for other in beside.get(name, set()) if name.endswith("_API_KEY") else ():
                    with monkeypatch.context() as patched:
                        patched.setenv(other, "a-key-of-theirs")
                        if endpoint_of("x", {"model": f"{provider}/x"}).missing_keys:
                            unseen.add((provider, other))
    unseen -= decided
    assert not unseen, "litellm finds a key in these variables, too: add them to _OTHER_NAMES"
