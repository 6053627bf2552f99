"""A run as the arguments of ``parallel-core run`` describe it, checked."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import typer

from parallel_core.config.run_router import (
    RunRouter,
    demo_router,
    router_from_config,
    router_from_model,
)
from parallel_core.control import Budget, Concurrency, Controls, Hedge, Retry
from parallel_core.failures import KINDS, FailureKind, checked_kinds
from parallel_core.files import InputFile
from parallel_core.ray_engine import HOW_TO_INSTALL, is_ray_installed
from parallel_core.run import STANDARD_INPUT, RunOptions, checked_shard

from .run_arguments import ALL_KINDS, RETRY_FAILED, RunArguments
from .run_rates import RunRates
from .run_requests import parameters, system_message
from .run_workers import Workers

RouterFactory: TypeAlias = Callable[[Sequence[str]], RunRouter]
"""Makes the Router of a run, given the models that the input names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunJob:
    """A run as its arguments describe it, checked.

    Attributes:
        open_input: opens the file of requests.
        output: where the answers go; None with ``validate``.
        validate: True to check the input and send nothing.
        make_router: makes the Router; None if none is needed.
        workers: processes that make the calls; None: this process makes them.
        rates: limits of requests and tokens.
        confirm_above: USD above which a run asks first; None: it never asks.
        options: options of the run.
    """

    open_input: Callable[[], InputFile]
    output: Path | None
    validate: bool
    make_router: RouterFactory | None
    workers: Workers | None
    rates: RunRates
    confirm_above: float | None
    options: RunOptions

    @classmethod
    def of(cls, given: RunArguments) -> RunJob:
        """Check the arguments.

        Raises:
            typer.BadParameter: one of them cannot be used, or two contradict each other.
        """
        options: RunOptions = {
            "concurrency": _concurrency(given.concurrency),
            "error_file": given.error_file,
            "retry_failed": _kinds(given.retry_failed),
            "force_new": given.force_new,
            "allow_changed": given.allow_changed,
            "changed": given.changed,
            "skip_invalid": given.skip_invalid,
            "limit": given.limit,
            "only": given.only,
            "shard": _shard(given.shard),
            "pack": given.pack,
            "fail_fast": given.fail_fast,
            "order": given.order,
            "grace": _seconds("--grace", given.grace),
            **_controls(given),
        }
        open_input = functools.partial(
            InputFile,
            given.source,
            format=given.format,
            template=given.template,
            model="demo" if given.demo and given.model is None else given.model,
            system=system_message(given.system),
            parameters=parameters(given.param),
            id_column=given.id_column,
            override_model=given.override_model,
            keep=_names(given.keep),
            drop_columns=given.drop_columns,
            send_columns=given.send_columns,
            trust_input=given.trust_input,
            max_line=_max_line(given.max_line),
            endpoint=given.endpoint,
        )
        make_router = _router_factory(given)
        workers = _workers(given.workers, given.ray_address)
        rates = RunRates(given.rpm, given.tpm)
        if given.only == STANDARD_INPUT == given.source:
            raise typer.BadParameter(
                "INPUT and --only cannot both be standard input: give one of them as a file"
            )
        if given.output is None and not given.validate:
            raise typer.BadParameter("give --output FILE (-o): where the answers go")
        return cls(
            open_input=open_input,
            output=given.output,
            validate=given.validate,
            make_router=make_router,
            workers=workers,
            rates=rates,
            confirm_above=None if given.yes else given.confirm_above,
            options=options,
        )


def _kinds(text: str | None) -> frozenset[FailureKind]:
    if text is None:
        return frozenset()
    if text == ALL_KINDS:
        return frozenset(KINDS)
    try:
        return checked_kinds(RETRY_FAILED, [name.strip() for name in text.split(",")])
    except ValueError as error:
        raise typer.BadParameter(f"{error}; or {ALL_KINDS}") from None


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, _, shards = text.partition("/")
    try:
        return checked_shard((int(number), int(shards)))
    except ValueError:
        raise typer.BadParameter(
            "--shard must be the number of a shard and the number of shards, such as 3/8 for the "
            f"third of eight, not {text!r}"
        ) from None


def _concurrency(text: str) -> Concurrency:
    if text == "auto":
        return "auto"
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise typer.BadParameter(
            f"--concurrency must be a number from 1 on or 'auto', not {text!r}"
        )
    return number


def _hedge(text: str | None) -> Hedge | None:
    if text is None:
        return None
    try:
        after: Any = text if text.startswith("p") else float(text)
        return Hedge(after=after)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(
            "--hedge must be a finite number of seconds above 0, or a percentile above p0 and "
            f"below p100, such as p95; not {text!r}"
        ) from error


def _seconds(option: str, value: float, note: str = "") -> float:
    # Numbers below 0 are refused by the type of the option.
    if not math.isfinite(value):
        raise typer.BadParameter(
            f"{option} must be a finite number of seconds from 0 on{note}, not {value:g}"
        )
    return value


def _above_zero(option: str, value: float | None, unit: str) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(
            f"{option} must be a finite number of {unit} above 0, not {value:g}"
        )
    return value


def _max_line(value: float) -> float:
    if not 0 < value < math.inf:
        raise typer.BadParameter(
            f"--max-line must be a finite number of MiB above 0, not {value:g}"
        )
    return value


def _controls(given: RunArguments) -> Controls:
    if given.assume_output_tokens is not None and given.max_cost is None:
        raise typer.BadParameter("--assume-output-tokens needs --max-cost")
    max_cost = _above_zero("--max-cost", given.max_cost, "USD")
    max_outage = _seconds("--max-outage", given.max_outage)
    controls: Controls = {
        "timeout": _above_zero("--timeout", given.timeout, "seconds"),
        "attempt_timeout": _seconds(
            "--attempt-timeout", given.attempt_timeout, " (0: litellm's default)"
        )
        or None,
        "total_timeout": _above_zero("--total-timeout", given.total_timeout, "seconds"),
        "hedge": _hedge(given.hedge),
        "direct": given.direct,
        "retry": Retry(max_wait=max_outage) if max_outage else None,
    }
    if given.fair_by is not None:
        controls["fair_by"] = given.fair_by
    if max_cost is not None:
        try:
            controls["budget"] = Budget(
                max_cost=max_cost, assume_output_tokens=given.assume_output_tokens
            )
        except (TypeError, ValueError) as error:
            raise typer.BadParameter(str(error)) from None
    return controls


def _names(text: str | None) -> list[str]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(names):
        raise typer.BadParameter(f"--keep takes names with commas between them, not {text!r}")
    return names


def _router_factory(given: RunArguments) -> RouterFactory | None:
    config, api_base = given.config, given.api_base
    model = given.override_model or given.model
    attempt_timeout = given.attempt_timeout or None
    if api_base is not None and (model is None or config is not None or given.demo):
        raise typer.BadParameter("--api-base needs --model, without --config and --demo")
    if given.demo and config is not None:
        raise typer.BadParameter(
            "--demo cannot be combined with --config: it serves all models of the input"
        )
    if given.demo:
        return functools.partial(demo_router, attempt_timeout=attempt_timeout)
    if config is not None:
        return lambda _: router_from_config(config, attempt_timeout=attempt_timeout)
    if model is not None:
        return lambda models: router_from_model(
            model,
            api_base=api_base,
            others=[name for name in models if name != model],
            attempt_timeout=attempt_timeout,
        )
    if given.validate:
        return None
    raise typer.BadParameter(
        "no Router is given: add --config FILE, --model PROVIDER/MODEL, or --demo"
    )


def _workers(number: int | None, address: str | None) -> Workers | None:
    if number is None:
        if address is not None:
            raise typer.BadParameter("--ray-address needs --workers")
        return None
    if not is_ray_installed():
        raise typer.BadParameter(f"--workers needs Ray: {HOW_TO_INSTALL}")
    return Workers(number, address)
