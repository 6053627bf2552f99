"""The direct lane: attempts of a Router that are sent without litellm's completion code.

1. An attempt that litellm would treat in a way of its own goes through litellm, with the reason.
2. The first attempt of a shape makes litellm's request twice without sending it, the second time
   with other texts and ids. If a template made of the first one makes the second, byte for byte,
   the lane is open for that shape.
3. An attempt on the lane is one POST over the connections that litellm keeps for the deployment.
4. An answer of a structure that was seen before becomes a ``ModelResponse``. The first answer of a
   structure is handed to litellm, as if it came from the network; if ours is equal, ours will do.
5. Every failure is handed to litellm in the same way. So its errors, its callbacks and the Router's
   cooldowns are those of litellm.
"""

from __future__ import annotations

import asyncio
import copy
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx

from . import streams
from .answers import (
    AnswerTemplate,
    Completion,
    answer_template,
    complete,
    difference,
    has_tokens,
    reads_in_its_own_way,
)
from .bookkeeping import METADATA, Bookkeeping, follows_call, reason_for_litellm
from .requests import NotAlikeError, RequestTemplate
from .seam import Attempt, Sent, marked, record, replaced, replay, stream
from .shapes import NotJsonError, Passed, Structure, exact, outline, structure
from .surroundings import Surroundings
from .wire import post

_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_MOST_SHAPES = 2048  # of one batch, and of the answers of one shape
# So many are learnt before the lane asks whether calls share shapes.
_SHAPES_TO_TRY = 128


class Shape:
    """What is known of the attempts of one shape.

    Attributes:
        template: makes their requests; None while it is unknown, or if there is none.
        reason: why they go through litellm; empty if they need not.
        answers: what litellm adds to their answers; None before the first one.
        structures: those of answers that ours equals litellm's for, and whether it does.
    """

    def __init__(self) -> None:
        self.template: RequestTemplate | None = None
        self.reason = ""
        self.answers: AnswerTemplate | None = None
        self.structures: dict[Structure, bool] = {}
        self.learning: asyncio.Future[None] | None = None


class DirectLane:
    """The direct lane of one batch.

    Attributes:
        direct_calls: attempts that were sent directly.
        indirect_calls: attempts that went through litellm, by reason.
        differences: answers that differ from litellm's, by member (with ``verify``).
    """

    def __init__(self, router: object, *, verify: bool = False) -> None:
        self.direct_calls = 0
        self.indirect_calls: Counter[str] = Counter()
        self.differences: Counter[str] = Counter()
        self._sent_before = 0  # directly, by the lane that this one shares its shapes with
        self._verify = verify
        self._bookkeeping = Bookkeeping(router)
        self._shapes: dict[Any, Shape] = {}
        self._passed: dict[Any, dict[str, Passed]] = {}
        self._surroundings = Surroundings()

    def wrap(
        self, call: Callable[[int, Any], Awaitable[Any]]
    ) -> Callable[[int, Any], Awaitable[Any]]:
        """Make the attempts of a Router call on this lane."""

        async def direct(index: int, request: Any) -> Any:
            with marked(self):
                return await call(index, request)

        return direct

    def counted_apart(self) -> DirectLane:
        """Return a lane that shares what this one knows of shapes, and has counts of its own."""
        lane = copy.copy(self)
        lane._sent_before += self.direct_calls
        lane.direct_calls = 0
        lane.indirect_calls, lane.differences = Counter(), Counter()
        return lane

    async def attempt(self, original: Attempt, arguments: dict[str, Any]) -> Any:
        """Make one attempt, on the lane if it is open for it."""
        if arguments.get("stream"):
            return await self._stream(original, arguments)
        reason = self._bookkeeping.reason() or reason_for_litellm(arguments) or replaced()
        if reason:
            return await self._through_litellm(reason, original, arguments)
        self._forget_what_is_old()
        try:
            family, key = self._key(arguments)
        except (NotJsonError, RecursionError) as error:
            reason = f"an argument is not JSON: {error}"
            return await self._through_litellm(reason, original, arguments)
        shape = self._shapes.get((family, key))
        while shape is not None and shape.learning is not None:
            await asyncio.shield(shape.learning)
            shape = self._shapes.get((family, key))
        if shape is None:
            if self._has_too_many_shapes():
                return await self._through_litellm("too many shapes", original, arguments)
            shape = self._shapes[family, key] = Shape()
            learnt = False
            shape.learning = asyncio.get_running_loop().create_future()
            try:
                ended, outcome = await self._learn(shape, family, original, arguments)
                learnt = True
            except Exception:
                self.indirect_calls["litellm refuses it"] += 1
                raise
            finally:
                shape.learning.set_result(None)
                shape.learning = None
                if not learnt:
                    self._shapes.pop((family, key), None)
            if ended:
                self.indirect_calls[shape.reason] += 1
                return outcome
            if shape.template is not None:
                self._note_passed(family, shape.template, arguments)
        if shape.template is None:
            return await self._through_litellm(shape.reason, original, arguments)
        return await self._send(shape, shape.template, original, arguments)

    async def _through_litellm(
        self, reason: str, original: Attempt, arguments: dict[str, Any]
    ) -> Any:
        self.indirect_calls[reason] += 1
        return await original(**arguments)

    def _has_too_many_shapes(self) -> bool:
        """Return True if learning another shape, which costs two calls, will hardly pay."""
        known, sent = len(self._shapes), self._sent_before + self.direct_calls
        return known >= _MOST_SHAPES or (known >= _SHAPES_TO_TRY and sent < 2 * known)

    async def _stream(self, original: Attempt, arguments: dict[str, Any]) -> Any:
        """Let litellm begin a stream, and read its chunks on the lane if they are plain."""
        try:
            begun, lines = await stream(original, arguments)
        except BaseException:
            self.indirect_calls["its stream did not begin"] += 1
            raise
        reason = streams.reason_for_litellm(begun, lines)
        if reason or lines is None:
            self.indirect_calls[reason] += 1
            return begun
        streams.read_directly(
            begun, streams.ChunkReading(lines, self._settled, self._differs, self._verify)
        )
        return begun

    def _settled(self, reason: str) -> None:
        if reason:
            self.indirect_calls[reason] += 1
        else:
            self.direct_calls += 1

    def _differs(self, member: str) -> None:
        self.differences[member] += 1

    # -- requests ----------------------------------------------------------------------------------

    def _key(self, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the family of a call and its key in it (:mod:`.shapes`)."""
        names: list[str] = []
        values: list[tuple[str, Any]] = []
        metadata: list[tuple[str, Structure]] = []
        for name, value in arguments.items():
            if name == "messages":
                continue
            names.append(name)
            if not follows_call(name):
                values.append((name, value))
            elif name in METADATA:
                metadata.append((name, outline(value) if value.__class__ is dict else value))
        # The id stands for everything that the Router and litellm know of the deployment: what it
        # refuses, its prices, and its name in the answer.
        info: Mapping[str, Any] = arguments.get("model_info") or {}
        family = (
            info.get("id"),
            arguments["model"],
            tuple(names),
            tuple(metadata),
            structure(arguments["messages"]),
        )
        passed = self._passed.get(family)
        if passed is None:
            return family, tuple([(name, exact(value)) for name, value in values])
        return family, tuple(
            [
                (name, exact(value))
                for name, value in values
                if name not in passed or not passed[name].covers(value)
            ]
        )

    def _forget_what_is_old(self) -> None:
        if self._surroundings.have_changed():
            self._shapes.clear()
            self._passed.clear()

    async def _learn(
        self, shape: Shape, family: Any, original: Attempt, arguments: dict[str, Any]
    ) -> tuple[bool, Any]:
        """Learn how litellm sends a shape. Return True and the outcome if it sent nothing."""
        try:
            copied = _copied(arguments)
            other = self._varied(family, arguments)
        except Exception:  # noqa: BLE001 - objects raise what they like
            shape.reason = "an argument cannot be copied"
            return False, None
        sent = await record(original, copied)
        if not isinstance(sent, Sent):
            shape.reason = "litellm answers it without a request"
            return True, sent
        try:
            sent_too = await record(original, _copied(other))
            if isinstance(sent_too, Sent) and sent_too.client is not sent.client:
                # Its client has expired meanwhile, or another thread has made litellm replace it.
                sent_again = await record(original, _copied(arguments))
                sent = sent_again if isinstance(sent_again, Sent) else sent
        except Exception:  # noqa: BLE001 - of a call that nobody has made
            sent_too = None
        try:
            template = await RequestTemplate.of(sent, arguments)
            if not (isinstance(sent_too, Sent) and template.makes(sent_too, other)):
                raise NotAlikeError("its request depends on the texts or ids of the call")
        except NotAlikeError as error:
            shape.reason = str(error)
        else:
            shape.template = template
        return False, None

    def _varied(self, family: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments that differ in everything that the key of the call leaves out."""
        other = self._bookkeeping.varied(_copied(arguments))
        for name, passed in self._passed.get(family, {}).items():
            if name in other and passed.covers(other[name]):
                other[name] = passed.another(other[name])
        return other

    def _note_passed(
        self, family: Any, template: RequestTemplate, arguments: Mapping[str, Any]
    ) -> None:
        passed = self._passed.setdefault(family, {})
        for name in template.arguments - {"model"}:
            passed.setdefault(name, Passed()).add(arguments[name])

    # -- answers -----------------------------------------------------------------------------------

    async def _send(
        self,
        shape: Shape,
        template: RequestTemplate,
        original: Attempt,
        arguments: dict[str, Any],
    ) -> Any:
        try:
            body = template.body(arguments)
            if self._verify:
                await self._verify_request(template, original, arguments)
        except (ValueError, TypeError, UnicodeError):  # litellm raises its own error
            return await self._through_litellm("it cannot be encoded", original, arguments)
        self.direct_calls += 1
        started = time.perf_counter()
        try:
            answer = await post(template, body)
        except Exception as error:  # noqa: BLE001 - handed to litellm, which raises its own
            seconds = time.perf_counter() - started
            try:
                return await replay(original, arguments, _raising(error))
            except Exception as failure:
                _set_duration(failure, seconds)
                raise
        if answer.status in _REDIRECTS:
            self.direct_calls -= 1
            shape.template, shape.reason = None, "the provider redirects it"
            return await self._through_litellm(shape.reason, original, arguments)
        completion = Completion.of(answer, time.perf_counter() - started)
        if completion is None:
            return await replay(original, arguments, answer.response)
        if not self._verify and shape.structures.get(completion.structure, False):
            assert shape.answers is not None
            try:
                response = shape.answers.make(completion, arguments)
            except Exception:  # noqa: BLE001 - of a value that litellm cannot read: its error counts
                return await replay(original, arguments, answer.response)
            self._bookkeeping.succeeded(arguments, response)
            return response
        theirs = await replay(original, arguments, answer.response)
        self._compare(shape, completion, arguments, theirs)
        complete(theirs, completion)
        return theirs

    async def _verify_request(
        self, template: RequestTemplate, original: Attempt, arguments: dict[str, Any]
    ) -> None:
        sent = await record(original, _copied(arguments))
        if not (isinstance(sent, Sent) and template.makes(sent, arguments)):
            self.differences["request"] += 1

    def _compare(
        self, shape: Shape, completion: Completion, arguments: dict[str, Any], theirs: Any
    ) -> None:
        """Compare our response with litellm's, the first time that a structure comes."""
        is_known = completion.structure in shape.structures
        if not self._verify and (is_known or len(shape.structures) >= _MOST_SHAPES):
            return
        if shape.answers is None:
            if not has_tokens(theirs):  # every way of pricing it gives 0
                return
            shape.answers = answer_template(theirs, completion, arguments)
        try:
            if reads_in_its_own_way(theirs, arguments):
                shape.structures[completion.structure] = False
                return
            member = difference(shape.answers.make(completion, arguments), theirs)
        except Exception as error:  # noqa: BLE001 - litellm has read it, and reads the others, too
            member = type(error).__name__
        shape.structures[completion.structure] = member is None
        if member is not None:
            self.differences[member] += 1


def _raising(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        if isinstance(error, httpx.RequestError):
            error.request = request
        raise error

    return answer


def _set_duration(failure: Exception, seconds: float) -> None:
    """Correct the time in a message of litellm: the timeout was over when litellm heard of it."""
    message = getattr(failure, "message", None)
    if isinstance(message, str):
        true = _TIME_TAKEN.sub(f"time taken={round(seconds, 2)} seconds", message)
        failure.message = true  # type: ignore[attr-defined]
        failure.args = tuple(true if part == message else part for part in failure.args)


_TIME_TAKEN = re.compile(r"time taken=[\d.]+ seconds")


def _copied(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Copy arguments of an attempt for a recording, since litellm writes into some of them."""
    return {
        name: copy.deepcopy(value) if value.__class__ in (dict, list) else value
        for name, value in arguments.items()
    }
