"""Batches in a thread in which trio runs already: trio-asyncio, or somebody else's guest run."""

from __future__ import annotations

from helpers.bridge_processes import Scripts

# --- asyncio code under trio-asyncio ---


def test_batches_in_asyncio_code_under_trio_asyncio(scripts: Scripts) -> None:
    scripts.check("under_trio_asyncio", "several_batches")


def test_many_batches_at_once_under_trio_asyncio(scripts: Scripts) -> None:
    scripts.check("under_trio_asyncio", "many_at_once")


def test_a_trio_scope_around_a_batch_under_trio_asyncio(scripts: Scripts) -> None:
    scripts.check("under_trio_asyncio", "in_a_trio_scope")


def test_an_iterator_dropped_under_trio_asyncio(scripts: Scripts) -> None:
    scripts.check("under_trio_asyncio", "dropped")


# --- somebody else's guest run in the thread ---


def test_batches_beside_a_foreign_guest_run(scripts: Scripts, loop: str) -> None:
    scripts.check("foreign_guest_run", "batches_beside_it", loop)


def test_a_foreign_guest_run_that_ends_under_a_batch(scripts: Scripts, loop: str) -> None:
    scripts.check("foreign_guest_run", "that_ends", loop)


def test_a_foreign_guest_run_that_fails_under_a_batch(scripts: Scripts, loop: str) -> None:
    scripts.check("foreign_guest_run", "that_fails", loop)


def test_an_exit_in_a_call_beside_a_foreign_guest_run(scripts: Scripts, loop: str) -> None:
    scripts.check("foreign_guest_run", "an_exit_in_a_call", loop)
