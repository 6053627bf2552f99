"""Read and check the YAML file of litellm's proxy, as far as it affects calls.

This module does not import litellm and changes nothing in the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from .litellm_settings import LOADS_CODE, PROXY_ONLY, WRITES_LOGS
from .proxy_values import (
    RouterConfigError,
    dotted,
    is_set,
    nearest,
    not_a_text,
    references,
    resolved,
    secrets_in,
)
from .proxy_yaml import Document

_WHY_PROXY_ONLY: Final = "only the proxy server uses it"

_SECTIONS: Final = frozenset(
    {
        *("credential_list", "environment_variables", "include", "litellm_settings"),
        *("model_list", "router_settings"),
    }
)
# These decide which programs run, and as which user. A test compares them with the list of the
# proxy server.
_BLOCKED_VARIABLES: Final = frozenset(
    {
        *("DYLD_INSERT_LIBRARIES", "DYLD_LIBRARY_PATH", "HOME", "LD_LIBRARY_PATH", "LD_PRELOAD"),
        *("LOGNAME", "NO_PROXY", "PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "SHELL"),
        *("USER", "no_proxy"),
    }
)


@dataclass(frozen=True)
class MissingVariable:
    """An environment variable that the file refers to and that is not set.

    Attributes:
        name: name of the variable.
        place: the file, the line and the setting that refers to it.
    """

    name: str
    place: str

    def __str__(self) -> str:
        return (
            f"{self.place}: the environment variable {self.name} is not set or is empty; set it, "
            "for instance with export"
        )


@dataclass(frozen=True, repr=False)  # a repr would show keys
class Deployment:
    """One entry of ``model_list``.

    Attributes:
        place: the file and the line.
        name: the name that requests use.
        values: the entry, in the form that the Router takes.
    """

    place: str
    name: str
    values: dict[str, Any]

    @property
    def parameters(self) -> dict[str, Any]:
        """Return the ``litellm_params`` of the deployment."""
        return cast("dict[str, Any]", self.values["litellm_params"])


@dataclass(frozen=True, repr=False)
class Setting:
    """A value of a section, with its place in the file."""

    place: str
    value: Any


@dataclass(frozen=True, repr=False)
class ProxyConfig:
    """The parts of a file of litellm's proxy that affect calls.

    Attributes:
        path: path of the file.
        deployments: the entries of ``model_list``, including those of included files.
        router_settings: arguments of the Router; their names are not checked yet.
        litellm_settings: all but those that only the proxy server uses; their names are not checked
            yet.
        variables: the ``environment_variables``.
        credentials: the entries of ``credential_list``.
        warnings: the ignored settings, as lines for the user.
        other_secrets: keys in the ignored settings.
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
        """Return the variables that the file sets. It may refer to those in ``environment``."""
        return {
            name: str(value)
            for name, setting in self.variables.items()
            if (value := resolved(setting.value, environment)) is not None
        }

    def missing(self, environment: Mapping[str, str]) -> list[MissingVariable]:
        """Return the variables that the file refers to, but neither it nor ``environment`` sets."""
        known = {**environment, **self.environment(environment)}
        settings = [
            *((f"{d.place}: litellm_params", d.parameters) for d in self.deployments),
            *((setting.place, setting.value) for setting in self.router_settings.values()),
            *((setting.place, setting.value) for setting in self.litellm_settings.values()),
            *((setting.place, setting.value) for setting in self.credentials),
        ]
        return [
            MissingVariable(variable, f"{place}{dotted(inner)}")
            for place, value in settings
            for inner, variable in references(value)
            if not is_set(variable, known)
        ]

    def secrets(self, environment: Mapping[str, str]) -> frozenset[str]:
        """Return every key that the file contains or refers to."""
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
    """Read and check a file, with the files that it includes.

    Raises:
        RouterConfigError: the file has problems; it lists all of them.
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
    """Contents read so far. An included file adds to them, and its settings take precedence."""

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
            document = Document.load(path)
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

    def _take_section(self, document: Document, name: str) -> None:
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
            self._ignore_section(document, name)

    def _take_model_list(self, document: Document) -> None:
        for index, entry in enumerate(document.list_of("model_list", self.problems)):
            place = document.place("model_list", index)
            if not isinstance(entry, dict):
                self.problems.append(f"{place}: must have model_name and litellm_params")
                continue
            values = cast("dict[str, Any]", entry)
            name, parameters = values.get("model_name"), values.get("litellm_params")
            if isinstance(name, (bool, int, float)):
                self.problems.append(not_a_text(f"{place}: model_name", name))
                continue
            if not isinstance(name, str) or not name:
                self.problems.append(
                    f"{place}: model_name is missing; it is the name that requests use"
                )
                continue
            place = f"{place} ({name!r})"
            if not isinstance(parameters, dict):
                self.problems.append(f"{place}: litellm_params is missing, or is not a mapping")
                continue
            known = cast("dict[str, Any]", parameters)
            model = known.get("model")
            if isinstance(model, (bool, int, float)):
                self.problems.append(not_a_text(f"{place}: litellm_params.model", model))
                continue
            if not isinstance(model, str) or not model:
                self.problems.append(
                    f"{place}: litellm_params.model is missing; for instance openai/{name}"
                )
                continue
            self.deployments.append(Deployment(place, name, values))

    def _take_router_settings(self, document: Document) -> None:
        for name, value in document.mapping_of("router_settings", self.problems).items():
            place = document.place("router_settings", name)
            if why := _why_left_out(name):
                self._ignore(place, why)
            else:
                self.router_settings[name] = Setting(place, value)

    def _take_litellm_settings(self, document: Document) -> None:
        only_of_the_proxy: list[str] = []
        for name, value in document.mapping_of("litellm_settings", self.problems).items():
            place = document.place("litellm_settings", name)
            why = _why_left_out(name)
            if why is None and name not in _SECTIONS and name not in PROXY_ONLY:
                self.litellm_settings[name] = Setting(place, value)
                continue
            self.other_secrets.update(secrets_in(value, name))
            if why:
                self._ignore(place, why)
            elif name in _SECTIONS:
                self._ignore(place, "it is a section of its own")
            else:
                only_of_the_proxy.append(name)
        if only_of_the_proxy:
            place = f"{document.place('litellm_settings')}: {', '.join(only_of_the_proxy)}"
            self._ignore(place, _WHY_PROXY_ONLY)

    def _take_variables(self, document: Document) -> None:
        for name, value in document.mapping_of("environment_variables", self.problems).items():
            place = document.place("environment_variables", name)
            if name in _BLOCKED_VARIABLES:
                self._ignore(place, "a config may not set this variable")
            elif isinstance(value, (dict, list, type(None))):
                self.problems.append(f"{place}: must be a text")
            elif "\0" in f"{name}{value}" or "=" in name or not name:
                self.problems.append(f"{place}: cannot be an environment variable")
            else:
                self.variables[name] = Setting(place, value)

    def _ignore_section(self, document: Document, name: str) -> None:
        self.other_secrets.update(secrets_in(document.values[name], name))
        near = nearest(name, _SECTIONS, likeness=0.85)
        why = f"there is no such section; is {near} meant?" if near else _WHY_PROXY_ONLY
        self._ignore(document.place(name), why)

    def _ignore(self, place: str, why: str) -> None:
        self.warnings.append(f"{place}: ignored, {why}")


def _why_left_out(name: str) -> str | None:
    if name in WRITES_LOGS:
        return "it would write messages into logs"
    return "a run of a file loads no code" if name in LOADS_CODE else None
