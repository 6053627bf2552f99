"""Settings of the demo server, and the plan that they give for one request."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, cast

from .trouble import RATED_FAULTS, TROUBLE_KINDS, Trouble, check_troubles

_FAULTS_OF_A_REQUEST: Final = (*(kind for kind in TROUBLE_KINDS if kind != "away"), "none")

_WORDS: Final = [
    "a",
    "batch",
    "of",
    "small",
    "made",
    "up",
    "words",
    "stands",
    "here",
    "in",
    "place",
    "of",
    "an",
    "answer",
    "so",
    "that",
    "tokens",
    "arrive",
    "one",
    "after",
    "another",
    "while",
    "no",
    "model",
    "has",
    "read",
    "or",
    "thought",
    "about",
    "the",
    "question",
    "at",
    "all",
]


@dataclass(frozen=True)
class DemoServerSettings:
    """Settings of a demo server. Every time is in seconds, every rate a share from 0 to 1.

    What happens to the n-th request of a model depends only on ``seed``, the model and n.

    Attributes:
        seed: seed of the random latencies, faults and answers.
        latency_median: seconds from a request to its whole answer; the median of a log-normal
            distribution. 0: at once.
        latency_sigma: standard deviation of the latency's natural logarithm (no unit). 0: every
            request takes the median.
        time_to_first_token: seconds from a streaming request to its first token. It varies like
            the latency. A streaming request has no latency.
        chunk_gap: seconds between one token of a stream and the next. It does not vary.
        rate_limited: share of requests answered at once with 429 and Retry-After.
        server_error: share of requests answered with 500.
        hang: share of requests never answered.
        reset: share of requests whose connection is reset; in a stream, in the middle.
        truncated: share of requests whose connection is closed in the middle of the answer.
        invalid_json: share of requests answered with 200 and a body (or a chunk) that is not JSON.
        retry_after: seconds that every 429 asks the client to wait, except those of ``trouble``.
            HTTP has only whole seconds; OpenAI's and litellm's clients also accept fractions.
        capacity: requests in flight above which the server answers 429. ``None``: no limit.
        keep_requests: number of newest requests that are kept with their answers, for
            ``GET /requests``; at most 64 MiB of them. 0: none.
        models: the models' names, each with the factor (no unit) of its latency and its time to
            first token. A request for another model is answered with 404.
        trouble: what happens to requests of certain models or keys, for a time or always; see
            :class:`Trouble`. The first that is due for a request takes precedence over the rates.
    """

    seed: int = 0
    latency_median: float = 0.2
    latency_sigma: float = 0.5
    time_to_first_token: float = 0.05
    chunk_gap: float = 0.005
    rate_limited: float = 0.0
    server_error: float = 0.0
    hang: float = 0.0
    reset: float = 0.0
    truncated: float = 0.0
    invalid_json: float = 0.0
    retry_after: float = 1.0
    capacity: int | None = None
    keep_requests: int = 0
    models: Mapping[str, float] = field(
        default_factory=lambda: {"fast": 0.5, "slow": 4.0, "smart": 1.5}
    )
    trouble: Sequence[Trouble] = ()

    def __post_init__(self) -> None:
        for name in ("latency_median", "latency_sigma", "time_to_first_token", "chunk_gap"):
            _check_not_negative(name, getattr(self, name))
        _check_not_negative("retry_after", self.retry_after)
        for name in RATED_FAULTS:
            _check_not_negative(name, getattr(self, name))
            if getattr(self, name) > 1:
                raise ValueError(f"{name} must be a rate from 0 to 1, not {getattr(self, name)!r}")
        total = math.fsum(self.rates().values())
        if total > 1 + 1e-9:  # ten rates of 0.1 are allowed
            raise ValueError(f"the sum of the rates of all faults must be at most 1, not {total:g}")
        if not _is_integer(self.seed):
            raise ValueError(f"seed must be an integer, not {self.seed!r}")
        if self.capacity is not None and not (_is_integer(self.capacity) and self.capacity >= 1):
            raise ValueError(f"capacity must be None or at least 1, not {self.capacity!r}")
        if not (_is_integer(self.keep_requests) and self.keep_requests >= 0):
            raise ValueError(f"keep_requests must be at least 0, not {self.keep_requests!r}")
        if not self.models:
            raise ValueError("models must name at least one model")
        for model, factor in self.models.items():
            if not model or "=" in model:
                raise ValueError(f"a model's name must not be empty or contain '=': {model!r}")
            _check_not_negative(f"the latency factor of model {model!r}", factor)
        # Keep a copy: the caller's mapping may change.
        object.__setattr__(self, "models", dict(self.models))
        object.__setattr__(self, "trouble", check_troubles(self.trouble, self.models))

    def rates(self) -> dict[str, float]:
        """Return the rate of every fault, by the fault's name."""
        return {name: getattr(self, name) for name in RATED_FAULTS}

    def to_arguments(self) -> list[str]:
        """Return the command-line options of ``parallel_core.demo_server`` for these settings."""
        arguments: list[str] = []
        for setting in fields(self):
            value: object = getattr(self, setting.name)
            if setting.name == "models":
                for model, factor in self.models.items():
                    arguments.append(f"--model={model}={factor!r}")
            elif setting.name == "trouble":
                arguments += [f"--trouble={trouble.to_text()}" for trouble in self.trouble]
            elif value is not None:
                # Use one word: a negative seed would be parsed as another option.
                arguments.append(f"--{setting.name.replace('_', '-')}={value!r}")
        return arguments


def parse_models(options: Iterable[str]) -> dict[str, float]:
    """Parse values of ``--model`` options: ``NAME`` (a factor of 1) or ``NAME=FACTOR``."""
    models: dict[str, float] = {}
    for option in options:
        name, _, factor = option.partition("=")
        try:
            models[name] = float(factor or 1)
        except ValueError:
            raise ValueError(f"{option!r}: the factor must be a number") from None
    return models


@dataclass(frozen=True)
class RequestPlan:
    """Plan of what happens to one request.

    Attributes:
        number: the request's number among those of its model, from 1.
        fault: one of ``TROUBLE_KINDS``, or ``None``.
        retry_after: seconds that a refusal asks the client to wait, if its kind allows it;
            ``None``: it does not ask.
        latency: seconds to the whole answer, if it is not streamed.
        time_to_first_token: seconds to the first token, if the answer is streamed.
        chunk_gap: seconds between the tokens of a stream.
        reply: the text of the answer.
        tool_arguments: arguments of a tool call that replaces the text, or ``None``.
        held: True if the answer waits while the server holds.
        cut_after: number of chunks after which a stream ends as if it were whole, or ``None``.
    """

    number: int
    fault: str | None
    retry_after: float | None
    latency: float
    time_to_first_token: float
    chunk_gap: float
    reply: str
    tool_arguments: str | None
    held: bool
    cut_after: int | None = None


@dataclass(frozen=True)
class RequestOverride:
    """Contents of the field ``demo`` of a request's body. ``None``: the settings apply.

    Attributes:
        latency: seconds to the answer, or to the first token of a stream.
        chunk_gap: seconds between the tokens of a stream.
        fault: one of ``TROUBLE_KINDS`` except ``"away"``, or ``"none"`` for no fault.
        reply: the text of the answer.
        tool_arguments: the answer is a call of the tool ``"demo"`` with these arguments.
        usage: ``False``: the answer has no usage.
        held: ``True``: the answer waits while the server holds.
        cut_after: number of chunks after which a stream ends, with ``[DONE]`` and without a finish
            reason.
    """

    latency: float | None = None
    chunk_gap: float | None = None
    fault: str | None = None
    reply: str | None = None
    tool_arguments: str | None = None
    usage: bool | None = None
    held: bool | None = None
    cut_after: int | None = None

    @staticmethod
    def from_json(value: object) -> RequestOverride:
        """Read the field's value. Raises ``ValueError``, which quotes no text of the request."""
        if value is None:
            return RequestOverride()
        if not isinstance(value, dict):
            raise ValueError("'demo' must be an object")
        known = {setting.name for setting in fields(RequestOverride)}
        override = cast("dict[str, object]", value)
        if not override.keys() <= known:
            raise ValueError(f"'demo' may only have the fields {', '.join(sorted(known))}")
        fault: Any = override.get("fault")
        reply = override.get("reply")
        if fault is not None and fault not in _FAULTS_OF_A_REQUEST:
            raise ValueError(f"'demo.fault' must be one of {', '.join(_FAULTS_OF_A_REQUEST)}")
        if reply is not None and not isinstance(reply, str):
            raise ValueError("'demo.reply' must be a string")
        tool_arguments, usage = override.get("tool_arguments"), override.get("usage")
        if tool_arguments is not None and not isinstance(tool_arguments, str):
            raise ValueError("'demo.tool_arguments' must be a string")
        if usage is not None and not isinstance(usage, bool):
            raise ValueError("'demo.usage' must be true or false")
        held = override.get("held")
        if held is not None and not isinstance(held, bool):
            raise ValueError("'demo.held' must be true or false")
        cut_after = override.get("cut_after")
        if cut_after is not None and not (_is_integer(cut_after) and cast("int", cut_after) >= 0):
            raise ValueError("'demo.cut_after' must be an integer of at least 0")
        return RequestOverride(
            latency=_seconds_or_none(override, "latency"),
            chunk_gap=_seconds_or_none(override, "chunk_gap"),
            fault=fault,
            reply=reply,
            tool_arguments=tool_arguments,
            usage=usage,
            held=held,
            cut_after=cast("int | None", cut_after),
        )


def plan_request(
    settings: DemoServerSettings,
    model: str,
    number: int,
    override: RequestOverride,
    trouble: Trouble | None = None,
) -> RequestPlan:
    """Decide what happens to the ``number``-th request of a model. The plan is deterministic.

    The override takes precedence over the trouble, and the trouble over the rates.
    """
    draw = random.Random(f"{settings.seed}:{model}:{number}")
    # All values are drawn for every request, in the same order. So an override or another rate of
    # faults does not change the other values.
    fault: str | None = _draw_fault(settings, draw.random())
    slowness = settings.models[model] * math.exp(settings.latency_sigma * draw.gauss(0.0, 1.0))
    words = draw.choices(_WORDS, k=draw.randint(5, 30))
    retry_after: float | None = settings.retry_after
    if override.fault is not None:
        fault = None if override.fault == "none" else override.fault
    elif trouble is not None:
        fault, retry_after = trouble.kind, trouble.retry_after
    latency = settings.latency_median * slowness
    time_to_first_token = settings.time_to_first_token * slowness
    if override.latency is not None:
        latency = time_to_first_token = override.latency
    return RequestPlan(
        number=number,
        fault=fault,
        retry_after=retry_after,
        latency=latency,
        time_to_first_token=time_to_first_token,
        chunk_gap=settings.chunk_gap if override.chunk_gap is None else override.chunk_gap,
        reply=f"[synthetic] {' '.join(words)}" if override.reply is None else override.reply,
        tool_arguments=override.tool_arguments,
        held=override.held is True,
        cut_after=override.cut_after,
    )


def _draw_fault(settings: DemoServerSettings, drawn: float) -> str | None:
    threshold = 0.0
    for name, rate in settings.rates().items():
        threshold += rate
        if drawn < threshold:
            return name
    return None


def _seconds_or_none(override: Mapping[str, object], name: str) -> float | None:
    value = override.get(name)
    if value is None:
        return None
    if not _is_number(value) or not 0 <= cast("float", value) < math.inf:
        raise ValueError(f"'demo.{name}' must be a number of seconds, at least 0")
    return float(cast("float", value))


def _check_not_negative(name: str, value: object) -> None:
    if not _is_number(value) or not 0 <= cast("float", value) < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
