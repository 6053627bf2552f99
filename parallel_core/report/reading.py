"""Read the files of a run, once or while they grow."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

from parallel_core.journal import (
    BadLineError,
    ResultLine,
    RunPaths,
    RunStatistics,
    find_statistics,
    read_result_lines,
    read_statistics_lines,
)

from .growing_file import GrowingFile
from .model import ReportError, RunReport
from .records import Records
from .summary import lost_answers, report_of, without_statistics

_MOST_READINGS = 3
# Statistics are read ahead for a failure while no more requests than these are remembered.
_MOST_OPEN = 10_000
_MOST_RESULTS = 20_000  # in one step of following a run: a fraction of a second


class RunReader:
    """Reads the statistics and the results of a run: all of them, or what was appended.

    The output decides how a request ended; everything else comes from the statistics. Both are read
    in step, because a request with both is not remembered any more.

    Args:
        paths: the files.

    Attributes:
        is_behind: True if the last call of ``read_more`` has left something to the next one.
    """

    def __init__(self, paths: RunPaths) -> None:
        self.is_behind = False
        self._paths = paths
        self._restart = True
        self._sizes: list[int] | None = None  # of the results, when they were last looked at
        self._settled = False  # True if nothing was appended lately
        self._begin()

    def _begin(self) -> None:
        self._records = Records()
        self._statistics = GrowingFile(find_statistics(self._paths))
        results = (self._paths.output, self._paths.errors)
        self._results = [GrowingFile(path) for path in results if path is not None]
        self._has_statistics = True
        self._holes = dict[Path, int]()

    @property
    def has_results(self) -> bool:
        """True if a request was counted."""
        return bool(self._records.requests)

    def report(self) -> RunReport:
        """Return the report of what was read."""
        return report_of(self._records, text_of(self._paths.output.name), self._remarks())

    def read_all(self) -> None:
        """Read the whole files, up to their present sizes.

        Raises:
            ReportError: a file cannot be read, is not the output of a run, or has no results.
        """
        if not self._paths.output.exists():
            raise ReportError(f"{self._paths.output} does not exist: name the output file of a run")
        self._settled = True
        for _ in range(_MOST_READINGS):
            self._begin()
            # A run writes a result first. So these results include those of these statistics.
            measured = self._size(self._statistics)
            self._read(self._result_sizes(), measured, whole_lines=False)
            if not self._records.contradicted:
                break
        if not self.has_results:
            raise ReportError(f"{self._paths.output} has no results yet")

    def read_more(self, most: int = _MOST_RESULTS) -> bool:
        """Read what was appended; return True if anything was.

        Files that do not exist yet count as empty. If a file was rewritten, everything is read
        again. Results are read one call after they were written, when their statistics have been
        written too. So the first call reads nothing.

        Args:
            most: number of results to read; the next call goes on after them.

        Raises:
            ReportError: a file cannot be read, or is not the output of a run.
        """
        if not self._restart and self._was_rewritten():
            self._restart, self._sizes = True, None
        now = self._result_sizes()
        if self._sizes is None:
            self._sizes = now
            return False
        found, self._restart = self._restart, False
        if found:
            self._begin()
        before = self._places()
        self.is_behind = not self._read(self._sizes, None, whole_lines=True, most=most)
        if not self.is_behind:
            found |= self._places() != before
            was_settled, self._settled = self._settled, not found and self._sizes == now
            self._sizes = now
            return found or was_settled != self._settled
        return True

    def _was_rewritten(self) -> bool:
        """Return True if the files must be read again."""
        if self._records.contradicted or find_statistics(self._paths) != self._statistics.path:
            return True
        return any(self._check(file) for file in (self._statistics, *self._results))

    def _check(self, file: GrowingFile) -> bool:
        try:
            return file.was_rewritten()
        except OSError as error:
            raise _unreadable(file.path, error) from None

    def _result_sizes(self) -> list[int]:
        """Return the sizes of the output and of the error file, in this order.

        A request may have a failure, and after a retry an answer. If this answer is in the output
        at its size, then the failure is in the error file at its later size.
        """
        return [self._size(file) for file in self._results]

    def _size(self, file: GrowingFile) -> int:
        try:
            return file.size()
        except OSError as error:
            raise _unreadable(file.path, error) from None

    def _places(self) -> list[int]:
        return [file.place for file in (self._statistics, *self._results)]

    def _read(
        self,
        sizes: list[int],
        measured: int | None,
        *,
        whole_lines: bool,
        most: int | None = None,
    ) -> bool:
        """Read results up to these sizes, and statistics up to another one, or further if needed.

        The statistics of an answer are read before it is added. Failures are read first: a request
        may have an answer after them. Return False if there are more results than ``most``.
        """
        records = self._records
        with contextlib.closing(self._read_statistics(whole_lines=whole_lines)) as statistics:
            results = self._read_results(sizes, whole_lines=whole_lines)
            for number, result in enumerate(results, 1):
                while not records.has_call(result.custom_id):
                    if not result.ok and records.open_requests > _MOST_OPEN:
                        break  # an invalid line of the input has no call
                    record = next(statistics, None)
                    if record is None:
                        break
                    records.add_statistics(record)
                records.add_line(result)
                if number == most:
                    return False
            while measured is None or self._statistics.place < measured:
                record = next(statistics, None)
                if record is None:
                    break
                records.add_statistics(record)
        return True

    def _read_results(self, sizes: list[int], *, whole_lines: bool) -> Iterator[ResultLine]:
        for file, size in zip(reversed(self._results), reversed(sizes), strict=True):
            yield from self._read_lines(file, size, whole_lines=whole_lines)

    def _read_statistics(self, *, whole_lines: bool) -> Generator[RunStatistics]:
        file = self._statistics
        try:
            self._has_statistics = True
            yield from read_statistics_lines(file.read(whole_lines=whole_lines))
        except FileNotFoundError:
            self._has_statistics = False
        except OSError as error:
            raise _unreadable(file.path, error) from None

    def _read_lines(
        self, file: GrowingFile, size: int, *, whole_lines: bool
    ) -> Iterator[ResultLine]:
        path, first = file.path, file.lines
        try:
            for found in read_result_lines(file.read(size, whole_lines=whole_lines)):
                if found.result is not None:
                    yield found.result
                elif found.what == "torn":
                    file.is_torn = True
                elif found.what == "hole":
                    self._holes[path] = self._holes.get(path, 0) + 1
        except BadLineError as error:
            hint = (
                ""
                if ":" in error.why
                else ": name an output file of parallel-core run, OpenAI's Batch API or vLLM"
            )
            number = first + (error.number or 0)
            raise ReportError(f"line {number} of {path} {error.why}{hint}") from None
        except FileNotFoundError as error:
            if not whole_lines:
                raise _unreadable(path, error) from None
        except OSError as error:
            raise _unreadable(path, error) from None

    def _remarks(self) -> Iterable[str]:
        if not self._has_statistics:
            yield (
                f"There is no {text_of(self._statistics.path.name)} beside the output: latency, "
                "cost and times are not known, and models have the names that the providers use."
            )
        for file in self._results:
            if file.is_torn:
                yield (
                    f"The last line of {text_of(file.path.name)} is incomplete and is not counted: "
                    "the run was interrupted while writing it, or is writing it now."
                )
        for path, holes in self._holes.items():
            yield (
                f"Lines of {text_of(path.name)} that a loss of power damaged: {holes:,}. They are "
                "not counted."
            )
        unmeasured, lost = without_statistics(self._records), lost_answers(self._records)
        if 0 < unmeasured < self._records.requests.total():
            yield (
                f"Results that are not in the statistics: {unmeasured:,}. Their latency, cost "
                "and times are not known."
            )
        if lost and self._settled:
            yield (
                f"Answers that are in the statistics but not in the output: {lost:,}. The output "
                "is incomplete."
            )


def _unreadable(path: Path, error: OSError) -> ReportError:
    if isinstance(error, IsADirectoryError) or path.is_dir():
        return ReportError(f"{path} is a folder: name the output file of a run")
    return ReportError(f"{path} cannot be read: {error.strerror or type(error).__name__}")


def text_of(name: str) -> str:
    """Return a file name as valid text: it may have bytes that are not UTF-8."""
    return name.encode("utf-8", "replace").decode()
