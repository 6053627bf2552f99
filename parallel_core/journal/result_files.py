"""The output and error file of a run, written in whole groups, and what happens if that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from parallel_core.errors import JournalError

from .files import FileChangedError, LockedFile
from .opening import OpenedJournal
from .scan import drop_superseded
from .system_errors import reason

logger = logging.getLogger("parallel_core")


class JournalEntry(msgspec.Struct, frozen=True):
    """A finished request, for the journal.

    Attributes:
        custom_id: id of the request.
        line: line for the output file, without the newline. It contains this ``custom_id``.
        ok: True if there is an answer. A failure goes to the error file, if there is one.
        statistics: line for the statistics file, without the newline.
    """

    custom_id: str
    line: bytes
    ok: bool
    statistics: bytes | None = None

    def __repr__(self) -> str:
        """Leave out the answer, because a repr ends up in logs."""
        return f"<JournalEntry {self.custom_id!r} ok={self.ok} {len(self.line)} bytes>"


class ResultFiles:
    """The files that take the results of a run. The thread of the journal alone writes to them.

    ``on_disk`` and ``on_failure`` are called in that thread.

    Attributes:
        files: the output, and the error file if there is one.
        succeeded: number of answers on disk.
        failed: number of failures on disk.
        failure: why results can no longer be written; None while they can.
    """

    def __init__(
        self,
        opened: OpenedJournal,
        *,
        on_disk: Callable[[int, int], object] | None,
        on_failure: Callable[[JournalError], object] | None,
    ) -> None:
        self.files = opened.files
        self.succeeded = opened.opening.succeeded
        self.failed = opened.opening.failed
        self.failure: str | None = None
        self._failure_cause: Exception | None = None
        self._saved = 0  # results that went to the rescue file
        self._output = opened.files[0]
        self._errors = opened.files[1] if len(opened.files) > 1 else None
        self._ids = opened.ids
        self._with_failures = opened.with_failures
        self._manifest = opened.manifest
        self._rescue = opened.rescue
        self._current = self._output.path  # the file in use, for error messages
        self._on_disk = on_disk
        self._on_failure = on_failure

    @property
    def takes_statistics(self) -> bool:
        """True if results can be written, or are in the rescue file."""
        return self.failure is None or bool(self._rescue.used)

    def error(self) -> JournalError:
        """Return the failure as a new exception for each caller."""
        error = JournalError(f"{self.failure}; {self._describe_unwritten()}")
        error.__cause__ = self._failure_cause
        return error

    def _describe_unwritten(self) -> str:
        """Describe where the unwritten results are, and what the user must do."""
        saved = self._saved
        results = f"{saved} result{'' if saved == 1 else 's'} of calls that were made"
        if self._rescue.lost:
            where = f", except for those in {self._rescue}" if self._rescue.used else ""
            return f"{results} could not be written anywhere and are lost{where}"
        if self._rescue.by_hand:
            return f"{results} could not be written and are in {self._rescue}: keep them"
        if saved:
            return (
                f"{results} could not be written and are in {self._rescue}. Fix the cause and "
                "start the same run again: it resumes, and takes them from there"
            )
        return "fix the cause and start the same run again: it resumes"

    def commit(self, entries: list[JournalEntry]) -> None:
        """Write and sync a group. After a failure, this one and all later ones are rescued."""
        if self.failure is not None:
            self._save(entries)
            return
        try:
            self._write(entries)
        except Exception as error:  # noqa: BLE001 - save paid results after any error
            self._fail(error, entries)
            return
        answers = sum(entry.ok for entry in entries)
        self.succeeded += answers
        self.failed += len(entries) - answers
        if self._on_disk is not None:
            self._call_back(self._on_disk, self.succeeded, self.failed)

    def _write(self, entries: list[JournalEntry]) -> None:
        elsewhere = self._errors is not None and not all(entry.ok for entry in entries)
        self._current = self._manifest.path
        self._manifest.expect_results(failures=elsewhere)
        for file in self.files:
            self._current = file.path
            file.check()
        written: list[LockedFile] = []
        for file in self.files:
            lines = [entry.line for entry in entries if self._file_of(entry) is file]
            if lines:
                self._current = file.path
                file.write(b"\n".join((*lines, b"")))
                written.append(file)
        for file in written:
            self._current = file.path
            file.sync()
        for file in written:
            file.commit()
        if self._ids.retried:
            for entry in entries:
                self._ids.note_retry(entry.custom_id)

    def drop_superseded(self) -> None:
        """Rewrite the files without failures that have a newer result.

        Nothing may be appended meanwhile.

        Raises:
            OSError: a file cannot be rewritten. No result is lost; the next opening rewrites it.
        """
        if self._ids.superseded:
            for file in self._with_failures:
                self._current = file.path
                file.check()
            drop_superseded(self._with_failures, self._ids.superseded)
            self._ids.superseded.clear()

    def drop_superseded_at_the_end(self) -> None:
        """Call :meth:`drop_superseded` when nothing more is written; a failure is only logged."""
        if self.failure is not None:
            return
        try:
            self.drop_superseded()
            if self._errors is not None and not self._errors.size:
                self._current = self._manifest.path
                self._manifest.forget_failures()
        except OSError as error:
            logger.warning(
                "%s still has failures of requests that have a newer result: it cannot be "
                "rewritten (%s). No result is lost; the next run drops these failures",
                self._current,
                reason(error),
            )

    def _file_of(self, entry: JournalEntry) -> LockedFile:
        return self._output if entry.ok or self._errors is None else self._errors

    def _fail(self, error: Exception, entries: list[JournalEntry]) -> None:
        text = f"{self._current} cannot be written: {reason(error)}"
        if isinstance(error, FileChangedError):
            text += " during the run"
        for file in self.files:
            try:
                if file.removed:
                    text += self._bring_back(file)
                elif not isinstance(error, FileChangedError):
                    file.drop_uncommitted()
            except OSError:
                # The next opening cuts it.
                logger.warning("%s could not be cut to its last whole line", file.path)
        self._save(entries)
        self._failure_cause = error
        self.failure = text
        if self._on_failure is not None:
            self._call_back(self._on_failure, self.error())

    def _save(self, entries: list[JournalEntry]) -> None:
        self._rescue.write(entry.line + b"\n" for entry in entries)
        self._saved += len(entries)

    def _bring_back(self, file: LockedFile) -> str:
        """Restore a removed file from its open descriptor, and describe where its contents are."""
        try:
            file.bring_back()
        except OSError:
            self._rescue.write(file.blocks())
            return f"; its contents are in {self._rescue}"
        return "; it has been put back"

    def _call_back(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - a user's bug must not stop the writing
            logger.warning("a callback of the journal failed: %s", type(error).__qualname__)
