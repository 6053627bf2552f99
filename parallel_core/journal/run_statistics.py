"""What a run of a file measures beside the answers: a line for each call, in a file of its own.

The output file has the format of OpenAI's Batch API and no place for latency, attempts or cost.
They are in the statistics file beside it (``RunPaths.statistics``), which ``parallel-core report``
reads. Its lines are objects with a ``kind``; a reader passes over kinds that it does not know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from .json_lines import json_line, read_json_line

_ENDING = ".jsonl"
_STATISTICS, _MANIFEST, _RESCUE = ".statistics.jsonl", ".manifest.json", ".rescue.jsonl"


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files of a run, all beside its output file.

    Attributes:
        output: the answers, and the failures too where ``errors`` is None.
        errors: the failures; None where they are in ``output``.
        statistics: a line for each call: latency, tokens, cost.
        manifest: what the run is, so that another one is not mixed into its output.
        rescue: results that were paid for and could not be written to ``output``.
    """

    output: Path
    errors: Path | None
    statistics: Path
    manifest: Path
    rescue: Path

    @classmethod
    def of(cls, output: Path | str, errors: Path | str | None = None) -> RunPaths:
        """The files of the run with this output: ``out.jsonl``, ``out.jsonl.statistics.jsonl``, …

        They carry the whole name of the output, so that no two outputs share one.
        """
        path = Path(output)
        return cls(
            output=path,
            errors=None if errors is None else Path(errors),
            statistics=path.with_name(f"{path.name}{_STATISTICS}"),
            manifest=path.with_name(f"{path.name}{_MANIFEST}"),
            rescue=path.with_name(f"{path.name}{_RESCUE}"),
        )

    @property
    def files(self) -> list[Path]:
        """All of them, also by the names that earlier versions gave them."""
        older = older_names(self)
        paths = [self] if older is None else [self, older]
        beside = [path for p in paths for path in (p.statistics, p.manifest, p.rescue)]
        return [self.output, *([] if self.errors is None else [self.errors]), *beside]


def older_names(paths: RunPaths) -> RunPaths | None:
    """The names that earlier versions gave to the same files: ``out.statistics.jsonl``, …

    They left the ending ``.jsonl`` of the output out, so ``out`` and ``out.jsonl`` shared them.
    None where the names are the same.
    """
    name = paths.manifest.name.removesuffix(_MANIFEST)
    stem = name.removesuffix(_ENDING)
    if stem == name:
        return None
    return dataclasses.replace(
        paths,
        statistics=paths.statistics.with_name(f"{stem}{_STATISTICS}"),
        manifest=paths.manifest.with_name(f"{stem}{_MANIFEST}"),
        rescue=paths.rescue.with_name(f"{stem}{_RESCUE}"),
    )


class CallStatistics(
    msgspec.Struct, frozen=True, tag="call", tag_field="kind", omit_defaults=True, kw_only=True
):
    """How one call of a run went.

    Attributes:
        custom_id: of the request.
        model: that the request asked for.
        started_at: seconds since the epoch.
        duration: seconds, with the Router's retries and fallbacks.
        ok: whether there is an answer.
        status_code: of HTTP, as far as there was one.
        error: the name of the exception's class; None where ``ok``.
        failure_kind: what the failure means (``docs/failures.md``); None where ``ok``, and in files
            of earlier versions.
        message: why it failed, without keys and without contents of the request: of the first
            failure of its kind and status in a run.
        attempts: calls to a provider that this one took, as far as the Router tells.
        time_to_first_chunk: seconds, of a streamed call.
        prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens: as in ``Usage``.
        estimated: whether the tokens are estimated.
        cost: USD; None where the price is unknown.
        finish_reason: of the answer; of several choices the worst one (``content_filter``, then
            ``length``); None where it is not known, as in files of earlier versions.
        without_text: whether a choice has no text, and nothing in place of it.
    """

    custom_id: str
    model: str
    started_at: float
    duration: float
    ok: bool
    status_code: int | None = None
    error: str | None = None
    failure_kind: str | None = None
    message: str | None = None
    attempts: int = 1
    time_to_first_chunk: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cost: float | None = None
    finish_reason: str | None = None
    without_text: bool = False


class LimitStatistics(msgspec.Struct, frozen=True, tag="limit", tag_field="kind", kw_only=True):
    """The limit of calls in flight from some time on.

    Attributes:
        at: seconds since the epoch.
        limit: calls in flight at most.
        reason: why it has changed; empty at the beginning of a run.
    """

    at: float
    limit: int
    reason: str = ""


RunStatistics: TypeAlias = CallStatistics | LimitStatistics

_DECODER = msgspec.json.Decoder(RunStatistics)


def statistics_line(record: RunStatistics) -> bytes:
    """A line of the statistics file, without its end."""
    return json_line(record)


def read_statistics(path: Path) -> Iterator[RunStatistics]:
    """The records of a statistics file, in its order.

    Lines that are torn (of a machine that lost power), of an unknown kind or no JSON at all are
    passed over: the file is a by-product, and no answer hangs on it.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as lines:
        for line in lines:
            try:
                yield read_json_line(_DECODER.decode, line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
