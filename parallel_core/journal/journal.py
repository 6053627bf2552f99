"""The output file of a run as its checkpoint: what is in it is finished, and is never paid twice.

``docs/durability.md`` tells what is promised, and how it is tested.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from types import TracebackType

from parallel_core.errors import JournalError, OrderError
from parallel_core.failures import FailureKind, checked_kinds
from parallel_core.uninterrupted import wait_until

from .files import Disk, LockedFile
from .manifest import ManifestFields
from .opening import JournalOpening, OpenedJournal, ReadOlder, open_journal
from .result_lines import read_result_lines
from .run_statistics import RunPaths
from .scan import id_digest
from .system_errors import reason
from .writer import JournalEntry, JournalWriter

__all__ = ["Journal", "JournalEntry", "JournalOpening"]


class Journal:
    """Keeps results on disk, and knows which requests are finished.

    It is made by :meth:`open`, and is a context manager, of ``with`` and of ``async with``. Its
    methods may be called from any task and thread, of trio and of asyncio.

    Attributes:
        opening: what was found.
    """

    def __init__(self, opened: OpenedJournal, writer: JournalWriter) -> None:
        self.opening = opened.opening
        self._ids = opened.ids
        self._writer = writer
        self._told = False
        # A journal that is forgotten writes what it has all the same, at the end of the program.
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
        read_older: ReadOlder | None = None,
        group_size: int = 32,
        group_seconds: float = 0.1,
        on_disk: Callable[[int, int], object] | None = None,
        on_failure: Callable[[JournalError], object] | None = None,
        disk: Disk | None = None,
    ) -> Journal:
        """Open the files of a run: begin it, or go on with it.

        Blocking: with a million finished requests it takes seconds. A torn line at the end of a
        file is cut, and results in a rescue file are put where they belong.

        Args:
            paths: the files.
            manifest: what the answers depend on. It is kept beside the output, and the run is later
                resumed only if every field is the same. No keys: the file is readable for all.
            retry_failed: requests that have failed count as not finished: with one of these kinds,
                or, if True, with any kind but ``request``. The line of a failure is dropped when
                there is a newer result, at the end or when the journal is opened again.
            allow_changed: resume in spite of differences, or without a manifest. They are noted in
                the manifest before the first result is written.
            read_older: brings the fields of a manifest of the first format (of version 0.1.0) into
                the form of ``manifest``, to compare them; None compares them as they are.
            force_new: begin anew; the files of before are moved aside, to ``out.jsonl.1``.
            group_size: results that are written and synced at once; ``append`` waits while so many
                are not on disk.
            group_seconds: how long a result waits at most for others to be written with it.
            on_disk: called after each group, in the writer's thread, with the numbers of answers
                and of failures that are on disk.
            on_failure: called once, in the writer's thread, when results can no longer be written.
            disk: what writes; for tests.

        Raises:
            JournalInUseError: another run has the file.
            DifferentRunError: the output is of a run with another manifest.
            JournalError: the files cannot be used; the text says why, and what to do.
            TypeError, ValueError: a bad ``retry_failed``, ``group_size`` or ``group_seconds``.
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
            read_older=read_older,
            disk=disk,
        )
        try:
            writer = JournalWriter(
                opened,
                paths.statistics.absolute(),
                group_size=group_size,
                group_seconds=group_seconds,
                on_disk=on_disk,
                on_failure=on_failure,
                disk=disk,
            )
        except BaseException:
            for file in opened.files:
                file.close()
            raise
        return cls(opened, writer)

    @property
    def succeeded(self) -> int:
        """Answers on disk, of this run and of earlier ones."""
        return self._writer.succeeded

    @property
    def failed(self) -> int:
        """Failures on disk, of this run and of earlier ones."""
        return self._writer.failed

    @property
    def failure(self) -> JournalError | None:
        """Why results can no longer be written; ``None`` while they can."""
        return None if self._writer.failure is None else self._writer.error()

    def is_finished(self, custom_id: str) -> bool:
        """Whether the request was finished when the journal was opened."""
        return custom_id in self._ids

    def has_answer(self, custom_id: str) -> bool:
        """Whether the request was finished, and not by a failure, when the journal was opened."""
        return self._ids.has_answer(custom_id)

    def failure_kind(self, custom_id: str) -> FailureKind | None:
        """Return why the request had failed when the journal was opened; None if it had not, or is
        to be sent again."""
        return self._ids.failure_kind(custom_id)

    def is_retried(self, custom_id: str) -> bool:
        """Whether the request has failed, and is to be sent again."""
        return id_digest(custom_id) in self._ids.retried

    async def append(self, entry: JournalEntry) -> None:
        """Hand a result over; it is on disk when ``succeeded`` and ``failed`` count it.

        The result is taken before anything is waited for, also in a scope that is cancelled. Then
        this waits while a whole group is unwritten.

        Raises:
            JournalError: results can no longer be written. This one goes to the rescue file.
            ValueError: the line is empty, or has an end in it.
            RuntimeError: the journal is closed.
        """
        if not entry.line or b"\n" in entry.line or b"\n" in (entry.statistics or b""):
            raise ValueError("a line of a journal is not empty, and has no end of a line in it")
        writer = self._writer
        writer.put(entry)
        if writer.failure is None:
            await writer.wait_for_room()
        if writer.failure is not None:
            raise writer.error()

    def record(self, line: bytes) -> None:
        """Have a line of statistics written that belongs to no result. It may get lost."""
        self._writer.put_record(line)

    def flush(self) -> None:
        """Wait until all that was handed over is on disk, or has failed to be. Blocking.

        Raises:
            JournalError: results can no longer be written.
        """

        def look(_: list[LockedFile]) -> None:
            if self._writer.failure is not None:
                raise self._writer.error()

        self._writer.while_idle(look)

    def rewrite_in_order(self, order: Iterable[str]) -> None:
        """Bring the lines of the output, and of the error file, into the order of these ids.

        Blocking, for the end of a run: no other task may append meanwhile. After a crash there is
        the old file or the new one. Lines whose ids are not among these stay behind the others.

        Raises:
            OrderError: a file cannot be rewritten. It is as it was, with every result.
            JournalError: results could not be written, or a file is gone.
        """

        def rewrite(files: list[LockedFile]) -> None:
            if self._writer.failure is not None:
                raise self._writer.error()
            _rewrite_in_order(files, order, self._writer.drop_superseded)

        self._writer.while_idle(rewrite)

    async def aclose(self) -> None:
        """Write and sync what is left, and close the files; a cancellation waits for that.

        Raises:
            JournalError: results could not be written.
        """
        writer = self._writer
        writer.close_soon()
        try:
            await wait_until(lambda: writer.finished, writer.wait_until_finished)
        finally:
            self._finalizer.detach()
        self._tell_failure()

    def close(self) -> None:
        """The same, blocking."""
        self._writer.close()
        self._finalizer.detach()
        self._tell_failure()

    def _tell_failure(self) -> None:
        if self._writer.failure is not None and not self._told:
            self._told = True
            raise self._writer.error()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # An error on its way out is not hidden by what has most likely led to it.
        self._told = self._told or exc is not None
        self.close()

    async def __aenter__(self) -> Journal:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._told = self._told or exc is not None
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
    others: list[int] = []  # a second line of the same id, or none at all
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
