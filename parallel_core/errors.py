"""The errors of this package. Each docstring says where the error appears and what it means."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from parallel_core.quantities import counted

if TYPE_CHECKING:
    from .types import Usage


class RebuiltError(Exception):
    """Base class of errors that are pickled as the arguments of their constructor.

    Each argument is also the name of an attribute.
    """

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...], dict[str, Any]]:
        names = inspect.signature(type(self)).parameters
        return type(self), tuple(getattr(self, name) for name in names), self.__dict__


class PartialAnswerError(RebuiltError):
    """Base class of the errors that carry what had arrived of an answer.

    Attributes:
        text: the part of a streamed answer that had arrived.
        usage: tokens and cost of that part, estimated if the provider did not report them; ``None``
            if unknown, or if nothing had arrived.
        time_to_first_chunk: seconds from the beginning of the call to the first chunk; ``None``
            if nothing was streamed or nothing had arrived.
    """

    def __init__(
        self, message: str, text: str, usage: Usage | None, time_to_first_chunk: float | None
    ) -> None:
        # Pass one argument: OSError takes the first of two as an errno. The message and the repr
        # never contain the text: it must not get into logs.
        super().__init__(message)
        self.text = text
        self.usage = usage
        self.time_to_first_chunk = time_to_first_chunk


class InvalidRequestError(ValueError):
    """A request is invalid and cannot be sent.

    A list, a tuple or another sequence, set or view is checked as a whole before the first call:
    the error then names every invalid index, and nothing has been sent. For an invalid item of a
    lazy source the error is the exception of that index's result, or the first error of a fail-fast
    batch.

    Attributes:
        problems: the problem of each invalid request, by index.
    """

    def __init__(self, problems: Mapping[int, str]) -> None:
        # Keep the argument unchanged, so that the error can be pickled.
        super().__init__(problems)
        self.problems: dict[int, str] = dict(problems)

    def __str__(self) -> str:
        indexes_by_problem: defaultdict[str, list[int]] = defaultdict(list)
        for index, problem in self.problems.items():
            indexes_by_problem[problem].append(index)
        lines = [
            f"{'request' if len(indexes) == 1 else 'requests'} {_ranges(indexes)}: {problem}"
            for problem, indexes in indexes_by_problem.items()
        ]
        return "; ".join(lines)


class CallCancelledError(Exception):
    """A call, or a source, ended in a cancellation that its batch had not requested.

    For instance the call awaited a future that other code cancelled. This is an error of that call
    alone: the exception of its result, or the first error of a fail-fast batch. If the source ended
    in such a cancellation, the error ends the batch. The original ``CancelledError`` is the
    ``__cause__``.
    """


class BatchAbortedError(RuntimeError):
    """The event loop or trio run that carried a batch was shut down before the batch had ended.

    The iterator of the batch raises it, after every call has been cancelled, if the consumer was
    not cancelled itself.
    """


class RequestTimeoutError(PartialAnswerError, TimeoutError):
    """A call took longer than its ``timeout``: it was cancelled and has ended.

    It is the exception of its result, or the first error of a fail-fast batch.

    Attributes:
        index: index of the request.
        model: model of the request; ``None`` for items of :func:`parallel_map`.
        limit: the timeout, in seconds.
        text, usage, time_to_first_chunk: as in :class:`PartialAnswerError`.
    """

    def __init__(
        self,
        index: int,
        model: str | None,
        limit: float,
        text: str = "",
        usage: Usage | None = None,
        time_to_first_chunk: float | None = None,
    ) -> None:
        message = f"{_request(index, model)} took longer than its timeout of {limit:g} s"
        super().__init__(message, text, usage, time_to_first_chunk)
        self.index = index
        self.model = model
        self.limit = limit


class BatchTimeoutError(PartialAnswerError, TimeoutError):
    """The ``total_timeout`` of the batch has passed.

    It is the exception of every unfinished request: requests in flight were cancelled, the others
    were not sent. If the length of the source is unknown, requests that had not been drawn get no
    result. A fail-fast batch raises it.

    Attributes:
        index: index of the request; ``None`` if the batch raises it.
        limit: the total timeout, in seconds from the start of the batch.
        text, usage, time_to_first_chunk: as in :class:`PartialAnswerError`.
    """

    def __init__(
        self,
        index: int | None,
        limit: float,
        text: str = "",
        usage: Usage | None = None,
        time_to_first_chunk: float | None = None,
    ) -> None:
        who, whose = ("the batch", "its") if index is None else (f"request {index}", "the batch's")
        message = f"{who} was not finished within {whose} total timeout of {limit:g} s"
        super().__init__(message, text, usage, time_to_first_chunk)
        self.index = index
        self.limit = limit


class BudgetExceededError(RebuiltError):
    """The worst case of a request does not fit into the rest of the budget: it was not sent.

    It is the exception of its result, or the first error of a fail-fast batch.

    Attributes:
        index: index of the request.
        limit: the limit that would be exceeded, for instance ``"max_cost of 2 USD"``.
        needed: the worst case of the request, in the unit of the limit.
        left: the rest of the limit, in that unit.
    """

    def __init__(self, index: int, limit: str, needed: float, left: float) -> None:
        super().__init__(
            f"request {index} was not sent: it may use {needed:g}, but only {left:g} is left of "
            f"the budget's {limit}: raise it, or lower max_tokens of the request"
        )
        self.index = index
        self.limit = limit
        self.needed = needed
        self.left = left


class NotSentError(RebuiltError):
    """A request was not sent, or not again, because no request of its model can get through.

    It is the exception of its result. Earlier requests of the same model failed for a reason that
    is not their own: the key was refused, the credit is used up, the server is away. That failure
    is the ``__cause__``. A request that waited to be sent again gets this error, too.

    Attributes:
        index: index of the request.
        model: model of the request; None for an item without one.
        reason: the reason in one sentence, without contents and keys.
        too_long: the wait that exceeds ``Retry.max_wait``: the one that the provider asks for, or
            the outage so far. Empty if waiting would not help.
        attempts: earlier attempts of the request itself, which all failed; 0 if it was never sent.
    """

    def __init__(
        self, index: int, model: str | None, reason: str, too_long: str = "", attempts: int = 0
    ) -> None:
        because = f"{reason}; {too_long}" if too_long else reason
        again = f" again after {counted(attempts, 'attempt')}" if attempts else ""
        super().__init__(f"{_request(index, model)} was not sent{again}: {because}")
        self.index = index
        self.model = model
        self.reason = reason
        self.too_long = too_long
        self.attempts = attempts


class EmptyResponseError(PartialAnswerError):
    """A provider answered a call of a Router with no choices: ``"choices": []``, or no such field.

    It is the exception of its result, or the first error of a fail-fast batch. The call has been
    paid for and is not sent again. An answer whose choices have no text is not such an error.

    Attributes:
        index: index of the request.
        model: model of the request.
        usage: tokens and cost of the call; ``None`` if the provider did not report them.
        time_to_first_chunk: seconds from the beginning of a streamed call to its first chunk;
            ``None`` if nothing was streamed.
    """

    def __init__(
        self,
        index: int,
        model: str,
        usage: Usage | None = None,
        time_to_first_chunk: float | None = None,
    ) -> None:
        message = f"the answer (model {model!r}) has no choices"
        super().__init__(message, "", usage, time_to_first_chunk)
        self.index = index
        self.model = model


class NoCompletionError(RebuiltError, TypeError):
    """A callable in the place of a Router returned something that is not a chat completion.

    Result files hold chat completions, so such a request is written there as failed.
    """

    def __init__(self) -> None:
        super().__init__("the answer is not a chat completion")


class StreamInterruptedError(PartialAnswerError):
    """A stream broke off after its first chunk, or ended without a finish reason.

    It is the exception of its result, or the first error of a fail-fast batch. The error that broke
    the stream is the ``__cause__``. A call whose stream fails before its first chunk fails with
    that error itself.

    Attributes:
        index: index of the request.
        model: model of the request.
        text, usage, time_to_first_chunk: as in :class:`PartialAnswerError`.
        is_complete: True if the stream did not break off: all of its chunks arrived, but they
            cannot be merged. The ``__cause__`` says why.
    """

    def __init__(
        self,
        index: int,
        model: str,
        text: str = "",
        usage: Usage | None = None,
        time_to_first_chunk: float | None = None,
        is_complete: bool = False,
    ) -> None:
        happened = f"broke off after {counted(len(text), 'character')}"
        if is_complete:
            happened = "arrived, but its chunks cannot be put together; on_chunk receives them"
        message = f"the stream of {_request(index, model)} {happened}"
        super().__init__(message, text, usage, time_to_first_chunk)
        self.index = index
        self.model = model
        self.is_complete = is_complete


class StreamStalledError(PartialAnswerError, TimeoutError):
    """A stream sent no chunk for ``stall_timeout`` seconds: it was cancelled and is closed.

    It is the exception of its result, or the first error of a fail-fast batch.

    Attributes:
        index: index of the request.
        model: model of the request.
        limit: the timeout, in seconds.
        text, usage, time_to_first_chunk: as in :class:`PartialAnswerError`.
    """

    def __init__(
        self,
        index: int,
        model: str,
        limit: float,
        text: str = "",
        usage: Usage | None = None,
        time_to_first_chunk: float | None = None,
    ) -> None:
        message = (
            f"the stream of {_request(index, model)} gave nothing for {limit:g} s after "
            f"{counted(len(text), 'character')}"
        )
        super().__init__(message, text, usage, time_to_first_chunk)
        self.index = index
        self.model = model
        self.limit = limit


class StoppedError(RebuiltError):
    """A run of a file was stopped before this request was finished.

    Users never see it: such requests have no line in the output, and the next run sends them.

    Attributes:
        index: index of the request.
    """

    def __init__(self, index: int) -> None:
        super().__init__(f"request {index} was not finished when its run was stopped")
        self.index = index


class RouterHostClosedError(RebuiltError, RuntimeError):
    """The asyncio loop that runs a Router's calls for trio has been closed.

    A call raises it if it is made after the ``async with`` block of its host was left (or after its
    trio-asyncio loop was closed), or if it was running when that happened.
    """

    def __init__(self) -> None:
        super().__init__(
            "the host of the Router has been closed: make calls inside its async with block"
        )


class WorkersLostError(RuntimeError):
    """There is no Ray worker, and none could be started.

    It is raised when the workers are opened, and by calls after the last workers were lost and
    repeated attempts to start new ones failed. The text says what Ray reports and what to do.
    """


class WorkerDiedError(RebuiltError, RuntimeError):
    """A request was in flight in several workers that died one after the other.

    The request is not sent again, because it may have killed them. This error is the exception of
    its result.

    Attributes:
        deaths: number of workers that died.
    """

    def __init__(self, deaths: int) -> None:
        super().__init__(
            f"{deaths} workers have died while this request was in flight in them, the last one "
            "with this request alone: it is not sent again. Find out why the process ended: it may "
            "have run out of memory or crashed"
        )
        self.deaths = deaths


class RemoteCallError(RuntimeError):
    """A substitute for an exception or a response of a worker that cannot be sent to this process.

    For instance its class cannot be imported here, or it cannot be pickled. This error is the
    exception of its result, or the first error of a fail-fast batch. It also has the attributes of
    the original exception, for instance ``status_code``, as far as they can be sent.

    Attributes:
        type_name: type of the exception or the response, with its module.
        text: text of the exception; empty for a response.
    """

    def __init__(self, problem: str, type_name: str, text: str) -> None:
        super().__init__(problem)
        self.type_name = type_name
        self.text = text

    @classmethod
    def standing_for(cls, error: BaseException) -> RemoteCallError:
        """Return the substitute for this exception."""
        return cls.standing_for_type(full_name(error), text_of(error))

    @classmethod
    def standing_for_type(cls, type_name: str, text: str) -> RemoteCallError:
        """Return the substitute for an exception of which only type and text are known."""
        problem = f"a worker raised {type_name}, which cannot be rebuilt in this process: {text}"
        return cls(problem, type_name, text)

    @classmethod
    def for_response(cls, response: object, why: str) -> RemoteCallError:
        """Return the substitute for this response."""
        type_name = full_name(response)
        return cls(f"a worker got a {type_name} as its response: {why}", type_name, "")

    def __reduce__(self) -> tuple[type[RemoteCallError], tuple[Any, ...], dict[str, Any]]:
        return type(self), (*self.args, self.type_name, self.text), self.__dict__


class InputFileError(ValueError):
    """A file of requests cannot be used as it is.

    It is raised before the first call if the file as a whole is at fault: it is missing, empty or
    compressed, or does not match the options. It is also raised if the file has changed since it
    was checked. The text says what to do. Problems of single lines are in the summary of the check.
    """


class JournalError(RuntimeError):
    """Results cannot be written to disk, or the existing files cannot be resumed.

    It is raised when a journal is opened, and by every method of a journal whose disk has failed.
    The text names the file and the problem, and says where results are that could not be written.
    """


class JournalInUseError(RebuiltError, JournalError):
    """Another run, in this process or another one, writes to the same output file.

    It is raised when a journal is opened.

    Attributes:
        path: the file that is in use.
        process: process id of the other run; ``None`` if the system does not report it.
    """

    def __init__(self, path: str, process: int | None) -> None:
        by = "another run" if process is None else f"another run, process {process}"
        super().__init__(
            f"{path} is in use by {by}: wait until that run has ended, stop it, or give another "
            "output file"
        )
        self.path = path
        self.process = process


class OrderError(RebuiltError, JournalError):
    """The output could not be sorted into the order of the input. It is complete and unchanged.

    Attributes:
        path: the file that could not be sorted.
        reason: the reason.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path} could not be sorted ({reason}). Every result is in it, in the order of "
            "completion; run the same again to sort it"
        )
        self.path = path
        self.reason = reason


class DifferentRunError(RebuiltError, JournalError):
    """The output file holds the results of a run with different settings.

    It is raised when a journal is opened. Nothing has been changed.

    Attributes:
        path: the output file.
        differences: the old and the new value of each field that differs, by name. ``None`` also
            stands for a missing field.
        note: a further warning, or empty.
    """

    def __init__(
        self, path: str, differences: Mapping[str, tuple[Any, Any]], note: str = ""
    ) -> None:
        super().__init__(
            f"{path} holds the results of a different run: {describe_differences(differences)}. "
            "Undo the change, or give another output file. --allow-changed (in Python "
            "allow_changed=True) resumes the run in spite of the change; --force-new "
            "(force_new=True) starts over and moves the old files aside"
            + (f". {note}" if note else "")
        )
        self.path = path
        self.differences: dict[str, tuple[Any, Any]] = dict(differences)
        self.note = note


class ChangedRequestsError(DifferentRunError):
    """Requests that have an answer in the output ask for something else now.

    It is raised when a journal is opened. Nothing has been changed.

    Attributes:
        path: the output file.
        count: number of these requests.
        requests: the first few of them: line number in the input, and id.
        note: a further warning, or empty.
        differences: empty.
    """

    def __init__(
        self, path: str, count: int, requests: Sequence[tuple[int, str]], note: str = ""
    ) -> None:
        super().__init__(path, {}, note)
        self.count = count
        self.requests: tuple[tuple[int, str], ...] = tuple((line, name) for line, name in requests)

    def __str__(self) -> str:
        are = "request has" if self.count == 1 else "requests have"
        text = (
            f"{self.count:,} {are} changed since the answer in {self.path} was given: "
            f"{name_requests(self.requests, self.count)}. --changed resend (in Python "
            "changed='resend') sends what has changed again and moves the old answers aside; "
            "--changed keep keeps the old answers; both send what is new"
        )
        return f"{text}. {self.note}" if self.note else text


NAMED_BY_LINE = (
    "Lines without a custom_id are named by their number: where lines were added or removed before "
    "them, the answers that are there may belong to other lines. Give each line a custom_id, and "
    "start over: then it keeps its answer wherever it is"
)

_LONGEST_NAME = 60  # characters


def name_requests(requests: Sequence[tuple[int, str]], count: int) -> str:
    """Return a text that names the first of so many requests: line numbers and ids."""
    names = [
        f"line {line}" if name == str(line) else f"line {line} ({_shortened(name)!r})"
        for line, name in requests
    ]
    more = count - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"


_DIGITS_OF_FORMAT_1 = 64
_INPUT_OF_FORMAT_1 = (
    "input is not the same file, byte for byte, as in that run, which is of an older version and "
    "recorded no details to compare"
)


def cancelled_unasked(what: str, cancellation: BaseException | None = None) -> CallCancelledError:
    """Return the error for a cancellation that the batch had not requested."""
    error = CallCancelledError(f"{what} ended in a cancellation that the batch had not asked for")
    error.__cause__ = cancellation
    return error


def full_name(value: object) -> str:
    """Return the name of a value's class, with its module."""
    kind = type(value)
    in_module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{in_module}{kind.__qualname__}"


def text_of(error: BaseException) -> str:
    """Return ``str(error)``, or a placeholder if the code of its class fails."""
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - the error's own code may raise anything
        return f"(no text: its __str__ raises a {full_name(failure)})"


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception, unless it does not accept notes."""
    with contextlib.suppress(Exception):
        error.add_note(f"parallel_core: {text}")


def describe_differences(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Return a text that lists the differences between a run then and now."""
    return "; ".join(_difference(name, old, new) for name, (old, new) in differences.items())


def _difference(name: str, old: object, new: object) -> str:
    if name == "input" and isinstance(old, str):
        if len(old) == _DIGITS_OF_FORMAT_1:
            return _INPUT_OF_FORMAT_1
        if re.fullmatch("[0-9a-f]{32}", old):  # a fingerprint says nothing to a reader
            return "the input has other requests now"
    return f"{name} was {_shown(old)} and is now {_shown(new)}"


def _request(index: int, model: str | None) -> str:
    return f"request {index}" if model is None else f"request {index} (model {model!r})"


def _shown(value: object) -> str:
    return "not set" if value is None else repr(value)


def _ranges(indexes: Iterable[int]) -> str:
    """Return ``[0, 1, 2, 7]`` as ``"0-2, 7"``, so that a long list of indexes stays readable."""
    spans: list[list[int]] = []
    for index in sorted(indexes):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
