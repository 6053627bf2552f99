"""Embeddings of many lines in one request, whose answer is taken apart again.

1. Lines with one text each, the same model and the same parameters share a request. Lines that do
   not fit wait in an open pack of their own; the number of open packs has a limit.
2. The answer of a request becomes an answer for each line, with its share of the usage.
3. If the inputs of a request are at fault, or its answer has not one embedding for each of them,
   its lines are sent one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

import anyio
import msgspec

from parallel_core.control import RouterMeter
from parallel_core.failures import classify
from parallel_core.files import InputRequest, answer_body, hidden_parameters
from parallel_core.types import RouterParallelRequest, RouterParallelResult, Usage

_OPERATION: Final = "aembedding"
_INPUT: Final = "input"
# A token has at least one byte, and OpenAI takes 300,000 tokens in a request.
_MOST_BYTES: Final = 262_144
_MOST_OPEN: Final = 64  # packs that wait for more lines


class _Text(NamedTuple):
    """The only text of a line.

    Attributes:
        value: the text, or its tokens.
        size: its bytes, or its number of tokens.
        weight: its share of the usage: its characters, or its number of tokens.
    """

    value: Any
    size: int
    weight: int


@dataclass(slots=True)
class _Pack:
    """Lines that are sent in one request, and their texts, which one line alone does not need."""

    lines: list[InputRequest] = field(default_factory=list[InputRequest])
    texts: list[_Text] = field(default_factory=list[_Text])
    size: int = 0

    def add(self, line: InputRequest, text: _Text) -> None:
        self.lines.append(line)
        self.texts.append(text)
        self.size += text.size

    def request(self) -> RouterParallelRequest:
        first = self.lines[0].request
        if len(self.lines) == 1:
            return first
        inputs = [text.value for text in self.texts]
        return msgspec.structs.replace(first, kwargs={**(first.kwargs or {}), _INPUT: inputs})


class PackedAnswer(dict[str, Any]):
    """The part of an answer that belongs to one line, with litellm's description of the call."""

    def __init__(self, body: Mapping[str, Any], hidden: Mapping[str, Any]) -> None:
        super().__init__(body)
        self._hidden_params = hidden


class Packing:
    """The requests of a run, with up to ``most`` embeddings in each: an async iterator.

    It ends when the lines are drawn, and no request is left whose lines may have to be sent one by
    one.
    """

    def __init__(self, most: int, meter: RouterMeter) -> None:
        self._most = most
        self._meter = meter
        self._source: Iterator[InputRequest] = iter(())
        self._has_more = True
        self._open: dict[bytes, _Pack] = {}
        self._one_by_one: deque[InputRequest] = deque()
        self._in_flight: dict[int, _Pack] = {}
        self._drawn = 0
        self._ended = anyio.Event()

    def of(self, source: Iterator[InputRequest]) -> Packing:
        """Set the lines to send."""
        self._source = source
        return self

    def __aiter__(self) -> Packing:
        return self

    async def __anext__(self) -> RouterParallelRequest:
        while True:
            pack = self._next()
            if pack is not None:
                self._in_flight[self._drawn] = pack
                self._drawn += 1
                return pack.request()
            if not any(len(one.lines) > 1 for one in self._in_flight.values()):
                raise StopAsyncIteration
            self._ended = anyio.Event()
            await self._ended.wait()

    def _next(self) -> _Pack | None:
        """Return the next pack to send; None if there is none at the moment."""
        if self._one_by_one:
            return _Pack([self._one_by_one.popleft()])
        while self._has_more:
            line = next(self._source, None)
            if line is None:
                self._has_more = False
                break
            pack = self._packed(line)
            if pack is not None:
                return pack
        return self._oldest()

    def _oldest(self) -> _Pack | None:
        return self._open.pop(next(iter(self._open))) if self._open else None

    def _packed(self, line: InputRequest) -> _Pack | None:
        """Add a line to its open pack. Return a pack that has to be sent now, if there is one."""
        text = _only_text(line.request)
        if text is None or text.size > _MOST_BYTES:
            return _Pack([line])
        key = _key(line.request, text)
        full = None
        pack = self._open.get(key)
        if pack is not None and pack.size + text.size > _MOST_BYTES:
            full = self._open.pop(key)
            pack = None
        if pack is None:
            if len(self._open) >= _MOST_OPEN and full is None:
                full = self._oldest()
            pack = self._open[key] = _Pack()
        pack.add(line, text)
        if len(pack.lines) >= self._most and full is None:
            full = self._open.pop(key)
        return full

    def first_id(self, index: int) -> str | None:
        """Return the id of the first line of a request in flight."""
        pack = self._in_flight.get(index)
        return None if pack is None else pack.lines[0].custom_id

    def results_of(
        self, result: RouterParallelResult
    ) -> list[tuple[InputRequest, RouterParallelResult]]:
        """Return the lines of a request that has ended, each with its result.

        Empty if they are sent one by one.
        """
        pack = self._in_flight.pop(result.index)
        self._ended.set()
        if len(pack.lines) == 1:
            return [(pack.lines[0], result)]
        parts = _taken_apart(pack, result, self._meter)
        if parts is None:
            self._one_by_one.extend(pack.lines)
            return []
        return list(zip(pack.lines, parts, strict=True))


def _only_text(request: RouterParallelRequest) -> _Text | None:
    """Return the text of a request for one embedding; None if it is another request."""
    if request.operation != _OPERATION:
        return None
    value: object = (request.kwargs or {}).get(_INPUT)
    members = cast("list[object]", value) if type(value) is list else []
    if len(members) == 1 and type(members[0]) is not int:
        value = members[0]
        members = cast("list[object]", value) if type(value) is list else []
    if isinstance(value, str):
        return _Text(value, len(value.encode("utf-8", "surrogatepass")), len(value))
    if members and all(type(one) is int for one in members):
        return _Text(value, len(members), len(members))
    return None


def _key(request: RouterParallelRequest, text: _Text) -> bytes:
    """Return the same bytes for requests that differ only in their text."""
    others = {name: value for name, value in (request.kwargs or {}).items() if name != _INPUT}
    asked = (request.model, others, request.timeout, type(text.value) is str)
    return msgspec.json.encode(asked, order="sorted")


def _taken_apart(
    pack: _Pack, result: RouterParallelResult, meter: RouterMeter
) -> list[RouterParallelResult] | None:
    """Return the result of each line; None if the lines have to be sent one by one."""
    requests = [line.request for line in pack.lines]
    error = result.exception
    if error is not None:
        if classify(error).kind == "request":
            return None
        return [msgspec.structs.replace(result, request=request) for request in requests]
    body = answer_body(result.request, result.response)
    embeddings = _in_order(body.get("data"), len(requests))
    if embeddings is None:
        return None
    weights = [text.weight for text in pack.texts]
    usage = meter.usage_of(result.request, result.response)
    usages = [None] * len(requests) if usage is None else _shares_of_usage(usage, weights)
    hidden = hidden_parameters(result.response)
    parts: list[RouterParallelResult] = []
    for place, (request, embedding) in enumerate(zip(requests, embeddings, strict=True)):
        own = {**body, "data": [{**embedding, "index": 0}]}
        if isinstance(body.get("usage"), Mapping):
            own["usage"] = {
                name: shares(value, weights)[place]
                for name, value in body["usage"].items()
                if type(value) is int
            }
        answer = PackedAnswer(own, hidden)
        parts.append(
            msgspec.structs.replace(result, request=request, response=answer, usage=usages[place])
        )
    return parts


def _in_order(data: Any, number: int) -> list[Mapping[str, Any]] | None:
    """Return embeddings in the order of their inputs; None if there is not one for each."""
    members = cast("list[object]", data) if type(data) is list else []
    found: dict[Any, Mapping[str, Any]] = {}
    for one in members:
        if isinstance(one, Mapping):
            embedding = cast("Mapping[str, Any]", one)
            found[embedding.get("index")] = embedding
    if len(members) != number or found.keys() != set(range(number)):
        return None
    return [found[place] for place in range(number)]


def _shares_of_usage(usage: Usage, weights: Sequence[int]) -> list[Usage]:
    """Divide the usage of a request among its lines. The tokens of each are an estimate."""
    tokens = shares(usage.prompt_tokens, weights)
    cached = shares(usage.cached_tokens, weights)
    total = sum(weights)
    costs = [usage.cost * (weight / total if total else 1 / len(weights)) for weight in weights]
    return [
        Usage(
            prompt_tokens=tokens[place],
            cached_tokens=cached[place],
            cost=costs[place],
            unpriced_calls=usage.unpriced_calls,
            estimated_calls=1,
        )
        for place in range(len(weights))
    ]


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Divide a number in proportion to weights, so that the sum of the parts is exact."""
    if not any(weights):
        weights = [1] * len(weights)
    parts: list[int] = []
    weight_so_far = given = 0
    whole = sum(weights)
    for weight in weights:
        weight_so_far += weight
        upto = total * weight_so_far // whole
        parts.append(upto - given)
        given = upto
    return parts
