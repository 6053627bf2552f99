"""The journal of a run: its output file as a checkpoint, and the ids of what is finished.

The page ``docs/durability.md`` lists the guarantees and describes how they are tested.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from parallel_core.errors import JournalError, OrderError
from parallel_core.failures import FailureKind, checked_kinds
from parallel_core.uninterrupted import wait_until

from .earlier_run import ReadOlder
from .files import Disk, LockedFile
from .input_changes import AskedRequests, OnChanged
from .manifest import ManifestFields
from .opening import OpenedJournal, open_journal
from .result_files import JournalEntry, ResultFiles
from .result_lines import read_result_lines
from .run_paths import RunPaths
from .scan import id_digest
from .system_errors import reason
from .writer import JournalWriter


class Journal:
    """Keeps results on disk and knows which requests are finished.

    Create it with :meth:`open`. It is a context manager for ``with`` and ``async with``. Its
    methods may be called from any thread and any task, in trio and in asyncio.

    Attributes:
        opening: what was found in the files.
    """

    def __init__(self, opened: OpenedJournal, writer: JournalWriter, disk: Disk) -> None:
        self.opening = opened.opening
        self._opened = opened
        self._ids = opened.ids
        self._disk = disk
        self._writer = writer
        self._results = writer.results
        self._failure_raised = False
        # A journal that is never closed still writes its entries, at the end of the program.
        self._finalizer = weakref.finalize(self, writer.close)

    @classmethod
    def open(
        cls,
        paths: RunPaths,
        manifest: ManifestFields,
        *,
        retry_failed: bool | Collection[FailureKind] = False,
        force_new: bool = False,
        allow_changed: bool = False,
        requests: AskedRequests | None = None,
        on_changed: OnChanged = "refuse",
        read_older: ReadOlder | None = None,
        group_size: int = 32,
        group_seconds: float = 0.1,
        on_disk: Callable[[int, int], object] | None = None,
        on_failure: Callable[[JournalError], object] | None = None,
        disk: Disk | None = None,
    ) -> Journal:
        """Open the files of a run, to start or resume it.

        This blocks; with a million finished requests it takes seconds. A torn line at the end of a
        file is cut. Results in a rescue file are moved to the output or error file.

        Args:
            paths: the files.
            manifest: what the answers depend on. It is kept beside the output, and the run can be
                resumed only if every field is the same. Do not put keys in it: every user can read
                the file.
            retry_failed: kinds of failures whose requests count as not finished; True means every
                kind except ``request``. The line of a failure is dropped when there is a newer
                result: at the end, or when the journal is opened again.
            allow_changed: resume in spite of differences, or without a manifest. The differences
                are noted in the manifest before the first result is written.
            requests: the requests of the input whose fingerprint is the field ``input`` of the
                manifest. They are compared with those that the earlier results answer, if that
                field differs. :meth:`begin` must be called before the first result.
            on_changed: what to do about requests that have changed and have an answer: ``"refuse"``
                raises ChangedRequestsError, ``"keep"`` keeps their results, ``"resend"`` moves
                them aside. Failures of changed requests are sent again, except with ``"keep"``.
            read_older: converts the fields of a manifest of the first format (version 0.1.0) to
                the form of ``manifest``, to compare them; None compares them as they are.
            force_new: start over; the existing files are moved aside, to ``out.jsonl.1``.
            group_size: number of results that are written and synced at once; ``append`` waits
                while that many are not on disk.
            group_seconds: longest time that a result waits for others to be written with it.
            on_disk: called after each group, in the writer's thread, with the numbers of answers
                and of failures on disk.
            on_failure: called once, in the writer's thread, when results can no longer be written.
            disk: the object that writes; for tests.

        Raises:
            JournalInUseError: another run has locked the file.
            DifferentRunError: the output belongs to a run with another manifest.
            ChangedRequestsError: requests that have an answer have changed.
            JournalError: the files cannot be used; the message says why, and what to do.
            TypeError, ValueError: invalid ``retry_failed``, ``group_size`` or ``group_seconds``.
        """
        if group_size < 1 or not 0 <= group_seconds < float("inf"):
            raise ValueError("group_size must be at least 1, and group_seconds finite and not < 0")
        kinds = checked_kinds("retry_failed", retry_failed)
        disk = disk or Disk()
        opened = open_journal(
            paths,
            manifest,
            retry_failed=kinds,
            force_new=force_new,
            allow_changed=allow_changed,
            requests=requests,
            on_changed=on_changed,
            read_older=read_older,
            disk=disk,
        )
        try:
            writer = JournalWriter(
                ResultFiles(opened, on_disk=on_disk, on_failure=on_failure),
                paths.statistics.absolute(),
                group_size=group_size,
                group_seconds=group_seconds,
                disk=disk,
            )
        except BaseException:
            for file in opened.files:
                file.close()
            raise
        return cls(opened, writer, disk)

    @property
    def succeeded(self) -> int:
        """Number of answers on disk, from this run and earlier ones."""
        return self._results.succeeded

    @property
    def failed(self) -> int:
        """Number of failures on disk, from this run and earlier ones."""
        return self._results.failed

    @property
    def failure(self) -> JournalError | None:
        """Return the error why results can no longer be written; None while they can."""
        return None if self._results.failure is None else self._results.error()

    def is_finished(self, custom_id: str) -> bool:
        """Return True if the request was finished when the journal was opened."""
        return custom_id in self._ids

    def has_answer(self, custom_id: str) -> bool:
        """Return True if the request had an answer when the journal was opened."""
        return self._ids.has_answer(custom_id)

    def failure_kind(self, custom_id: str) -> FailureKind | None:
        """Return the kind of the request's failure when the journal was opened.

        None if it had not failed, or will be sent again.
        """
        return self._ids.failure_kind(custom_id)

    def is_retried(self, custom_id: str) -> bool:
        """Return True if the request failed and will be sent again."""
        return id_digest(custom_id) in self._ids.retried

    def begin(self) -> None:
        """Write what the run has changed, before its first result: this blocks.

        The results of changed requests that are sent again are moved to ``out.jsonl.1``, and
        ``opening.backups`` names the file. Only a journal that knows its requests needs it.

        Raises:
            JournalError: something cannot be written. Opening the journal again resumes.
        """

        def write(files: list[LockedFile]) -> None:
            if self._results.failure is not None:
                raise self._results.error()
            try:
                for file in files:
                    file.check()
                moved = self._opened.begin(self._disk)
            except OSError as error:
                where: object = error.filename or files[0].path
                raise JournalError(f"{where} cannot be written: {reason(error)}") from error
            backups = (*self.opening.backups, *moved)
            self.opening = msgspec.structs.replace(self.opening, backups=backups)

        self._writer.while_idle(write)

    async def append(self, entry: JournalEntry) -> None:
        """Queue a result. It is on disk when ``succeeded`` or ``failed`` counts it.

        The result is accepted before this waits, even in a cancelled scope. Then this waits while
        a whole group is unwritten.

        Raises:
            JournalError: results can no longer be written. This one goes to the rescue file.
            ValueError: the line is empty or contains a newline.
            RuntimeError: the journal is closed, or :meth:`begin` was not called.
        """
        if not entry.line or b"\n" in entry.line or b"\n" in (entry.statistics or b""):
            raise ValueError("a journal line must not be empty and must not contain a newline")
        if self._opened.changed_input is not None:
            raise RuntimeError("call begin() before the first result")
        self._writer.put(entry)
        if self._results.failure is None:
            await self._writer.wait_for_room()
        if self._results.failure is not None:
            raise self._results.error()

    def record(self, line: bytes) -> None:
        """Queue a line of statistics that belongs to no result. It may get lost."""
        self._writer.put_record(line)

    def flush(self) -> None:
        """Block until everything queued is on disk, or writing it failed.

        Raises:
            JournalError: results can no longer be written.
        """

        def raise_failure(_: list[LockedFile]) -> None:
            if self._results.failure is not None:
                raise self._results.error()

        self._writer.while_idle(raise_failure)

    def rewrite_in_order(self, order: Iterable[str]) -> None:
        """Sort the lines of the output and of the error file into the order of these ids.

        This blocks. Call it at the end of a run: no other task may append at the same time. After
        a crash, either the old or the new file is there. Lines with other ids come last.

        Raises:
            OrderError: a file cannot be rewritten. It is unchanged and has every result.
            JournalError: results could not be written, or a file is gone.
        """

        def rewrite(files: list[LockedFile]) -> None:
            if self._results.failure is not None:
                raise self._results.error()
            _rewrite_in_order(files, order, self._results.drop_superseded)

        self._writer.while_idle(rewrite)

    async def aclose(self) -> None:
        """Write and sync the remaining entries, and close the files. A cancellation waits for that.

        Raises:
            JournalError: results could not be written.
        """
        writer = self._writer
        writer.close_soon()
        try:
            await wait_until(lambda: writer.finished, writer.wait_until_finished)
        finally:
            self._finalizer.detach()
        self._raise_failure()

    def close(self) -> None:
        """Do the same as :meth:`aclose`, but block."""
        self._writer.close()
        self._finalizer.detach()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._results.failure is not None and not self._failure_raised:
            self._failure_raised = True
            raise self._results.error()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Do not replace the error that leaves the block: the failure most likely caused it.
        self._failure_raised = self._failure_raised or exc is not None
        self.close()

    async def __aenter__(self) -> Journal:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._failure_raised = self._failure_raised or exc is not None
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Journal succeeded={self.succeeded} failed={self.failed}>"


def _rewrite_in_order(
    files: list[LockedFile], order: Iterable[str], drop_superseded: Callable[[], None]
) -> None:
    # The order may be a generator over a huge file.
    digests: Iterable[int] = map(id_digest, order)
    if len(files) > 1:
        digests = list(digests)
    for file in files:
        try:
            file.check()
        except OSError as error:
            raise JournalError(f"{file.path} cannot be sorted: {reason(error)}") from error
    file = files[0]
    try:
        drop_superseded()
        for file in files:
            file.replace(_lines_in_order(file.path, digests))
    except OSError as error:
        raise OrderError(str(file.path), reason(error)) from error


def _lines_in_order(path: Path, order: Iterable[int]) -> Iterator[bytes]:
    offsets: dict[int, int] = {}
    others: list[int] = []  # further lines with an id seen before, or lines without a result
    offset = 0
    with path.open("rb") as lines:
        for found in read_result_lines(lines):
            if found.result is not None:
                digest = id_digest(found.result.custom_id)
                if offsets.setdefault(digest, offset) != offset:
                    others.append(offset)
            offset = found.end
        for digest in order:
            start = offsets.pop(digest, None)
            if start is not None:
                lines.seek(start)
                yield lines.readline()
        for start in sorted((*offsets.values(), *others)):
            lines.seek(start)
            yield lines.readline()
