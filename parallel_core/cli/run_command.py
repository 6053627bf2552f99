"""The command ``parallel-core run``: a file of requests, from a terminal or a job queue."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperCommand

from parallel_core.config import only_our_words
from parallel_core.config.run_router import (
    RouterConfigError,
    RunRouter,
    demo_router,
    router_from_config,
    router_from_model,
)
from parallel_core.control import (
    Budget,
    Concurrency,
    Controls,
    Hedge,
    Retry,
    UnpricedError,
    allow_connections,
    fit_open_files,
    most_calls,
    raise_open_files,
)
from parallel_core.errors import InputFileError, JournalError, WorkersLostError
from parallel_core.failures import KINDS, MAY_PASS, NOT_FINAL, FailureKind, checked_kinds
from parallel_core.files import InputFile, Redactor, describe_columns
from parallel_core.ray_engine import HOW_TO_INSTALL, MOST_WORKERS, is_ray_installed
from parallel_core.router import estimate_cost
from parallel_core.router_hosts import leave_this_loop, plain_loop_factory
from parallel_core.run import (
    ATTEMPT_TIMEOUT,
    LONGEST_OUTAGE,
    RunOpening,
    RunOptions,
    RunStop,
    RunSummary,
    check_requests,
    run_file,
)

from .run_rates import RunRates
from .run_signals import StopSignals, interruptible
from .run_view import JsonView, Painter, RunView, TextView
from .run_workers import RunWorkers, Workers, WorkersNotStartedError, quiet_ray
from .terminal import program, shell_line

ALL_OK, SOME_FAILED, BAD_INPUT, NOT_WRITTEN, INTERRUPTED = 0, 1, 2, 3, 130

RETRY_FAILED = "--retry-failed"
_ALL = "all"  # kinds of failures
_FILES = 32  # that a run opens beside its connections: the loop, the output, the demo server, …

_INPUT, _ROUTER, _OUTPUT = "Input", "Router", "Output"
_CONTROLS, _DISPLAY = "Controls", "Display"
_RATE = "NUMBER or MODEL=NUMBER"


class RunCommand(TyperCommand):
    """The command, with an option that may have a value or stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give ``--retry-failed`` the value that it stands for where it has none.

        The parser would take the next word for it: the name of the input.

        Raises:
            typer.BadParameter: kinds follow it without ``=``.
        """
        end = args.index("--") if "--" in args else len(args)
        options = args[:end]
        for word, following in zip(options, args[1:], strict=False):
            if word == RETRY_FAILED and _names_kinds(following) and not Path(following).exists():
                raise typer.BadParameter(f"write {RETRY_FAILED}={following}, with '='")
        alone = f"{RETRY_FAILED}={','.join(kind for kind in KINDS if kind in NOT_FINAL)}"
        options = [alone if word == RETRY_FAILED else word for word in options]
        return super().parse_args(ctx, [*options, *args[end:]])


def _names_kinds(word: str) -> bool:
    return word == _ALL or all(name in KINDS for name in word.split(","))


def _kinds(text: str | None) -> frozenset[FailureKind]:
    if text is None:
        return frozenset()
    if text == _ALL:
        return frozenset(KINDS)
    try:
        return checked_kinds(RETRY_FAILED, [name.strip() for name in text.split(",")])
    except ValueError as error:
        raise typer.BadParameter(f"{error}; or {_ALL}") from None


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


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="The requests: OpenAI's or Mistral's batch lines, {model, messages} lines, CSV or "
            "text; - is standard input.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where the answers go.", rich_help_panel=_OUTPUT),
    ] = None,
    *,
    format: Annotated[
        str,
        typer.Option(help="auto, jsonl, csv or text; auto: by the name.", rich_help_panel=_INPUT),
    ] = "auto",
    template: Annotated[
        str | None,
        typer.Option(
            help="The prompt for each row of CSV or text: 'Translate: {{column}}'.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="Check the input only.", rich_help_panel=_INPUT)
    ] = False,
    skip_invalid: Annotated[
        bool,
        typer.Option(
            "--skip-invalid",
            help="Write bad lines as failures, and send the others.",
            rich_help_panel=_INPUT,
        ),
    ] = False,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Columns that are copied to the output, with commas between: id,source.",
            rich_help_panel=_INPUT,
        ),
    ] = None,
    drop_columns: Annotated[
        bool,
        typer.Option(
            "--drop-columns",
            help="Leave out all columns (members that are no parameters) but those of --keep.",
            rich_help_panel=_INPUT,
        ),
    ] = False,
    send_columns: Annotated[
        bool,
        typer.Option(
            "--send-columns",
            help="Send all other columns as parameters of the provider.",
            rich_help_panel=_INPUT,
        ),
    ] = False,
    trust_input: Annotated[
        bool,
        typer.Option(
            "--trust-input",
            help="Let lines set what litellm takes as its own settings: keys, addresses, retries.",
            rich_help_panel=_INPUT,
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Send only the first N requests.", rich_help_panel=_INPUT),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A config file of litellm's proxy.", rich_help_panel=_ROUTER),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model, such as openai/gpt-4o-mini, for lines that name none.",
            rich_help_panel=_ROUTER,
        ),
    ] = None,
    api_base: Annotated[
        str | None,
        typer.Option(help="With --model: the address of the API.", rich_help_panel=_ROUTER),
    ] = None,
    demo: Annotated[
        bool,
        typer.Option(
            "--demo",
            help="Ask a local server that makes up its answers.",
            rich_help_panel=_ROUTER,
        ),
    ] = False,
    error_file: Annotated[
        Path | None,
        typer.Option(help="Where failures go instead.", rich_help_panel=_OUTPUT),
    ] = None,
    order: Annotated[
        str,
        typer.Option(
            help="completion, or input: sorted when all is done.", rich_help_panel=_OUTPUT
        ),
    ] = "completion",
    retry_failed: Annotated[
        str | None,
        typer.Option(
            RETRY_FAILED,
            metavar="[=KINDS]",
            help="Send those again that failed before, unless they would fail again; or those of "
            "these kinds only: =overloaded,timeout or =all.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    force_new: Annotated[
        bool,
        typer.Option(
            "--force-new",
            help="Begin anew; files of another run are moved aside.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    allow_changed: Annotated[
        bool,
        typer.Option(
            "--allow-changed",
            help="Resume although the input, a model or its parameters have changed.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    concurrency: Annotated[
        str,
        typer.Option(
            help="Calls in flight: a number (with --workers: in each), or auto.",
            rich_help_panel=_CONTROLS,
        ),
    ] = "16",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_WORKERS,
            help="Processes that make the calls, on Ray: for more than one core can send.",
            rich_help_panel=_CONTROLS,
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="With --workers: address of a Ray cluster. Default: start Ray here.",
            rich_help_panel=_CONTROLS,
        ),
    ] = None,
    rpm: Annotated[
        list[str] | None,
        typer.Option(
            metavar=_RATE,
            help="Requests per minute, of all models together, or of one (repeatable); off: those "
            "of the config are not held.",
            rich_help_panel=_CONTROLS,
        ),
    ] = None,
    tpm: Annotated[
        list[str] | None,
        typer.Option(metavar=_RATE, help="Tokens per minute, as --rpm.", rich_help_panel=_CONTROLS),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(help="USD that this run may cost at most.", rich_help_panel=_CONTROLS),
    ] = None,
    assume_output_tokens: Annotated[
        int | None,
        typer.Option(
            help="With --max-cost: tokens of an answer at most, where neither the request nor "
            "litellm says.",
            rich_help_panel=_CONTROLS,
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds for a request, with retries.", rich_help_panel=_CONTROLS),
    ] = None,
    attempt_timeout: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Seconds for each attempt of a request, unless the config or the request has a "
            "timeout; 0: litellm's default.",
            rich_help_panel=_CONTROLS,
        ),
    ] = ATTEMPT_TIMEOUT,
    total_timeout: Annotated[
        float | None, typer.Option(help="Seconds for the run.", rich_help_panel=_CONTROLS)
    ] = None,
    max_outage: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Seconds to wait while nothing of a model gets through; the run ends after that.",
            rich_help_panel=_CONTROLS,
        ),
    ] = LONGEST_OUTAGE,
    fail_fast: Annotated[
        bool,
        typer.Option("--fail-fast", help="Stop at the first failure.", rich_help_panel=_CONTROLS),
    ] = False,
    hedge: Annotated[
        str | None,
        typer.Option(
            help="Send stragglers twice: after so many seconds, or p95.",
            rich_help_panel=_CONTROLS,
        ),
    ] = None,
    fair_by: Annotated[
        str | None,
        typer.Option(help="model: models take turns.", rich_help_panel=_CONTROLS),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Seconds that calls in flight get at Ctrl-C.",
            rich_help_panel=_CONTROLS,
        ),
    ] = 10.0,
    confirm_above: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="On a terminal: ask before a run that will cost more, in USD.",
            rich_help_panel=_CONTROLS,
        ),
    ] = 5.0,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask.", rich_help_panel=_CONTROLS)
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print all messages as JSON lines on standard output.",
            rich_help_panel=_DISPLAY,
        ),
    ] = False,
) -> None:
    """Send a file of requests, and write each answer once, whatever happens meanwhile.

    Run the same command again to go on. Exit codes: 0 all is answered; 1 some failed or are left,
    or the output could not be sorted; 2 bad input or options, nothing was sent; 3 answers could not
    be written; 130 interrupted.
    """
    view: RunView = JsonView() if json else TextView()
    state = RunState()
    with contextlib.closing(view), interruptible(), only_our_words():
        try:
            options: RunOptions = {
                "concurrency": _concurrency(concurrency),
                "error_file": error_file,
                "retry_failed": _kinds(retry_failed),
                "force_new": force_new,
                "allow_changed": allow_changed,
                "skip_invalid": skip_invalid,
                "limit": limit,
                "fail_fast": fail_fast,
                "order": _one_of("--order", order, ("completion", "input")),
                "grace": _grace(grace),
                **_controls(
                    max_cost=max_cost,
                    assume_output_tokens=assume_output_tokens,
                    timeout=timeout,
                    attempt_timeout=attempt_timeout,
                    total_timeout=total_timeout,
                    max_outage=max_outage,
                    hedge=_hedge(hedge),
                    fair_by=fair_by,
                ),
            }
            job = _Job(
                open_input=functools.partial(
                    InputFile,
                    source,
                    format=_one_of("--format", format, ("auto", "jsonl", "csv", "text")),
                    template=template,
                    model="demo" if demo and model is None else model,
                    keep=_names(keep),
                    drop_columns=drop_columns,
                    send_columns=send_columns,
                    trust_input=trust_input,
                ),
                output=output,
                validate=validate,
                router_of=_router_choice(
                    config,
                    model,
                    api_base,
                    demo=demo,
                    validate=validate,
                    attempt_timeout=attempt_timeout or None,
                ),
                workers=_workers(workers, ray_address),
                rates=RunRates(rpm, tpm),
                confirm_above=None if yes else confirm_above,
                options=options,
            )
            code = _run(view, state, job)
        except KeyboardInterrupt:
            view.error(
                "interrupted; the same command goes on"
                if state.begun
                else "interrupted before anything was sent"
            )
            code = INTERRUPTED
        if state.stuck:
            # Python would wait for the stream to take what is in its buffer.
            os._exit(code)
    raise typer.Exit(code)


RouterOf = Callable[[Sequence[str]], RunRouter]


def _router_choice(
    config: Path | None,
    model: str | None,
    api_base: str | None,
    *,
    demo: bool,
    validate: bool,
    attempt_timeout: float | None,
) -> RouterOf | None:
    """What makes the Router, of the models that the input names."""
    if api_base is not None and (model is None or config is not None or demo):
        raise typer.BadParameter("--api-base goes with --model, without --config and --demo")
    if demo and config is not None:
        raise typer.BadParameter("--demo goes without --config: it serves all models of the input")
    if demo:
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
    if validate:
        return None
    raise typer.BadParameter(
        "where do the requests go? Give --config FILE, --model PROVIDER/MODEL, or --demo"
    )


def _names(text: str | None) -> list[str]:
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(names):
        raise typer.BadParameter(f"--keep takes names with commas between them, not {text!r}")
    return names


def _controls(
    *,
    max_cost: float | None,
    assume_output_tokens: int | None,
    timeout: float | None,
    attempt_timeout: float,
    total_timeout: float | None,
    max_outage: float,
    hedge: Hedge | None,
    fair_by: str | None,
) -> Controls:
    if assume_output_tokens is not None and max_cost is None:
        raise typer.BadParameter("--assume-output-tokens goes with --max-cost")
    if max_cost is not None and not 0 < max_cost < math.inf:
        raise typer.BadParameter(
            f"--max-cost must be a finite number of USD above 0, not {max_cost:g}"
        )
    if not math.isfinite(max_outage):  # of the type, only numbers from 0 on are accepted
        raise typer.BadParameter(
            f"--max-outage must be a finite number of seconds from 0 on, not {max_outage:g}"
        )
    try:
        controls: Controls = {
            "timeout": timeout,
            "attempt_timeout": attempt_timeout or None,
            "total_timeout": total_timeout,
            "hedge": hedge,
            "retry": Retry(max_wait=max_outage) if max_outage else None,
        }
        if max_cost is not None:
            controls["budget"] = Budget(
                max_cost=max_cost, assume_output_tokens=assume_output_tokens
            )
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    if not math.isfinite(attempt_timeout):
        raise typer.BadParameter(
            "--attempt-timeout must be a finite number of seconds from 0 on (0: litellm's "
            f"default), not {attempt_timeout:g}"
        )
    for name, value in (("--timeout", timeout), ("--total-timeout", total_timeout)):
        if value is not None and not 0 < value < math.inf:
            raise typer.BadParameter(
                f"{name} must be a finite number of seconds above 0, not {value:g}"
            )
    if fair_by is not None:
        if fair_by != "model":
            raise typer.BadParameter(f"--fair-by is 'model', not {fair_by!r}")
        controls["fair_by"] = "model"
    return controls


def _grace(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise typer.BadParameter(
            f"--grace must be a finite number of seconds from 0 on, not {seconds:g}"
        )
    return seconds


def _workers(number: int | None, address: str | None) -> Workers | None:
    if number is None:
        if address is not None:
            raise typer.BadParameter("--ray-address goes with --workers")
        return None
    if not is_ray_installed():
        raise typer.BadParameter(f"--workers needs Ray: {HOW_TO_INSTALL}")
    return Workers(number, address)


def _one_of(option: str, value: str, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise typer.BadParameter(f"{option} is one of {', '.join(allowed)}, not {value!r}")
    return value


@dataclass
class RunState:
    """How far a run has come.

    Attributes:
        begun: whether calls may have been made.
        declined: whether the user was asked and does not want to.
        interrupted: whether a signal came instead of an answer.
        stuck: whether nobody takes what there is to show.
    """

    begun: bool = False
    declined: bool = False
    interrupted: bool = False
    stuck: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is to be done, as the options of the command say.

    Attributes:
        open_input: opens the file of requests.
        output: where the answers go.
        validate: check the input, and send nothing.
        router_of: makes the Router, of the models that the input names; None: none is needed.
        workers: make the calls; None: this process does.
        rates: limits of requests and tokens.
        confirm_above: USD above which a run asks first; None: it never asks.
        options: of the run.
    """

    open_input: Callable[[], InputFile]
    output: Path | None
    validate: bool
    router_of: RouterOf | None
    workers: Workers | None
    rates: RunRates
    confirm_above: float | None
    options: RunOptions


def _run(view: RunView, state: RunState, job: _Job) -> int:
    output, workers, options = job.output, job.workers, job.options
    if output is None and not job.validate:
        raise typer.BadParameter("give --output FILE (-o): where the answers go")
    with contextlib.ExitStack() as stack:
        try:
            requests = stack.enter_context(job.open_input())
            with view.waiting("checking the input"):
                checked = requests.check()
            for problem in checked.problems:
                view.problem(problem)
            view.checked(checked)
            if checked.bad_lines and not options.get("skip_invalid"):
                view.error("nothing was sent: correct these lines, or give --skip-invalid")
                return BAD_INPUT
            if checked.columns:
                view.error(f"nothing was sent: {describe_columns(checked.columns)}")
                return BAD_INPUT
            if job.router_of is None:
                return ALL_OK
            per_call = 2 if options.get("hedge") else 1
            if workers is None or workers.address is None:  # else it is other machines' business
                raise_open_files()
                options["concurrency"], note = fit_open_files(
                    options["concurrency"], per_call, to_be_opened=_FILES
                )
                if note is not None:
                    view.note(note)
            allow_connections(per_call * most_calls(options["concurrency"]))
            with view.waiting("importing litellm"):
                router = stack.enter_context(job.router_of(list(checked.models)))
            for warning in router.warnings:
                view.note(warning)
            if missing := router.missing_keys(checked.models):
                raise RouterConfigError(missing)
            for warning in router.key_warnings:
                view.note(warning)
            held = job.rates.held(router.router, checked.models, router.models)
            options["rate_limit"] = held.limit
            check_requests(router.router, requests, checked, options, options["limit"])
        except UnpricedError as error:
            view.error(
                f"nothing was sent: --max-cost cannot hold, for the price of {error.what} is "
                "unknown. Give input_cost_per_token and output_cost_per_token in the "
                "litellm_params of its deployment (with --config), or leave out --max-cost"
            )
            return BAD_INPUT
        except (InputFileError, ValueError, TypeError, OSError) as error:
            view.error(f"nothing was sent: {error}")
            return BAD_INPUT
        if job.validate:
            return ALL_OK
        assert output is not None
        signals = StopSignals()
        ask = Question(view, state, signals, router, job.confirm_above, held.notes)
        stop = RunStop()
        painter = Painter(view)
        redactor = Redactor(router.secrets)

        async def start() -> RunSummary:
            run = functools.partial(
                run_file,
                source=requests,
                output=output,
                stop=stop,
                redactor=redactor,
                description=router.describe(checked.models),
                may_send=ask.may_send,
                on_open=ask.opened,
            )
            if workers is None:
                return await run(router.router, on_run_progress=painter.progress, **options)
            elsewhere = RunWorkers(
                router,
                workers,
                options["concurrency"],
                stop=stop,
                painter=painter,
                redactor=redactor,
            )
            options["concurrency"] = elsewhere.concurrency
            with contextlib.closing(elsewhere):
                return await run(elsewhere, on_run_progress=elsewhere.progress, **options)

        try:
            if workers is not None:
                stack.enter_context(quiet_ray())
            with painter, asyncio.Runner(loop_factory=plain_loop_factory()) as runner:
                summary = runner.run(
                    _in_good_order(start, stop, signals, painter, options["grace"])
                )
        except JournalError as error:
            view.error(str(error))
            return NOT_WRITTEN if state.begun else BAD_INPUT
        except WorkersNotStartedError as error:
            view.error(f"nothing was sent: {error}")
            return BAD_INPUT
        except WorkersLostError as error:
            view.error(f"{error}; the same command goes on")
            return SOME_FAILED
        except (InputFileError, ValueError, TypeError, OSError) as error:
            view.error(str(error) if state.begun else f"nothing was sent: {error}")
            return SOME_FAILED if state.begun else BAD_INPUT
        if state.interrupted:
            raise KeyboardInterrupt
        if state.declined:
            view.error("nothing was sent")
            return BAD_INPUT
        interrupted = stop.requests > 0 and summary.unfinished > 0
        state.stuck = painter.stuck
        if not state.stuck:
            again = None if summary.ok else command_again(summary, redactor)
            view.summary(summary, again)
            for text in (summary.input_error, summary.not_sorted):
                if text is not None:
                    view.error(text)
        if interrupted:
            return INTERRUPTED
        return ALL_OK if summary.ok and summary.not_sorted is None else SOME_FAILED


class Question:
    """Tells what a run will cost, and asks whether it shall, where somebody is there."""

    def __init__(
        self,
        view: RunView,
        state: RunState,
        signals: StopSignals,
        router: RunRouter,
        confirm_above: float | None,
        notes: Sequence[str] = (),
    ) -> None:
        self._view = view
        self._state = state
        self._signals = signals
        self._router = router
        self._confirm_above = confirm_above
        self._notes = notes

    def may_send(self, opening: RunOpening) -> bool:
        """Before anything is changed."""
        if opening.left and self._router.kind != "demo":
            estimate = estimate_cost(self._router.router, opening.requests())
            if estimate.requests:
                self._view.estimate(estimate)
            above = self._confirm_above
            if above is not None and estimate.cost > above and somebody_is_there():
                self.ask(f"Send {opening.left:,} requests?")
        return not self._state.declined

    def opened(self, opening: RunOpening) -> None:
        """Before the first call."""
        self._state.begun = True
        self._view.opened(opening)
        if opening.left:
            for note in self._notes:
                self._view.note(note)

    def ask(self, question: str) -> None:
        answer: str | None = None
        try:
            while answer not in ("y", "yes", "n", "no", ""):
                sys.stderr.write(f"{question} [y/N]: ")
                sys.stderr.flush()
                line = self._signals.read_line()
                answer = "" if line is None else line.strip().lower()
        except KeyboardInterrupt:
            self._state.interrupted = True
        except OSError:  # the terminal has gone
            pass
        self._state.declined = answer not in ("y", "yes")


def somebody_is_there() -> bool:
    """Whether there is a terminal to ask on, and to answer on."""
    streams: list[TextIO | None] = [sys.stdin, sys.stderr]
    # A stream that was closed when Python started is None.
    return all(stream is not None and stream.isatty() for stream in streams)


async def _in_good_order(
    start: Callable[[], Awaitable[RunSummary]],
    stop: RunStop,
    signals: StopSignals,
    painter: Painter,
    grace: float,
) -> RunSummary:
    """A run that signals end, in two steps."""

    def on_signal(number: int) -> None:
        if not stop.requests:
            again = "; Ctrl-C again cancels them at once" if number == signal.SIGINT else ""
            painter.note(
                f"{signal.Signals(number).name}: no new calls, those in flight have "
                f"{grace:,.10g} s{again}"
            )
        stop.request()

    with signals.handled(on_signal):
        try:
            return await start()
        finally:
            await leave_this_loop()


def command_again(summary: RunSummary, redactor: Redactor) -> str | None:
    """Return the command that goes on with what is left, or with what has failed and may pass: one
    line for a shell. None if it would send nothing.

    Every option is as it was given, but for --force-new, which would begin anew.
    """
    may_pass = summary.failures_that_may_pass
    if not (summary.unfinished or may_pass or summary.input_error):
        return None
    given = sys.argv[1:]
    end_of_options = given.index("--") if "--" in given else len(given)
    options = [word for word in given[:end_of_options] if word != "--force-new"]
    # What stopped a model may have failed its first requests, too.
    with_it = summary.ending == "blocked" and any(
        group.kind in MAY_PASS for group in summary.failures
    )
    ended_by_it = not summary.unfinished or summary.ending == "failure" or with_it
    if not (summary.failed or summary.unfinished or summary.input_error):
        # No failure of the kinds that were given is left.
        options = [word for word in options if not word.startswith(f"{RETRY_FAILED}=")]
    is_given = any(word.partition("=")[0] == RETRY_FAILED for word in options)
    if may_pass and ended_by_it and not is_given:
        options.insert(1, RETRY_FAILED)
    # A password may be in an address. A word that only looks like a key is no secret.
    arguments = [
        redactor.redact(word) if "://" in word else word
        for word in (*options, *given[end_of_options:])
    ]
    return shell_line([*program(), *arguments])
