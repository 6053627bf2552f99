"""The command ``parallel-core doctor``: check if a run can work on this machine."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parallel_core.config import (
    Endpoint,
    RouterConfigError,
    endpoint_of,
    is_key_variable,
    is_set,
    silence_libraries,
)
from parallel_core.config.applied_config import applied_config, unknown_litellm_settings
from parallel_core.config.proxy_config import ProxyConfig, read_proxy_config
from parallel_core.config.run_router import router_from_config, router_from_model
from parallel_core.printable import printable

from .terminal import console, json_line

CONNECT_TIMEOUT: Final = 5.0  # seconds for an endpoint to answer
CHECKS_AT_ONCE: Final = 16
PACKAGES: Final = (
    *("parallel_core", "litellm", "trio", "trio-asyncio", "anyio", "aiohttp", "openai"),
    *("msgspec", "uvloop"),
)
PROXY_VARIABLES: Final = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class Reachability(msgspec.Struct, frozen=True):
    """Result of a request to an address.

    Attributes:
        ok: True if the address answered, with any status.
        text: the HTTP status, or the error.
    """

    ok: bool
    text: str


class EndpointFinding(msgspec.Struct, frozen=True):
    """Findings about a deployment.

    Attributes:
        model_name: the name that requests use.
        model: litellm's name of the model.
        address: address of its calls; None if it is not known before a call.
        reachable: True if the address answered; None if it was not tried.
        answer: the HTTP status, or the error.
        missing_keys: environment variables that are needed and not set.
        is_key_known: False if only a call can show whether there is a key.
    """

    model_name: str
    model: str
    address: str | None
    reachable: bool | None
    answer: str
    missing_keys: tuple[str, ...]
    is_key_known: bool


class Findings(msgspec.Struct, frozen=True):
    """All findings of the command. For keys and proxies, only the variables' names are included.

    Attributes:
        versions: versions of Python and of packages.
        config: the file.
        endpoints: findings for each deployment.
        missing: variables that the config refers to and that are not set, with their places.
        keys: the variables of keys that are set.
        proxies: the variables of proxies that are set.
        warnings: settings of the config that are ignored.
    """

    versions: dict[str, str]
    config: str | None
    endpoints: list[EndpointFinding]
    missing: list[str]
    keys: list[str]
    proxies: list[str]
    warnings: list[str]

    @property
    def ok(self) -> bool:
        """True if every address that was tried answered, and nothing is missing."""
        return not self.missing and all(
            e.reachable is not False and not e.missing_keys for e in self.endpoints
        )


def command(
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file of litellm's proxy.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model, by its litellm name, such as openai/gpt-4o-mini.")
    ] = None,
    api_base: Annotated[str | None, typer.Option(help="Address of the model's server.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show versions, the config, the names of the keys that are set, and which endpoints answer.

    Each endpoint gets one GET of its list of models, without a key. Any HTTP status counts as an
    answer. Exit codes: 0 all is well, 1 an endpoint does not answer or a key is missing, 2 the
    config or an option is wrong.
    """
    # Otherwise litellm fetches its price map over the network at import. No prices are needed here.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        if api_base is not None and model is None:
            raise RouterConfigError(["--api-base is the address of a model: give --model, too"])
        if config is not None and model is not None:
            raise RouterConfigError(["give --config or --model, not both"])
        with silence_libraries():
            findings = examine(config, model=model, api_base=api_base)
    except RouterConfigError as error:
        if as_json:
            typer.echo(json_line(event="error", text=str(error)))
        else:
            typer.echo(printable(str(error)), err=True)
        raise typer.Exit(2) from None
    if as_json:
        values: dict[str, Any] = {**msgspec.to_builtins(findings), "ok": findings.ok}
        typer.echo(json_line(**values))
    else:
        show_findings(console(), findings)
    raise typer.Exit(0 if findings.ok else 1)


def examine(
    config: Path | None = None, *, model: str | None = None, api_base: str | None = None
) -> Findings:
    """Examine this machine, and the endpoints of a config or of a model.

    Raises:
        RouterConfigError: the config is wrong, or litellm does not know the model's provider. A
            missing key is a finding, not an error.
    """
    endpoints: list[Endpoint] = []
    missing: list[str] = []
    warnings: list[str] = []
    if config is not None:
        proxy_config = read_proxy_config(config)
        with applied_config(proxy_config):
            missing = [str(variable) for variable in proxy_config.missing(os.environ)]
            warnings = [*proxy_config.warnings, *unknown_litellm_settings(proxy_config)]
        endpoints = _endpoints_of_config(proxy_config, is_complete=not missing)
    elif model is not None:
        endpoints = [_endpoint_of_model(model, api_base)]
    answers = asyncio.run(_try_all({e.api_base for e in endpoints if e.api_base is not None}))
    return Findings(
        versions=_versions(),
        config=None if config is None else str(config),
        endpoints=[_finding(endpoint, answers) for endpoint in endpoints],
        missing=missing,
        keys=sorted(
            name for name in os.environ if is_key_variable(name) and is_set(name, os.environ)
        ),
        proxies=sorted(name for name in os.environ if name.upper() in PROXY_VARIABLES),
        warnings=warnings,
    )


# --- configuration ---


def _endpoints_of_config(config: ProxyConfig, *, is_complete: bool) -> list[Endpoint]:
    if is_complete:  # make the Router, as a run does: this finds further problems
        with router_from_config(config.path) as run_router:
            return run_router.endpoints
    problems: list[str] = []
    endpoints: list[Endpoint] = []
    with applied_config(config):
        for deployment in config.deployments:
            try:
                endpoints.append(endpoint_of(deployment.name, deployment.parameters))
            except RouterConfigError as error:
                problems += [f"{deployment.place}: {problem}" for problem in error.problems]
    if problems:
        raise RouterConfigError(problems)
    return endpoints


def _endpoint_of_model(model: str, api_base: str | None) -> Endpoint:
    if api_base is None:
        return endpoint_of(model, {"model": model})  # a missing key is a finding
    with router_from_model(model, api_base=api_base) as run_router:
        return run_router.endpoints[0]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _finding(endpoint: Endpoint, answers: Mapping[str, Reachability]) -> EndpointFinding:
    answer = answers.get(endpoint.api_base or "")
    return EndpointFinding(
        model_name=endpoint.model_name,
        model=endpoint.model,
        address=endpoint.api_base,
        reachable=None if answer is None else answer.ok,
        answer="not tried: the address is not known" if answer is None else answer.text,
        missing_keys=endpoint.missing_keys,
        is_key_known=endpoint.is_key_known,
    )


# --- reachability ---


async def _try_all(addresses: Iterable[str]) -> dict[str, Reachability]:
    from parallel_core.bridge import parallel_map

    results = await parallel_map(_try, sorted(addresses), concurrency=CHECKS_AT_ONCE)
    return {result.item: result.unwrap() for result in results}


async def _try(address: str) -> Reachability:
    """Request the list of models. It costs nothing, and no key is sent."""
    import aiohttp

    # A proxy from the environment cannot reach the loopback of this machine.
    through_proxy = urlsplit(address).hostname not in LOOPBACK
    timeout = aiohttp.ClientTimeout(total=CONNECT_TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=through_proxy) as session,
            session.get(f"{address.rstrip('/')}/models", allow_redirects=False) as response,
        ):
            return Reachability(True, f"HTTP {response.status}")
    except TimeoutError:
        return Reachability(False, f"no answer within {CONNECT_TIMEOUT:g} s")
    except aiohttp.ClientConnectorCertificateError:
        return Reachability(False, "certificate not trusted")
    except aiohttp.ClientConnectorDNSError:
        return Reachability(False, "host name not found")
    except aiohttp.ClientConnectorError as error:
        reason = os.strerror(error.errno) if error.errno else "no connection"
        return Reachability(False, reason)
    except (aiohttp.ClientError, OSError, ValueError) as error:  # their texts may quote a proxy
        return Reachability(False, type(error).__name__)


# --- output ---


def show_findings(screen: Console, findings: Findings) -> None:
    """Print the findings as tables and lines."""
    versions = Table("package", "version", title="versions", title_justify="left")
    for package, version in findings.versions.items():
        versions.add_row(package, version)
    screen.print(versions)

    def say(text: str, beginning: str = "", style: str = "") -> None:
        screen.print(Text.assemble((beginning, style), printable(text)), soft_wrap=True)

    if findings.endpoints:
        screen.print(_endpoint_table(findings))
    else:
        say("endpoints: none; give --config FILE or --model NAME to check them")
    say(f"keys that are set: {', '.join(findings.keys) or 'none'}")
    say(f"proxies that are set: {', '.join(findings.proxies) or 'none'}")
    for missing in findings.missing:
        say(f" {missing}", "missing", "red")
    for warning in findings.warnings:
        say(f" {warning}", "warning", "yellow")
    if findings.ok:
        say("", "all is well" if findings.endpoints else "the packages are there", "green")
    else:
        say("", "an endpoint does not answer, or a key or a variable is missing: see above", "red")


def _endpoint_table(findings: Findings) -> Table:
    title = "endpoints"
    if findings.config is not None:
        title += f" in {printable(findings.config)}"
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    for heading in ("model", "litellm model", "address", "answer", "key"):
        table.add_column(heading, overflow="fold")
    for endpoint in findings.endpoints:
        colour = {True: "green", False: "red", None: "yellow"}[endpoint.reachable]
        key, key_colour = ("ok", "green") if endpoint.is_key_known else ("not known", "yellow")
        if endpoint.missing_keys:
            key, key_colour = f"{' or '.join(endpoint.missing_keys)} is missing", "red"
        table.add_row(
            Text(printable(endpoint.model_name)),
            Text(printable(endpoint.model)),
            Text(printable(endpoint.address or "?")),
            Text(printable(endpoint.answer), style=colour),
            Text(printable(key), style=key_colour),
        )
    return table
