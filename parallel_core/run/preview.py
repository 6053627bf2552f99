"""The opening and the outcome of a run that may not send anything."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from parallel_core.failures import FailureKind
from parallel_core.journal import Journal, JournalOpening, RunPaths
from parallel_core.types import RouterParallelRequest, Usage

from .records import RunOpening, RunSummary
from .scope import RunScope
from .threads import in_thread


async def preview(
    open_journal: Callable[[], Journal] | None, scope: RunScope, kinds: Collection[FailureKind]
) -> RunOpening:
    """Return the opening of a run that sends failures of these kinds again, without changing files.

    Without ``open_journal`` the run starts over, and every request is to be sent.
    """
    if open_journal is None:

        def all_of_them() -> Iterator[RouterParallelRequest]:
            return (request.request for request in scope.requests())

        return RunOpening(scope.total, scope.total, JournalOpening(), all_of_them)
    journal = await in_thread(open_journal)
    async with journal:

        def stays_failed(custom_id: str) -> bool:
            kind = journal.failure_kind(custom_id)
            return kind is not None and kind not in kinds

        def is_finished(custom_id: str) -> bool:
            return journal.has_answer(custom_id) or stays_failed(custom_id)

        def to_send() -> Iterator[RouterParallelRequest]:
            return (request.request for request in scope.requests(is_finished))

        def count() -> tuple[int, int]:
            failed = sum(stays_failed(request.custom_id) for request in scope.requests())
            return sum(1 for _ in to_send()), failed

        left, failed = await in_thread(count)
        return RunOpening(
            scope.total,
            left,
            journal.opening,
            to_send,
            named_by_line=scope.named_by_line,
            earlier_failed=scope.bad_lines + failed,
        )


def declined(opening: RunOpening, paths: RunPaths) -> RunSummary:
    """Return the outcome of a run that ``may_send`` has declined."""
    return RunSummary(
        ending="stopped",
        total=opening.total,
        earlier_succeeded=opening.total - opening.left - opening.earlier_failed,
        earlier_failed=opening.earlier_failed,
        succeeded=0,
        failed=0,
        failures=[],
        unfinished=opening.left,
        cut_off=0,
        usage=Usage(),
        elapsed=0.0,
        paths=paths,
    )
