"""The errors of this package. Each docstring says where the error appears and what it means."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .types import Usage


class InvalidRequestError(ValueError):
    """A request cannot be sent as it is.

    A list, a tuple or another sequence, set or view is checked as a whole before the first call:
    the error then names every bad index and nothing has been sent. A bad item of a lazy source is
    the exception of that index's result, or the first error of a fail-fast batch.

    Attributes:
        problems: what is wrong, by index of the request.
    """

    def __init__(self, problems: Mapping[int, str]) -> None:
        # The argument is kept as it is, so that the error survives pickling.
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
    """A call, or a source, ended in a cancellation that its batch had not asked for.

    For instance because the call awaited a future that somebody else cancelled. It is an error of
    that call alone: the exception of its result, or the first error of a fail-fast batch. Of a
    source it is what ends the batch. The original ``CancelledError`` is its ``__cause__``.
    """


def cancelled_unasked(what: str, cancellation: BaseException | None = None) -> CallCancelledError:
    """The error that stands for a cancellation nobody has asked for."""
    error = CallCancelledError(f"{what} ended in a cancellation that the batch had not asked for")
    error.__cause__ = cancellation
    return error


class BatchAbortedError(RuntimeError):
    """The event loop or trio run that carried a batch was shut down before the batch had ended.

    Raised by the batch's iterator, after every call has been cancelled, to a consumer that was
    not cancelled itself.
    """


class RequestTimeoutError(TimeoutError):
    """A call took longer than its ``timeout``: it has been cancelled, and has ended.

    The exception of its result, or the first error of a fail-fast batch.

    Attributes:
        index: of the request.
        model: of the request; ``None`` for items of :func:`parallel_map`.
        limit: the timeout, in seconds.
        text: of a streamed answer, what had arrived.
        usage: tokens and cost of that; ``None`` where nothing had arrived.
        time_to_first_chunk: seconds from the beginning of the call to the first chunk; ``None``
            where nothing was streamed, or nothing had arrived.
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
        # One argument: of two, OSError would make an errno.
        of_model = "" if model is None else f" (model {model!r})"
        super().__init__(f"request {index}{of_model} took longer than its timeout of {limit:g} s")
        self.index = index
        self.model = model
        self.limit = limit
        self.text = text
        self.usage = usage
        self.time_to_first_chunk = time_to_first_chunk

    def __reduce__(self) -> tuple[type[RequestTimeoutError], tuple[Any, ...]]:
        fields = (self.index, self.model, self.limit, self.text)
        return type(self), (*fields, self.usage, self.time_to_first_chunk)


class BatchTimeoutError(TimeoutError):
    """The ``total_timeout`` of the batch has passed.

    The exception of every request that was not finished: one in flight was cancelled, of the others
    none was sent. Of a source whose length is unknown, those that had not been drawn get no result.
    A fail-fast batch raises it.

    Attributes:
        index: of the request; ``None`` where the batch raises it.
        limit: the total timeout, in seconds from the start of the batch.
        text: of a streamed answer, what had arrived.
        usage: tokens and cost of that; ``None`` where nothing had arrived.
        time_to_first_chunk: seconds from the beginning of the call to the first chunk; ``None``
            where nothing was streamed, or nothing had arrived.
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
        super().__init__(f"{who} was not finished within {whose} total timeout of {limit:g} s")
        self.index = index
        self.limit = limit
        self.text = text
        self.usage = usage
        self.time_to_first_chunk = time_to_first_chunk

    def __reduce__(self) -> tuple[type[BatchTimeoutError], tuple[Any, ...]]:
        fields = (self.index, self.limit, self.text)
        return type(self), (*fields, self.usage, self.time_to_first_chunk)


class BudgetExceededError(Exception):
    """The worst case of a request does not fit into what is left of the budget: it was not sent.

    The exception of its result, or the first error of a fail-fast batch.

    Attributes:
        index: of the request.
        limit: which limit it is, for instance ``"max_cost of 2 USD"``.
        needed: the worst case of the request, in the unit of the limit.
        left: what is left, in that unit.
    """

    def __init__(self, index: int, limit: str, needed: float, left: float) -> None:
        super().__init__(index, limit, needed, left)
        self.index = index
        self.limit = limit
        self.needed = needed
        self.left = left

    def __str__(self) -> str:
        return (
            f"request {self.index} was not sent: it may use {self.needed:g}, and of the budget's "
            f"{self.limit} only {self.left:g} is left"
        )


class NotSentError(Exception):
    """A request was not sent, because nothing of its model can get through.

    The exception of its result. Requests of the same model failed before it for a reason that is
    not their own: the key was refused, the credit is used up, the server is away. That failure is
    the ``__cause__``.

    Attributes:
        index: of the request.
        model: of the request; None for an item without one.
        reason: why, in one sentence without contents and keys.
        too_long: which wait was longer than ``Retry.max_wait`` allows: the one that the provider
            asks for, or the outage so far. Empty if waiting would not help.
    """

    def __init__(self, index: int, model: str | None, reason: str, too_long: str = "") -> None:
        super().__init__(index, model, reason, too_long)
        self.index = index
        self.model = model
        self.reason = reason
        self.too_long = too_long

    def __str__(self) -> str:
        of_model = "" if self.model is None else f" (model {self.model!r})"
        too_long = f"; {self.too_long}" if self.too_long else ""
        return f"request {self.index}{of_model} was not sent: {self.reason}{too_long}"


class EmptyResponseError(Exception):
    """A provider answered a call of a Router without any choice: ``"choices": []``, or none at all.

    The exception of its result, or the first error of a fail-fast batch. The call has been paid
    for, and is not sent again. An answer whose choices have no text is an answer.

    Attributes:
        index: of the request.
        model: of the request.
        usage: tokens and cost of the call; ``None`` where the provider has not told.
        time_to_first_chunk: seconds from the beginning of a streamed call to its first chunk;
            ``None`` where nothing was streamed.
    """

    def __init__(
        self,
        index: int,
        model: str,
        usage: Usage | None = None,
        time_to_first_chunk: float | None = None,
    ) -> None:
        super().__init__(f"the answer (model {model!r}) has no choices")
        self.index = index
        self.model = model
        self.usage = usage
        self.time_to_first_chunk = time_to_first_chunk

    def __reduce__(self) -> tuple[type[EmptyResponseError], tuple[Any, ...]]:
        fields = (self.index, self.model, self.usage, self.time_to_first_chunk)
        return type(self), fields


class NoCompletionError(TypeError):
    """A callable in the place of a Router returned what is no chat completion.

    Files of results hold chat completions: such a request has a failure there.
    """

    def __init__(self) -> None:
        super().__init__("the answer is no chat completion")

    def __reduce__(self) -> tuple[type[NoCompletionError], tuple[()]]:
        return type(self), ()


class StreamInterruptedError(Exception):
    """A stream broke off after its first chunk, or ended without a finish reason.

    The exception of its result, or the first error of a fail-fast batch. What broke it is its
    ``__cause__``. A stream that fails before its first chunk has failed with that error itself.

    Attributes:
        index: of the request.
        model: of the request.
        text: what had arrived.
        usage: tokens and cost of it, estimated as far as the provider has not told; ``None`` where
            nobody can tell.
        time_to_first_chunk: seconds from the beginning of the call to the first chunk.
        is_complete: the stream did not break off. All of its chunks arrived, but they cannot be
            put together; the ``__cause__`` says why.
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
        happened = f"broke off after {len(text)} characters"
        if is_complete:
            happened = "arrived, but its chunks cannot be put together; on_chunk receives them"
        # Not the text, in a repr either: messages do not belong into logs.
        super().__init__(f"the stream of request {index} (model {model!r}) {happened}")
        self.index = index
        self.model = model
        self.text = text
        self.usage = usage
        self.time_to_first_chunk = time_to_first_chunk
        self.is_complete = is_complete

    def __reduce__(self) -> tuple[type[StreamInterruptedError], tuple[Any, ...]]:
        fields = (self.index, self.model, self.text)
        return type(self), (*fields, self.usage, self.time_to_first_chunk, self.is_complete)


class StreamStalledError(TimeoutError):
    """A stream gave no chunk for ``stall_timeout`` seconds: it has been cancelled, and is closed.

    The exception of its result, or the first error of a fail-fast batch.

    Attributes:
        index: of the request.
        model: of the request.
        limit: the timeout, in seconds.
        text: what had arrived.
        usage: tokens and cost of it, estimated as far as the provider has not told; ``None`` where
            nothing had arrived.
        time_to_first_chunk: seconds from the beginning of the call to the first chunk; ``None``
            where none had come.
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
        # One argument: of two, OSError would make an errno.
        super().__init__(
            f"the stream of request {index} (model {model!r}) gave nothing for {limit:g} s after "
            f"{len(text)} characters"
        )
        self.index = index
        self.model = model
        self.limit = limit
        self.text = text
        self.usage = usage
        self.time_to_first_chunk = time_to_first_chunk

    def __reduce__(self) -> tuple[type[StreamStalledError], tuple[Any, ...]]:
        fields = (self.index, self.model, self.limit, self.text)
        return type(self), (*fields, self.usage, self.time_to_first_chunk)


class StoppedError(Exception):
    """A run of a file was stopped before this request had come to its end.

    Nobody gets it: such requests have no line in the output, and the next run sends them.

    Attributes:
        index: of the request.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index

    def __str__(self) -> str:
        return f"request {self.index} had not come to its end when its run was stopped"


# They tell what the call has used: those of a stream that has begun, and of an empty answer.
WITH_USAGE = (
    EmptyResponseError,
    StreamInterruptedError,
    StreamStalledError,
    RequestTimeoutError,
    BatchTimeoutError,
)


class RouterHostClosedError(RuntimeError):
    """The asyncio loop on which trio has a Router's calls made has been closed.

    A call gets it that is made on a host whose ``async with`` block has been left (or on a loop of
    trio-asyncio that was closed), or that was running when that happened.
    """

    def __init__(self) -> None:
        super().__init__(
            "the host of the Router has been closed: make calls inside its async with block"
        )

    def __reduce__(self) -> tuple[type[RouterHostClosedError], tuple[()]]:
        return type(self), ()


class WorkersLostError(RuntimeError):
    """No worker on Ray is there, and none could be started.

    Raised on opening, and by calls where the last workers were lost meanwhile and new ones could
    not be started again and again. The text says what Ray tells, and what to do.
    """


class WorkerDiedError(RuntimeError):
    """A request was in flight in several workers that died, one after the other.

    It is not sent again: it may be what kills them. The exception of that request's result.

    Attributes:
        deaths: so many workers.
    """

    def __init__(self, deaths: int) -> None:
        super().__init__(
            f"{deaths} workers have died while this request was in flight in them, the last one "
            "with this request alone: it is not sent again. Look for what ends the process: memory "
            "that runs out, or code that crashes"
        )
        self.deaths = deaths

    def __reduce__(self) -> tuple[type[WorkerDiedError], tuple[int]]:
        return type(self), (self.deaths,)


class RemoteCallError(RuntimeError):
    """Stands for an exception, or for a response, of a worker that cannot be brought here.

    For instance because its class cannot be imported here, or because it cannot be pickled. The
    exception of its result, or the first error of a fail-fast batch. What else the exception had on
    it, a ``status_code`` for instance, is on this one as well, as far as that can be brought.

    Attributes:
        type_name: of the exception or the response, with its module.
        text: what the exception said; of a response empty.
    """

    def __init__(self, problem: str, type_name: str, text: str) -> None:
        super().__init__(problem)
        self.type_name = type_name
        self.text = text

    @classmethod
    def standing_for(cls, error: BaseException) -> RemoteCallError:
        """The error that stands for this exception."""
        return cls.standing_for_type(full_name(error), text_of(error))

    @classmethod
    def standing_for_type(cls, type_name: str, text: str) -> RemoteCallError:
        """The error that stands for an exception of which only this is known."""
        problem = f"a {type_name} of a worker, which cannot be brought here as itself: {text}"
        return cls(problem, type_name, text)

    @classmethod
    def for_response(cls, response: object, why: str) -> RemoteCallError:
        """The error that stands for this response."""
        type_name = full_name(response)
        return cls(f"a worker has got a {type_name} as its response: {why}", type_name, "")

    def __reduce__(self) -> tuple[type[RemoteCallError], tuple[Any, ...], dict[str, Any]]:
        return type(self), (*self.args, self.type_name, self.text), self.__dict__


def full_name(value: object) -> str:
    """The name of a value's class, with its module."""
    kind = type(value)
    in_module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{in_module}{kind.__qualname__}"


def text_of(error: BaseException) -> str:
    """``str(error)``, also where the code of its class fails."""
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - whatever the error's own code raises
        return f"(no text: its __str__ raises a {full_name(failure)})"


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception, unless it is one that cannot be written to."""
    with contextlib.suppress(Exception):
        error.add_note(f"parallel_core: {text}")


class InputFileError(ValueError):
    """A file of requests cannot be used as it is.

    Raised before the first call where the file as a whole is at fault: it is not there, is empty,
    is compressed, or does not go with the options. Also where it has changed since it was checked.
    The text says what to do. What is wrong with single lines is in the summary of the check.
    """


class JournalError(RuntimeError):
    """Results cannot be kept on disk, or what is there cannot be gone on with.

    Raised when a journal is opened, and by everything of a journal whose disk has failed. The text
    says which file it is, what is wrong with it, and where results are that could not be written.
    """


class JournalInUseError(JournalError):
    """Another run, in this process or another one, writes to the same output file.

    Raised when a journal is opened.

    Attributes:
        path: the file that is in use.
        process: the process id of the other run; ``None`` where the system does not tell.
    """

    def __init__(self, path: str, process: int | None) -> None:
        by = "another run" if process is None else f"another run, process {process}"
        super().__init__(
            f"{path} is in use by {by}: wait until that has ended, or stop it, or give another "
            "output file"
        )
        self.path = path
        self.process = process

    def __reduce__(self) -> tuple[type[JournalInUseError], tuple[str, int | None]]:
        return type(self), (self.path, self.process)


class OrderError(JournalError):
    """The output could not be brought into the order of the input. It is as it was, and whole.

    Attributes:
        path: the file that could not be sorted.
        reason: why.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path} could not be sorted ({reason}). Every result is in it, in the order of "
            "completion; run the same again to sort it"
        )
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[OrderError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


class DifferentRunError(JournalError):
    """The output file holds the results of a run whose answers depend on something else.

    Raised when a journal is opened. Nothing has been changed.

    Attributes:
        path: the output file.
        differences: what differs: by the field's name the value of then and the value of now.
            ``None`` is also a field that was not there.
        note: what to mind, where there is something.
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

    def __reduce__(
        self,
    ) -> tuple[type[DifferentRunError], tuple[str, dict[str, tuple[Any, Any]], str]]:
        return type(self), (self.path, self.differences, self.note)


NAMED_BY_LINE = (
    "Lines without a custom_id are named by their number: where lines were added or removed before "
    "them, the answers that are there may belong to other lines"
)


def describe_differences(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Name what differs between a run then and now."""
    return "; ".join(
        _INPUT_OF_FORMAT_1
        if name == "input" and isinstance(old, str) and len(old) == _DIGITS_OF_FORMAT_1
        else f"{name} was {_shown(old)} and is now {_shown(new)}"
        for name, (old, new) in differences.items()
    )


_DIGITS_OF_FORMAT_1 = 64
_INPUT_OF_FORMAT_1 = (
    "input is not the same file, byte for byte, as in that run, which is of an older version, and "
    "cannot be compared with it in detail"
)


def _shown(value: object) -> str:
    return "not set" if value is None else repr(value)


def _ranges(indexes: Iterable[int]) -> str:
    """``[0, 1, 2, 7]`` as ``"0-2, 7"``: every index is named, a long list stays readable."""
    spans: list[list[int]] = []
    for index in sorted(indexes):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
