"""Results of a run: their lines for the journal, and their counts."""

from __future__ import annotations

from collections import Counter

import msgspec

from parallel_core.config import Redactor
from parallel_core.control import RouterMeter
from parallel_core.files import (
    InputProblem,
    LineFailure,
    call_statistics,
    failure_in,
    problem_line,
    result_line,
    unwritable_line,
)
from parallel_core.journal import CallStatistics, Journal, JournalEntry, statistics_line
from parallel_core.router import add_finish

from .blocked_models import CallOutcome
from .failure_groups import FailureGroups
from .scope import problem_id


class RunResults:
    """Makes the journal entries of a run, and counts its results.

    Attributes:
        failures: the failures of this run.
        finish_reasons: number of answers by finish reason.
        without_text: number of answers with a choice that has nothing in it.
    """

    def __init__(self, journal: Journal, meter: RouterMeter, redactor: Redactor) -> None:
        self.failures = FailureGroups(redactor)
        self.finish_reasons = Counter[str]()
        self.without_text = 0
        self._journal = journal
        self._meter = meter
        self._redactor = redactor
        # Results on disk beyond these counts are from this run.
        self._ok_before = journal.succeeded
        self._failed_before = journal.failed

    @property
    def succeeded(self) -> int:
        """Number of answers of this run on disk."""
        return self._journal.succeeded - self._ok_before

    @property
    def failed(self) -> int:
        """Number of failures of this run on disk."""
        return self._journal.failed - self._failed_before

    def entry_of_problem(self, problem: InputProblem) -> JournalEntry:
        """Count an invalid line as a failure, and return its entry."""
        custom_id = problem_id(problem)
        message = f"{problem.code}: {problem.where}: {problem.message}"
        self.failures.add(custom_id, LineFailure("request", None, problem.code, message))
        return JournalEntry(custom_id, problem_line(problem), ok=False)

    def entry_of(self, outcome: CallOutcome) -> JournalEntry:
        """Count a result, and return its entry."""
        measured, line = self._measured(outcome)
        if measured.ok:
            add_finish(self.finish_reasons, measured.finish_reason)
            self.without_text += measured.without_text
        return JournalEntry(outcome.custom_id, line, measured.ok, statistics_line(measured))

    def _measured(self, outcome: CallOutcome) -> tuple[CallStatistics, bytes]:
        """Return the statistics of a call, and its result line."""
        custom_id, returned, result = outcome
        try:
            usage = result.usage
            if usage is None and result.response is not None:
                usage = self._meter.usage_of(result.request, result.response)
            failure = failure_in(result)
            measured = call_statistics(custom_id, result, usage)
            line = result_line(custom_id, result, self._redactor, returned)
            message = None if failure is None else self.failures.add(custom_id, failure, result)
        except Exception as error:  # noqa: BLE001 - one strange answer must not lose the others
            line, failure = unwritable_line(custom_id, error, returned)
            message = self.failures.add(custom_id, failure)
            measured = CallStatistics(
                custom_id=custom_id,
                model=result.request.model,
                started_at=result.started_at,
                duration=result.duration,
                ok=False,
                error=type(error).__name__,
                failure_kind=failure.kind,
            )
        return msgspec.structs.replace(measured, message=message), line
