"""The thread that writes a journal in groups and handles disk failures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from parallel_core.engine import Event as EngineEvent
from parallel_core.errors import JournalError
from parallel_core.event_loops import EventLoop, call_soon, current_event_loop, in_trio

from .files import Disk, FileChangedError, LockedFile, open_at_a_new_line
from .opening import OpenedJournal
from .scan import drop_superseded
from .system_errors import reason

T = TypeVar("T")

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


class JournalWriter:
    """Takes entries from any task and writes them in its own thread.

    A group is written when ``group_size`` entries wait, or ``group_seconds`` after the first one
    arrived. ``on_disk`` and ``on_failure`` are called in that thread.
    """

    def __init__(
        self,
        opened: OpenedJournal,
        statistics: Path,
        *,
        group_size: int,
        group_seconds: float,
        on_disk: Callable[[int, int], object] | None,
        on_failure: Callable[[JournalError], object] | None,
        disk: Disk,
    ) -> None:
        self.succeeded = opened.opening.succeeded
        self.failed = opened.opening.failed
        self.saved = 0  # results that went to the rescue file
        self.failure: str | None = None
        self.failure_cause: Exception | None = None
        self.finished = False
        self._output = opened.output
        self._errors = opened.errors
        self._files = opened.files
        self._ids = opened.ids
        self._with_failures = opened.with_failures
        self._manifest = opened.manifest
        self._current = opened.output.path  # the file in use, for error messages
        self._rescue = opened.rescue
        self._statistics = _StatisticsFile(statistics, disk)
        self._group_size = group_size
        self._group_seconds = group_seconds
        self._on_disk = on_disk
        self._on_failure = on_failure
        # Guards all fields below. Its holder may also use the files while nothing is unwritten.
        # The lock is reentrant: garbage collection may close an unused journal in any thread.
        self._changed = threading.Condition(threading.RLock())
        self._entries: list[JournalEntry] = []
        self._records: list[bytes] = []
        self._unwritten = 0
        self._waiting: list[tuple[EventLoop, EngineEvent]] = []
        self._closing = False
        self._write_now = False  # a caller waits for the queued entries: do not wait for more
        self._thread = threading.Thread(target=self._run, name="parallel_core journal", daemon=True)
        self._thread.start()

    def put(self, entry: JournalEntry) -> None:
        """Queue an entry. Raises RuntimeError if the journal is closed."""
        with self._changed:
            if self._closing:
                raise RuntimeError("the journal is closed: append results before closing it")
            self._entries.append(entry)
            self._unwritten += 1
            if len(self._entries) in (1, self._group_size):
                self._changed.notify_all()

    def put_record(self, line: bytes) -> None:
        """Queue a line of statistics."""
        with self._changed:
            if not self._closing:
                self._records.append(line)
                if len(self._records) in (1, self._group_size):
                    self._changed.notify_all()

    async def wait_for_room(self) -> None:
        """Wait until less than a group is unwritten."""
        while self._unwritten >= self._group_size:
            event = self._register(lambda: self._unwritten >= self._group_size)
            if event is not None:
                await event.wait()

    async def wait_until_finished(self) -> None:
        """Wait until the thread has ended after ``close_soon``."""
        while not self.finished:
            event = self._register(lambda: not self.finished)
            if event is not None:
                await event.wait()
        self._thread.join()  # it has nothing left to do

    def _register(self, is_needed: Callable[[], bool]) -> EngineEvent | None:
        """Return an event of the current task's loop that is set after the next group.

        None if there is nothing to wait for.
        """
        event: EngineEvent = trio.Event() if in_trio() else asyncio.Event()
        with self._changed:
            if not is_needed():
                return None
            self._waiting.append((current_event_loop(), event))
        return event

    def close_soon(self) -> None:
        """Make the thread write the remaining entries and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """Make the thread write the remaining entries and end, and wait for it."""
        self.close_soon()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def while_idle(self, function: Callable[[list[LockedFile]], T]) -> T:
        """Call a function with the files when everything queued is written."""
        with self._changed:
            while self._unwritten:
                self._write_now = True
                self._changed.notify_all()
                self._changed.wait()
            if self._closing:
                raise RuntimeError("the journal is closed")
            return function(self._files)

    def error(self) -> JournalError:
        """Return the failure as a new exception for each caller."""
        error = JournalError(f"{self.failure}; {self._describe_unwritten()}")
        error.__cause__ = self.failure_cause
        return error

    def _describe_unwritten(self) -> str:
        """Describe where the unwritten results are, and what the user must do."""
        saved = self.saved
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

    def _run(self) -> None:
        try:
            while self._write_next_group():
                pass
            self._drop_superseded_at_the_end()
        finally:
            for file in self._files:
                with contextlib.suppress(OSError):
                    file.close()
            self._statistics.close()
            with self._changed:
                if not self._closing:  # a bug ended the thread, which prints the traceback
                    self._closing = True
                    self.failure = self.failure or "the thread that writes the journal has ended"
                self._unwritten = 0
                self.finished = True
                self._changed.notify_all()
            self._wake_all()

    def _write_next_group(self) -> bool:
        with self._changed:
            while not (self._entries or self._records or self._closing):
                self._changed.wait()
            self._gather()
            entries, self._entries = self._entries, []
            records, self._records = self._records, []
            if not entries and not records:
                return False
        if entries:
            self._commit(entries)
        if self.failure is None or self._rescue.used:
            lines = [entry.statistics for entry in entries if entry.statistics is not None]
            self._statistics.write(records + lines)
        with self._changed:
            self._unwritten -= len(entries)
            self._changed.notify_all()
        self._wake_all()
        return True

    def _gather(self) -> None:
        deadline = time.monotonic() + self._group_seconds
        while max(len(self._entries), len(self._records)) < self._group_size:
            left = deadline - time.monotonic()
            if left <= 0 or self._closing or self._write_now:
                break
            self._changed.wait(left)
        self._write_now = False

    def _wake_all(self) -> None:
        with self._changed:
            waiting, self._waiting = self._waiting, []
        by_loop: dict[EventLoop, list[EngineEvent]] = {}
        for loop, event in waiting:
            by_loop.setdefault(loop, []).append(event)
        for loop, events in by_loop.items():
            call_soon(loop, _Setting(events))  # a loop that has ended has no waiting task

    def _commit(self, entries: list[JournalEntry]) -> None:
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
        for file in self._files:
            self._current = file.path
            file.check()
        written: list[LockedFile] = []
        for file in self._files:
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

    def _drop_superseded_at_the_end(self) -> None:
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
        for file in self._files:
            try:
                if file.removed:
                    text += self._bring_back(file)
                elif not isinstance(error, FileChangedError):
                    file.drop_uncommitted()
            except OSError:
                # The next opening cuts it.
                logger.warning("%s could not be cut to its last whole line", file.path)
        self._save(entries)
        self.failure_cause = error
        self.failure = text
        if self._on_failure is not None:
            self._call_back(self._on_failure, self.error())

    def _save(self, entries: list[JournalEntry]) -> None:
        self._rescue.write(entry.line + b"\n" for entry in entries)
        self.saved += len(entries)

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


class _Setting:
    """Callable that sets events; it must run in their loop."""

    def __init__(self, events: list[EngineEvent]) -> None:
        self._events = events

    def __call__(self) -> None:
        for event in self._events:
            event.set()


class _StatisticsFile:
    """The statistics file. It is not synced; a failure is logged once and stops nothing else."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._file: int | None = None
        self._given_up = False

    def write(self, lines: list[bytes]) -> None:
        if not lines or self._given_up:
            return
        try:
            if self._file is None:
                self._file = open_at_a_new_line(self._path)
            self._disk.write_all(self._file, b"\n".join((*lines, b"")))
        except OSError as error:
            self._given_up = True
            logger.warning(
                "%s cannot be written (%s): the run continues without statistics",
                self._path,
                reason(error),
            )

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
