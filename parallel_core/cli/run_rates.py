"""The rates that a run of a file holds: from its config, ``--rpm`` and ``--tpm``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import typer

from parallel_core.control import KINDS, ModelRates, RateKind, RateLimit, rates_of

_OFF = "off"
_WORDS: Mapping[RateKind, str] = {"rpm": "requests", "tpm": "tokens"}
_MOST_NAMED = 3  # models in a note


class HeldRates(NamedTuple):
    """Rates that a run holds.

    Attributes:
        limit: ``rate_limit`` of its batch; None if it holds no rate.
        notes: notes about the rates for the user, a sentence each.
    """

    limit: RateLimit | dict[str, RateLimit] | None
    notes: list[str]


class RunRates:
    """The options ``--rpm`` and ``--tpm`` of a run, each with all its values.

    Raises:
        typer.BadParameter: a value is neither a number above 0 nor ``off``, or values contradict
            each other.
    """

    def __init__(self, rpm: Sequence[str] | None, tpm: Sequence[str] | None) -> None:
        self._options = {"rpm": _Option("--rpm", rpm or ()), "tpm": _Option("--tpm", tpm or ())}
        self._together: dict[RateKind, float] = {}
        by_model: list[str] = []
        for kind in KINDS:
            option = self._options[kind]
            if option.total is not None:
                self._together[kind] = option.total
            by_model += [f"{option.name} for {model}" for model in option.by_model]
        if self._together and by_model:
            raise typer.BadParameter(_contradicts(_options(self._together), by_model[0]))

    def held(self, router: object, asked: Iterable[str], known: Iterable[str]) -> HeldRates:
        """Return the rates that a run holds.

        Args:
            router: the Router of the run.
            asked: the models of the input.
            known: the models that the Router knows by name.

        Raises:
            ValueError: an option names a model that is neither asked nor known, or the config has a
                rate that is not a number.
        """
        asked = list(asked)
        groups = rates_of(router, [*asked, *known])
        place_of = {model: n for n, group in enumerate(groups) for model in group.models}
        chosen = {kind: self._options[kind].by_place(place_of) for kind in KINDS}
        in_use = sorted({place_of[model] for model in asked})
        if self._together and len(in_use) > 1:
            return self._held_together([groups[place] for place in in_use])
        limits: dict[str, RateLimit] = {}
        notes: list[str] = []
        for place in in_use:
            group = groups[place]
            models = [model for model in group.models if model in asked]
            rates: dict[RateKind, float] = {}
            sources: dict[str, None] = {}
            for kind in KINDS:
                option = self._options[kind]
                if place in chosen[kind] or option.total is not None:
                    rate, source = chosen[kind].get(place, option.total), option.name
                elif option.off:
                    continue
                else:
                    rate, source = group.rates.get(kind), _deployments(group)
                    if kind in group.unlimited:
                        notes.append(_not_held(kind, models, group))
                if rate is not None:
                    rates[kind] = rate
                    sources[source] = None
            if rates:
                limits |= dict.fromkeys(group.models, _rate_limit(rates))
                notes.append(
                    f"holding {_in_words(rates)} for {_names(models)} ({', '.join(sources)})"
                )
        return HeldRates(limits or None, notes)

    def _held_together(self, in_use: Sequence[ModelRates]) -> HeldRates:
        names = _options(self._together)
        notes = [f"holding {_in_words(self._together)} for all models together ({names})"]
        for kind in KINDS:
            is_asked = kind in self._together or self._options[kind].off
            if not is_asked and any(kind in group.rates for group in in_use):
                notes.append(
                    f"not holding the {kind} of the config, since {names} is for all models "
                    f"together: give --{kind} as well, or {names} by model"
                )
        return HeldRates(_rate_limit(self._together), notes)


class _Option:
    """One of ``--rpm`` and ``--tpm``, with all its values.

    Attributes:
        name: name of the option.
        total: number for all models together; None if there is none.
        off: True if the rates of the config are not held, except for models in ``by_model``.
        by_model: number for a model; None: no limit.
    """

    def __init__(self, name: str, values: Iterable[str]) -> None:
        self.name = name
        self.total: float | None = None
        self.off = False
        self.by_model: dict[str, float | None] = {}
        for value in values:
            model, equals, number = value.rpartition("=")
            if equals and not model.strip():
                raise typer.BadParameter(f"{name} {value!r} names no model: {_accepted(name)}")
            rate = _rate(name, value, number)
            given = self.total is not None or self.off
            if model in self.by_model or (given and not equals):
                raise typer.BadParameter(f"{name} is given twice for {model or 'all models'}")
            if equals:
                self.by_model[model] = rate
            else:
                self.total, self.off = rate, rate is None
        if self.total is not None and self.by_model:
            raise typer.BadParameter(_contradicts(name, f"{name} for {next(iter(self.by_model))}"))

    def by_place(self, place_of: Mapping[str, int]) -> dict[int, float | None]:
        """Return ``by_model`` by the place of the model. A model may have several names."""
        rates: dict[int, float | None] = {}
        names: dict[int, str] = {}
        for model, rate in self.by_model.items():
            place = place_of.get(model)
            if place is None:
                raise ValueError(
                    f"{self.name} names the model {model!r}, and there are only "
                    f"{', '.join(map(repr, sorted(place_of)))}"
                )
            if place in names:
                raise ValueError(
                    f"{self.name} is given twice, for {names[place]} and {model}, which are the "
                    "same model"
                )
            rates[place], names[place] = rate, model
        return rates


def _rate(name: str, value: str, number: str) -> float | None:
    if number == _OFF:
        return None
    try:
        rate = float(number)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise typer.BadParameter(f"{name} cannot be {value!r}: {_accepted(name)}")
    return rate


def _accepted(name: str) -> str:
    return (
        f"{name} takes a finite number above 0 or {_OFF!r}, for all models together, or as "
        "MODEL=NUMBER for one model"
    )


def _contradicts(together: str, by_model: str) -> str:
    return (
        f"{together} for all models together cannot be combined with {by_model}: give a number "
        "for each model, or one for all"
    )


def _rate_limit(rates: Mapping[RateKind, float]) -> RateLimit:
    return RateLimit(requests_per_minute=rates.get("rpm"), tokens_per_minute=rates.get("tpm"))


def _options(kinds: Iterable[RateKind]) -> str:
    return " and ".join(f"--{kind}" for kind in kinds)


def _in_words(rates: Mapping[RateKind, float]) -> str:
    parts = [
        f"{rate:,.10g} {_WORDS[kind][:-1] if rate == 1 else _WORDS[kind]}"
        for kind, rate in rates.items()
    ]
    return f"{' and '.join(parts)} per minute"


def _not_held(kind: RateKind, models: Sequence[str], group: ModelRates) -> str:
    lacking = group.unlimited[kind]
    return (
        f"not holding {_WORDS[kind]} per minute for {_names(models)}: {lacking:,} of its "
        f"{group.deployments:,} deployments {'has' if lacking == 1 else 'have'} no {kind}"
    )


def _deployments(group: ModelRates) -> str:
    return "its deployment" if group.deployments == 1 else f"its {group.deployments:,} deployments"


def _names(models: Sequence[str]) -> str:
    more = len(models) - _MOST_NAMED
    if more > 0:
        return f"{', '.join(models[:_MOST_NAMED])} and {more:,} more"
    return " and ".join(models)
