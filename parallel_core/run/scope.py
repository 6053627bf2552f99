"""The part of the input that a run must finish, and what earlier runs finished of it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from parallel_core.failures import FINAL
from parallel_core.files import InputFile, InputProblem, InputRequest, InputSummary
from parallel_core.journal import Journal

from .selection import RunSelection, SelectedPart


class RunScope:
    """The part of the input that a run must finish: its requests and, on request, invalid lines.

    With a selection, this reads the input to count what it has. ``limit`` then counts selected
    requests.

    Raises:
        InputFileError: the selection names a request that the input does not have.
    """

    def __init__(
        self,
        source: InputFile,
        summary: InputSummary,
        limit: int | None,
        *,
        with_problems: bool,
        selection: RunSelection | None = None,
    ) -> None:
        self.limit = limit
        self._source = source
        self._selection = selection
        self._with_problems = with_problems and summary.bad_lines > 0
        self.named_by_line = summary.named_by_line
        if selection is None:
            part = SelectedPart(summary.requests, summary.bad_lines)
        else:
            part = selection.part_of(source, problem_id if self._with_problems else None)
        self.bad_lines = part.bad_lines if self._with_problems else 0
        self.total = part.requests if limit is None else min(limit, part.requests)
        self.total += self.bad_lines

    @property
    def is_whole(self) -> bool:
        """True if it is the whole input."""
        return self.limit is None and self._selection is None

    def problems(self) -> Iterator[InputProblem]:
        """Return the invalid lines that must be written as failures."""
        if not self.bad_lines:
            return iter(())
        selection, problems = self._selection, self._source.problems()
        if selection is None:
            return problems
        return (problem for problem in problems if problem_id(problem) in selection)

    def requests(self, finished: Callable[[str], bool] | None = None) -> Iterator[InputRequest]:
        """Return the requests that are not finished."""
        if self.limit is None:
            skipped = self._skipped(finished)
            return self._source.requests() if skipped is None else self._source.requests(skipped)
        skipped = self._skipped(None)
        found = self._source.requests() if skipped is None else self._source.requests(skipped)
        first = itertools.islice(found, self.limit)
        return (request for request in first if finished is None or not finished(request.custom_id))

    def _skipped(self, finished: Callable[[str], bool] | None) -> Callable[[str], bool] | None:
        """Return the function that says which requests are finished or not selected."""
        selection = self._selection
        if selection is None:
            return finished
        if finished is None:
            return lambda custom_id: custom_id not in selection
        return lambda custom_id: custom_id not in selection or finished(custom_id)

    def names(self) -> Iterator[str]:
        """Return the output ids of all requests and invalid lines, in any order."""
        selection = self._selection
        names: Iterator[str]
        if self.limit is not None:
            names = (request.custom_id for request in self.requests())
        elif selection is None:
            names = self._source.names()
        else:
            names = (name for name in self._source.names() if name in selection)
        return itertools.chain(names, map(problem_id, self.problems()))

    def ids(self) -> Iterator[str]:
        """Return the output ids of the whole input, in input order.

        The output may also have results of requests that are not in scope.
        """
        requests = ((request.line, request.custom_id) for request in self._source.requests())
        problems = self._source.problems() if self._with_problems else iter(())
        named = ((problem.line, problem_id(problem)) for problem in problems)
        return (custom_id for _, custom_id in heapq.merge(requests, named))


def problem_id(problem: InputProblem) -> str:
    """Return the output id of an invalid line."""
    return problem.custom_id or str(problem.line)


class EarlierResults(NamedTuple):
    """Numbers of requests in scope, by what earlier runs have done about them.

    Attributes:
        succeeded: requests that have an answer.
        failed: requests that failed and are not sent again.
        final: those of ``failed`` that would fail again.
        retried: requests that failed and are sent again.
        others: results in the output whose requests are not in the input.
    """

    succeeded: int = 0
    failed: int = 0
    final: int = 0
    retried: int = 0
    others: int = 0

    @classmethod
    def of(cls, journal: Journal, scope: RunScope) -> EarlierResults:
        """Count the results of a journal that are in scope.

        With a limit or a selection, or after a change of the input, the output also has results of
        other requests.
        """
        found = journal.opening
        if not found.resumed:
            return cls()
        succeeded = failed = final = retried = others = 0
        for name in scope.names():
            if journal.has_answer(name):
                succeeded += 1
            elif journal.is_finished(name):
                failed += 1
                final += journal.failure_kind(name) in FINAL
            elif journal.is_retried(name):
                retried += 1
        if scope.is_whole:
            in_all = found.succeeded + found.failed + found.retried
            others = in_all - succeeded - failed - retried
        return cls(succeeded, failed, final, retried, others)
