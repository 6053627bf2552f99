"""Reads the YAML file of litellm's proxy, as far as it shapes calls, and finds what is wrong in it.

Nothing here imports litellm or changes anything: what is read is a value. No message quotes a value
of the file, since it may be a key.
"""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias, cast
from urllib.parse import parse_qsl, urlsplit

import yaml

Place: TypeAlias = tuple[str | int, ...]

ENVIRONMENT_PREFIX: Final = "os.environ/"
MOST_VALUES: Final = 100_000  # in a file with its anchors written out: no real one has so many
SHORTEST_SECRET: Final = 6  # characters; shorter ones are parts of ordinary words
PLACEHOLDERS: Final = frozenset(
    {"anything", "fake-key", "no-key", "none", "not-needed", "not-used", "placeholder", "unused"}
)

_SECRET_NAME: Final = re.compile(
    r"api[_-]?key|access[_-]?key|[_-]key$|^key$|secret|token$|password|passphrase|credential"
    r"|authorization|^cookie$",
    re.IGNORECASE,
)
_SCHEME: Final = re.compile(r"(?:basic|bearer|token) +", re.IGNORECASE)

LITELLM_SETTINGS: Final = frozenset(
    {
        *("add_function_to_prompt", "aiohttp_trust_env", "allowed_fails"),
        *("anthropic_prompt_caching_ttl", "api_base", "api_version", "content_policy_fallbacks"),
        *("context_window_fallbacks", "cost_discount_config", "cost_margin_config"),
        *("custom_prompt_dict", "default_fallbacks", "disable_add_prefix_to_prompt"),
        *("disable_aiohttp_transport", "disable_aiohttp_trust_env"),
        *("disable_copilot_system_to_assistant", "disable_hf_tokenizer_download"),
        *("disable_stop_sequence_limit", "disable_token_counter", "drop_params"),
        *("enable_anthropic_prompt_caching", "enable_azure_ad_token_refresh"),
        *("enable_json_schema_validation", "enable_preview_features", "fallbacks"),
        *("force_ipv4", "headers", "http2", "max_fallbacks", "max_tokens", "model_alias_map"),
        *("modify_params", "num_retries", "num_retries_per_request"),
        *("openai_system_messages_first", "organization", "proxy_auth", "reasoning_auto_summary"),
        *("request_timeout", "route_all_chat_openai_to_responses", "ssl_certificate"),
        *("ssl_ecdh_curve", "ssl_security_level", "ssl_verify", "suppress_debug_info"),
        *("turn_off_message_logging", "use_aiohttp_transport", "use_litellm_proxy"),
        *("vertex_ai_safety_settings", "vertex_location", "vertex_project"),
    }
)
"""Those of ``litellm_settings`` that shape calls; and those whose names end with ``_key``."""

_TALKATIVE_SETTINGS: Final = frozenset({"debug_level", "json_logs", "log_raw_request_response"})
_SECTIONS: Final = frozenset(
    {
        *("credential_list", "environment_variables", "include", "litellm_settings"),
        *("model_list", "router_settings"),
    }
)
_SECTIONS_OF_THE_PROXY: Final = frozenset(
    {
        *("agent_list", "assistant_settings", "callback_settings", "coordination_redis"),
        *("default_vertex_config", "files_settings", "finetune_settings", "general_settings"),
        *("guardrails", "mcp_aliases", "mcp_servers", "mcp_tools", "policies", "prompts"),
        *("sandbox_tools", "search_tools", "vector_store_registry"),
    }
)
# The proxy does not let a file change these either: they say which programs are run, and as whom.
_BLOCKED_VARIABLES: Final = frozenset(
    {
        *("DYLD_INSERT_LIBRARIES", "DYLD_LIBRARY_PATH", "HOME", "LD_LIBRARY_PATH", "LD_PRELOAD"),
        *("LOGNAME", "NO_PROXY", "PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "SHELL"),
        *("USER", "no_proxy"),
    }
)


class RouterConfigError(ValueError):
    """A Router cannot be made from what a user has given: a file, a model's name, an address.

    Raised before any call. Its text names every problem, where it is and what to do, one a line; no
    key is in it.

    Attributes:
        problems: the lines.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True)
class MissingVariable:
    """An environment variable that the file refers to and that is not set.

    Attributes:
        name: of the variable.
        place: the file, the line, and which setting refers to it.
    """

    name: str
    place: str

    def __str__(self) -> str:
        return (
            f"{self.place}: the environment variable {self.name} is not set; set it, "
            "for instance with export"
        )


@dataclass(frozen=True, repr=False)  # a repr would show keys
class Deployment:
    """One entry of ``model_list``.

    Attributes:
        place: the file and the line.
        name: the name that requests use.
        values: the entry, as the Router takes it.
    """

    place: str
    name: str
    values: dict[str, Any]

    @property
    def parameters(self) -> dict[str, Any]:
        """Its ``litellm_params``."""
        return cast("dict[str, Any]", self.values["litellm_params"])


@dataclass(frozen=True, repr=False)
class Setting:
    """A value of a section, and where it is."""

    place: str
    value: Any


@dataclass(frozen=True, repr=False)
class ProxyConfig:
    """What a file of litellm's proxy says about calls.

    Attributes:
        path: of the file.
        deployments: the entries of ``model_list``, those of included files too.
        router_settings: arguments of the Router; their names are not checked yet.
        litellm_settings: those that shape calls.
        variables: the ``environment_variables``.
        credentials: the entries of ``credential_list``.
        warnings: what has been passed over, for the user to read.
        other_secrets: keys that are in sections that have been passed over.
    """

    path: Path
    deployments: list[Deployment]
    router_settings: dict[str, Setting]
    litellm_settings: dict[str, Setting]
    variables: dict[str, Setting]
    credentials: list[Setting]
    warnings: list[str]
    other_secrets: frozenset[str]

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The variables that the file sets, where ``environment`` is what is set already."""
        return {
            name: str(value)
            for name, setting in self.variables.items()
            if (value := resolved(setting.value, environment)) is not None
        }

    def missing(self, environment: Mapping[str, str]) -> list[MissingVariable]:
        """The variables that are referred to and not set: neither there nor by the file itself."""
        known = {**environment, **self.environment(environment)}
        settings = [
            *((f"{d.place}: litellm_params", d.parameters) for d in self.deployments),
            *((setting.place, setting.value) for setting in self.router_settings.values()),
            *((setting.place, setting.value) for setting in self.litellm_settings.values()),
            *((setting.place, setting.value) for setting in self.credentials),
        ]
        return [
            MissingVariable(variable, f"{place}{_dotted(inner)}")
            for place, value in settings
            for inner, variable in references(value)
            if not known.get(variable)
        ]

    def secrets(self, environment: Mapping[str, str]) -> frozenset[str]:
        """Every key that the file holds or refers to."""
        known = {**environment, **self.environment(environment)}
        sections: list[Any] = [
            *(deployment.values for deployment in self.deployments),
            {name: setting.value for name, setting in self.router_settings.items()},
            {name: setting.value for name, setting in self.litellm_settings.items()},
            {name: setting.value for name, setting in self.variables.items()},
            *(setting.value for setting in self.credentials),
        ]
        found = {secret for section in sections for secret in secrets_in(resolved(section, known))}
        return frozenset(found) | self.other_secrets


def read_proxy_config(path: Path) -> ProxyConfig:
    """Read and check the file, with the files that it includes.

    Raises:
        RouterConfigError: with every problem that was found.
    """
    reading = _Reading()
    reading.read(path)
    if not reading.deployments and not reading.problems:
        reading.problems.append(
            f"{path}: there is no model_list; it lists the models, each with its model_name and "
            "litellm_params"
        )
    if reading.problems:
        raise RouterConfigError(reading.problems)
    return ProxyConfig(
        path=path,
        deployments=reading.deployments,
        router_settings=reading.router_settings,
        litellm_settings=reading.litellm_settings,
        variables=reading.variables,
        credentials=reading.credentials,
        warnings=reading.warnings,
        other_secrets=frozenset(reading.other_secrets),
    )


@dataclass
class _Reading:
    """What has been read up to now. A file that is included adds to it, and its settings win."""

    problems: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])
    deployments: list[Deployment] = field(default_factory=list[Deployment])
    router_settings: dict[str, Setting] = field(default_factory=dict[str, Setting])
    litellm_settings: dict[str, Setting] = field(default_factory=dict[str, Setting])
    variables: dict[str, Setting] = field(default_factory=dict[str, Setting])
    credentials: list[Setting] = field(default_factory=list[Setting])
    other_secrets: set[str] = field(default_factory=set[str])
    _files: set[Path] = field(default_factory=set[Path])

    def read(self, path: Path, included_by: str | None = None) -> None:
        if path.resolve() in self._files:
            return
        self._files.add(path.resolve())
        try:
            document = _Document.load(path)
        except RouterConfigError as error:
            because = f" (included by {included_by})" if included_by else ""
            self.problems += [f"{problem}{because}" for problem in error.problems]
            return
        for name in document.values:
            self._take_section(document, name)
        for index, name in enumerate(document.list_of("include", self.problems)):
            place = document.place("include", index)
            if not isinstance(name, str):
                self.problems.append(f"{place}: must be the name of a file")
                continue
            self.read(path.parent / name, place)

    def _take_section(self, document: _Document, name: str) -> None:
        if name == "model_list":
            self._take_model_list(document)
        elif name == "router_settings":
            self._take_router_settings(document)
        elif name == "litellm_settings":
            self._take_litellm_settings(document)
        elif name == "environment_variables":
            self._take_variables(document)
        elif name == "credential_list":
            for index, entry in enumerate(document.list_of(name, self.problems)):
                self.credentials.append(Setting(document.place(name, index), entry))
        elif name not in _SECTIONS:
            self._pass_over(document, name)

    def _take_model_list(self, document: _Document) -> None:
        for index, entry in enumerate(document.list_of("model_list", self.problems)):
            place = document.place("model_list", index)
            if not isinstance(entry, dict):
                self.problems.append(f"{place}: must have model_name and litellm_params")
                continue
            values = cast("dict[str, Any]", entry)
            name, parameters = values.get("model_name"), values.get("litellm_params")
            if not isinstance(name, str) or not name:
                self.problems.append(
                    f"{place}: model_name is missing; it is the name that requests use"
                )
                continue
            place = f"{place} ({name!r})"
            if not isinstance(parameters, dict):
                self.problems.append(f"{place}: litellm_params is missing, or no mapping")
                continue
            model = cast("dict[str, Any]", parameters).get("model")
            if not isinstance(model, str) or not model:
                self.problems.append(
                    f"{place}: litellm_params.model is missing; for instance openai/{name}"
                )
                continue
            self.deployments.append(Deployment(place, name, values))

    def _take_router_settings(self, document: _Document) -> None:
        for name, value in document.mapping_of("router_settings", self.problems).items():
            place = document.place("router_settings", name)
            if name in _TALKATIVE_SETTINGS or name == "set_verbose":
                self._warn(place, "it would have messages written into logs")
            elif name == "plugins":
                self._warn(place, "a run of a file loads no code")
            else:
                self.router_settings[name] = Setting(place, value)

    def _take_litellm_settings(self, document: _Document) -> None:
        passed_over: list[str] = []
        for name, value in document.mapping_of("litellm_settings", self.problems).items():
            place = document.place("litellm_settings", name)
            if name in LITELLM_SETTINGS or name.endswith("_key"):
                self.litellm_settings[name] = Setting(place, value)
                continue
            self.other_secrets.update(secrets_in(value, name))
            if name in _TALKATIVE_SETTINGS or name == "set_verbose":
                self._warn(place, "it would have messages written into logs")
            elif name != "callbacks" and (near := nearest(name, LITELLM_SETTINGS, likeness=0.85)):
                self._warn(place, f"it is unknown here; is {near} meant?")
            else:
                passed_over.append(name)
        if passed_over:
            place = document.place("litellm_settings")
            self._warn(
                f"{place}: {', '.join(passed_over)}", "of the proxy server, no part of a call"
            )

    def _take_variables(self, document: _Document) -> None:
        for name, value in document.mapping_of("environment_variables", self.problems).items():
            place = document.place("environment_variables", name)
            if name in _BLOCKED_VARIABLES:
                self._warn(place, "no file may set it")
            elif isinstance(value, (dict, list, type(None))):
                self.problems.append(f"{place}: must be a text")
            elif "\0" in f"{name}{value}" or "=" in name or not name:
                self.problems.append(f"{place}: cannot be an environment variable")
            else:
                self.variables[name] = Setting(place, value)

    def _pass_over(self, document: _Document, name: str) -> None:
        self.other_secrets.update(secrets_in(document.values[name], name))
        near = None if name in _SECTIONS_OF_THE_PROXY else nearest(name, _SECTIONS)
        why = f"it is unknown here; is {near} meant?" if near else "of the proxy server"
        self._warn(document.place(name), why)

    def _warn(self, place: str, why: str) -> None:
        self.warnings.append(f"{place} is passed over: {why}")


class _Document:
    """A YAML file whose top is a mapping, and the lines of what is in it."""

    def __init__(self, path: Path, values: dict[str, Any], lines: Mapping[Place, int]) -> None:
        self.path = path
        self.values = values
        self._lines = lines

    @classmethod
    def load(cls, path: Path) -> _Document:
        try:
            text = path.read_bytes()
        except OSError as error:
            raise RouterConfigError([f"{path} cannot be read: {error.strerror}"]) from None
        try:
            values, lines = _parse(path, text)
        except RouterConfigError:
            raise
        except yaml.MarkedYAMLError as error:
            raise RouterConfigError([_wrong_yaml(path, error)]) from None
        except yaml.YAMLError:
            problem = f"{path} is not YAML: it has bytes or characters that a text cannot have"
            raise RouterConfigError([problem]) from None
        except RecursionError:
            raise RouterConfigError([f"{path} is nested too deeply, or in itself"]) from None
        except (ValueError, TypeError):  # whose texts quote the file
            problem = f"{path} is not valid YAML: a date, a number or a key of a mapping is wrong"
            raise RouterConfigError([problem]) from None
        if values is None:
            raise RouterConfigError([f"{path} is empty; it needs a model_list"])
        if not isinstance(values, dict):
            what = "a list" if isinstance(values, list) else "a single value"
            problem = f"{path}, line 1: the file is {what}; at its top there must be model_list:"
            raise RouterConfigError([problem])
        sections = cast("dict[object, Any]", values)
        return cls(path, {str(name): value for name, value in sections.items()}, lines)

    def place(self, *inner: str | int) -> str:
        """Where something is, for the user: the file, the line and the names."""
        line = self._lines.get(inner)
        where = f"{self.path}, line {line}" if line else f"{self.path}"
        return f"{where}: {_dotted(inner).removeprefix('.')}"

    def list_of(self, name: str, problems: list[str]) -> list[Any]:
        value = self.values.get(name)
        if isinstance(value, list):
            return cast("list[Any]", self.values[name])
        if value is not None:
            problems.append(f"{self.place(name)}: must be a list, whose entries begin with '- '")
        return []

    def mapping_of(self, name: str, problems: list[str]) -> dict[str, Any]:
        value = self.values.get(name)
        if isinstance(value, dict):
            mapping = cast("dict[object, Any]", value)
            return {str(key): inner for key, inner in mapping.items()}
        if value is not None:
            problems.append(f"{self.place(name)}: must be a mapping, 'name: value' on each line")
        return {}


# --- YAML ---


def _parse(path: Path, text: bytes) -> tuple[Any, dict[Place, int]]:
    loader: Any = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        lines: dict[Place, int] = {}
        duplicates: list[str] = []
        for place, line, is_duplicate in _walk(node):
            if is_duplicate:
                duplicates.append(
                    f"{path}, line {line}: {_dotted(place).removeprefix('.')} is there twice; "
                    "keep one of them"
                )
            lines.setdefault(place, line)
            if len(lines) > MOST_VALUES:
                raise RouterConfigError([f"{path} has more than {MOST_VALUES} values"])
        if duplicates:
            raise RouterConfigError(duplicates)
        return _plain(loader.construct_document(node)), lines
    finally:
        loader.dispose()


def _walk(
    node: yaml.Node, place: Place = (), above: frozenset[int] = frozenset()
) -> Iterator[tuple[Place, int, bool]]:
    """Each value below a node: its names, its line from 1, and whether its key was there before."""
    if id(node) in above:
        raise RecursionError
    above |= {id(node)}
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            inner = (*place, name)
            is_merge = key.tag == "tag:yaml.org,2002:merge"
            yield inner, key.start_mark.line + 1, name in seen and not is_merge
            seen.add(name)
            yield from _walk(value, inner, above)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*place, index), value.start_mark.line + 1, False
            yield from _walk(value, (*place, index), above)


def _plain(value: object) -> Any:
    """A copy, in which what anchors share is not shared, and a date is the text that it was.

    ``api_version: 2024-02-01`` without quotes is a date to YAML and a text to everybody else.
    """
    if isinstance(value, dict):
        mapping = cast("dict[object, Any]", value)
        return {key: _plain(inner) for key, inner in mapping.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in cast("list[object]", value)]
    return value.isoformat() if isinstance(value, datetime.date) else value


def _wrong_yaml(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = f", line {mark.line + 1}" if mark else ""
    problem = error.problem or "it cannot be read"
    hint = ""
    if "\\t" in problem:
        problem, hint = "there is a tab", "; YAML is indented with spaces only"
    elif "alias" in problem:
        hint = "; an anchor (&name) must come before its alias (*name)"
    elif "constructor for the tag" in problem:
        hint = "; tags that make objects are not allowed"
    return f"{path}{line}: not valid YAML: {problem}{hint}"


# --- values ---


def references(value: object, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Each ``os.environ/NAME`` in a value: where it is, and the name."""
    if isinstance(value, dict):
        for name, inner in cast("dict[str, object]", value).items():
            yield from references(inner, (*place, name))
    elif isinstance(value, list):
        for index, inner in enumerate(cast("list[object]", value)):
            yield from references(inner, (*place, index))
    elif (variable := variable_of(value)) is not None and not (place and _is_pointer(place[-1])):
        yield place, variable


def resolved(value: object, environment: Mapping[str, str]) -> Any:
    """A copy of a value, with what is in the environment in place of each ``os.environ/NAME``.

    ``None`` where it is not set; ``true`` and ``false`` become booleans, as litellm has it.
    """
    if isinstance(value, dict):
        mapping = cast("dict[object, object]", value)
        return {
            name: inner if _is_pointer(name) else resolved(inner, environment)
            for name, inner in mapping.items()
        }
    if isinstance(value, list):
        return [resolved(inner, environment) for inner in cast("list[object]", value)]
    name = variable_of(value)
    if name is None:
        return value
    text = environment.get(name)
    return {"true": True, "false": False}.get((text or "").strip().lower(), text)


def variable_of(value: object) -> str | None:
    """``NAME`` of ``os.environ/NAME``; None for other values.

    ``os.environ/oidc/…`` is a token that litellm fetches itself.
    """
    if not isinstance(value, str) or not value.startswith(ENVIRONMENT_PREFIX):
        return None
    name = value.removeprefix(ENVIRONMENT_PREFIX)
    return None if name.startswith("oidc/") else name


def _is_pointer(name: object) -> bool:
    # Such a parameter names where a secret is; litellm reads it itself when it needs it.
    return isinstance(name, str) and name.endswith("_ref")


def secrets_in(value: object, name: str = "") -> Iterator[str]:
    """Every text in a value that is a key, judged by its name; and what URLs hide."""
    if isinstance(value, dict):
        for key, inner in cast("dict[object, object]", value).items():
            yield from secrets_in(inner, str(key))
    elif isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from secrets_in(inner, name)
    elif isinstance(value, str) and not value.startswith(ENVIRONMENT_PREFIX):
        found = list(_secrets_of_url(value)) if "://" in value else []
        if is_secret_name(name):
            found += [value, _SCHEME.sub("", value, count=1)]
        yield from (secret for secret in found if _is_worth_hiding(secret))


def is_secret_name(name: str) -> bool:
    """Whether what has this name is a key, a token or a password."""
    return _SECRET_NAME.search(name) is not None


def _secrets_of_url(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        if parts.password:
            yield parts.password
        yield from (value for name, value in parse_qsl(parts.query) if is_secret_name(name))
    except ValueError:  # it only looks like a URL
        return


def _is_worth_hiding(text: str) -> bool:
    return len(text) >= SHORTEST_SECRET and text.lower() not in PLACEHOLDERS


def nearest(name: str, names: Iterable[str], *, likeness: float = 0.75) -> str | None:
    """The name among ``names`` that a misspelt one means; None where none is so like it.

    ``likeness`` is from 0 to 1: the same.
    """
    found = difflib.get_close_matches(name, sorted(names), n=1, cutoff=likeness)
    return found[0] if found else None


def _dotted(place: Place) -> str:
    """``("model_list", 0, "model_name")`` as ``".model_list[0].model_name"``."""
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in place)
