"""The part of the input that a run must finish, and what earlier runs finished of it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from parallel_core.failures import FINAL
from parallel_core.files import InputFile, InputProblem, InputRequest, InputSummary
from parallel_core.journal import Journal


class RunScope:
    """The part of the input that a run must finish: its requests and, on request, invalid lines."""

    def __init__(
        self, source: InputFile, summary: InputSummary, limit: int | None, *, with_problems: bool
    ) -> None:
        self.limit = limit
        self._source = source
        self.bad_lines = summary.bad_lines if with_problems else 0
        self.named_by_line = summary.named_by_line
        self.total = summary.requests if limit is None else min(limit, summary.requests)
        self.total += self.bad_lines

    def problems(self) -> Iterator[InputProblem]:
        """Return the invalid lines that must be written as failures."""
        return self._source.problems() if self.bad_lines else iter(())

    def requests(self, finished: Callable[[str], bool] | None = None) -> Iterator[InputRequest]:
        """Return the requests that are not finished."""
        if self.limit is None:
            return self._source.requests() if finished is None else self._source.requests(finished)
        first = itertools.islice(self._source.requests(), self.limit)
        return (request for request in first if finished is None or not finished(request.custom_id))

    def names(self) -> Iterator[str]:
        """Return the output ids of all requests and invalid lines, in any order."""
        names: Iterator[str]
        if self.limit is None:
            names = self._source.names()
        else:
            names = (request.custom_id for request in self.requests())
        return itertools.chain(names, map(problem_id, self.problems()))

    def ids(self) -> Iterator[str]:
        """Return the output ids of all requests and invalid lines, in input order."""
        requests = ((request.line, request.custom_id) for request in self._source.requests())
        problems = ((problem.line, problem_id(problem)) for problem in self.problems())
        return (custom_id for _, custom_id in heapq.merge(requests, problems))


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

        With a limit, or after a change of the input, the output also has results of other requests.
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
        if scope.limit is None:
            in_all = found.succeeded + found.failed + found.retried
            others = in_all - succeeded - failed - retried
        return cls(succeeded, failed, final, retried, others)
