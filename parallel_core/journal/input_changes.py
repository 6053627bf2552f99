"""A changed input: the requests of a run, compared with those that its results answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import msgspec

from parallel_core.errors import ChangedRequestsError, DifferentRunError
from parallel_core.failures import FailureKind

from .files import Disk, LockedFile
from .request_records import (
    RecordsFile,
    RequestRecords,
    compare_buckets,
    merge_buckets,
)
from .result_lines import id_of_line
from .run_paths import RunPaths
from .scan import FinishedIds, id_digest

OnChanged: TypeAlias = Literal["refuse", "keep", "resend"]
"""What to do about a request that has an answer and asks for something else now."""

NAMED: Final = 5
"""Number of requests that are named."""

_NOTHING_IN_COMMON = "No request of the input has the id of a request of that run"


def no_names() -> Iterator[str]:
    """Return an iterator over no ids."""
    return iter(())


@dataclass(frozen=True, slots=True)
class AskedRequests:
    """The requests of the input of a run.

    Attributes:
        fingerprint: the same for the same requests.
        records: a record of each request.
        find: yields the requests for whose id a function returns True: line number and id.
        other_names: yields ids in the output that belong to the input without being requests:
            invalid lines.
        note: added to messages about changed requests; may be empty.
    """

    fingerprint: str
    records: RequestRecords
    find: Callable[[Callable[[str], bool]], Iterator[tuple[int, str]]]
    other_names: Callable[[], Iterator[str]] = no_names
    note: str = ""


class InputChange(msgspec.Struct, frozen=True):
    """Differences between the input of a run and the requests that its results answer.

    Attributes:
        added: number of requests that are new and have no result.
        sent_again: number of requests that have changed since their result, which is moved aside.
        kept: number of requests that have changed since their result, which stays.
        requests: the first few of these changed requests: line number and id.
        gone: number of results in the output whose request is not in the input any more. They
            stay.
        gone_ids: the first few of their ids.
    """

    added: int = 0
    sent_again: int = 0
    kept: int = 0
    requests: tuple[tuple[int, str], ...] = ()
    gone: int = 0
    gone_ids: tuple[str, ...] = ()


class ChangedInput:
    """Finds the changes of an input, and writes the records of its requests.

    Args:
        paths: the files of the run.
        asked: the requests of the input.
        earlier: the records of the earlier results; None if there are none.
        on_changed: what to do about changed requests that have an answer.
        retry_failed: kinds of failures that are sent again.
        allow_another: True to resume although the input has no request of the run.
    """

    def __init__(
        self,
        paths: RunPaths,
        asked: AskedRequests,
        earlier: RecordsFile | None,
        *,
        on_changed: OnChanged,
        retry_failed: Collection[FailureKind],
        allow_another: bool,
    ) -> None:
        self._output = str(paths.output)
        self._records = paths.requests
        self._asked = asked
        self._earlier = earlier
        self._retry_failed = retry_failed
        self._allow_another = allow_another
        self._is_same = earlier is not None and earlier.input == asked.fingerprint
        # What an earlier run has kept stays, without being refused.
        self._on_changed = "keep" if self._is_same and on_changed == "refuse" else on_changed
        self._kept: set[int] = set()
        self._gone: set[int] = set()
        self._added = 0

    # --- comparing ---

    def find(self, ids: FinishedIds) -> None:
        """Find the changed requests that have a result, and decide about each.

        Those to send again move from the finished requests to ``ids.set_aside``. This changes no
        file, and may be called again when more results were found.

        Raises:
            ChangedRequestsError: requests with an answer have changed, and that is refused.
            DifferentRunError: the input has nothing in common with the run.
            JournalError: the records cannot be read.
            OSError: as JournalError.
        """
        earlier, asked = self._earlier, self._asked
        if earlier is None or (self._is_same and not earlier.kept):
            return
        self._kept, self._gone, self._added = set(), set(), 0
        refused: set[int] = set()
        has_results = bool(ids.succeeded or ids.failed)
        common = 0
        for old, new in zip(earlier.buckets(), asked.records.buckets, strict=True):
            found = compare_buckets(old, new)
            common += found.common
            # A result without a record answers a line that was not a request, or an unknown one.
            self._added += sum(not ids.has_result(_digest(key)) for key in found.added)
            for digest in map(_digest, itertools.chain(found.changed, found.added)):
                if digest in ids.succeeded:
                    if self._on_changed == "keep":
                        self._kept.add(digest)
                    elif self._on_changed == "resend":
                        ids.set_aside(digest)
                    else:
                        refused.add(digest)
                elif digest in ids.failed:
                    kind = ids.failed[digest]
                    if self._on_changed == "keep" and kind not in self._retry_failed:
                        self._kept.add(digest)
                    else:
                        ids.set_aside(digest)
            self._gone.update(
                digest for digest in map(_digest, found.gone) if ids.has_result(digest)
            )
        if has_results and not common and not self._allow_another:
            differences = {"input": (earlier.input, asked.fingerprint)}
            raise DifferentRunError(self._output, differences, _NOTHING_IN_COMMON)
        if refused:
            raise ChangedRequestsError(self._output, len(refused), self._named(refused), asked.note)

    def _named(self, digests: Collection[int]) -> tuple[tuple[int, str], ...]:
        if not digests:
            return ()
        found = self._asked.find(lambda custom_id: id_digest(custom_id) in digests)
        return tuple(itertools.islice(found, NAMED))

    def change(self, ids: FinishedIds, files: Sequence[LockedFile]) -> InputChange | None:
        """Return what :meth:`find` has found; None if there is no difference."""
        if self._gone:
            self._gone.difference_update(map(id_digest, self._asked.other_names()))
        found = InputChange(
            added=self._added,
            sent_again=len(ids.aside),
            kept=len(self._kept),
            requests=self._named({*ids.aside, *self._kept} if self._kept else ids.aside),
            gone=len(self._gone),
            gone_ids=tuple(itertools.islice(_ids_among(files, self._gone), NAMED)),
        )
        return None if found == InputChange() else found

    # --- writing ---

    def write_records(self, ids: FinishedIds, disk: Disk) -> None:
        """Write the records, unless they are there.

        The results of changed requests that are sent again must be out of the output by now.

        Args:
            ids: the finished requests.
            disk: the object that writes.

        Raises:
            OSError: they cannot be written. The earlier ones are still there.
        """
        asked, earlier = self._asked, self._earlier
        if earlier is not None and self._is_same and not earlier.kept:
            return
        buckets: Iterable[bytes | bytearray] = asked.records.buckets
        if earlier is not None:

            def has_result(key: bytes) -> bool:
                return ids.has_result(_digest(key))

            buckets = (
                merge_buckets(old, new, has_result)
                for old, new in zip(earlier.buckets(), asked.records.buckets, strict=True)
            )
        RecordsFile.write(self._records, asked.fingerprint, len(self._kept), buckets, disk)


def _digest(key: bytes) -> int:
    return int.from_bytes(key, "big")


def _ids_among(files: Sequence[LockedFile], digests: Collection[int]) -> Iterator[str]:
    """Yield the ids of results with one of these digests, each once."""
    left = set(digests)
    for file in files if left else ():
        with file.path.open("rb", buffering=1 << 18) as lines:
            for line in lines:
                custom_id = id_of_line(line)
                if custom_id is not None and (digest := id_digest(custom_id)) in left:
                    left.remove(digest)
                    yield custom_id
                    if not left:
                        return
