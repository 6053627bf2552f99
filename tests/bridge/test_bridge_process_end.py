"""Processes that end while batches run."""

from __future__ import annotations

from helpers.bridge_processes import Scripts, finish


def test_a_process_that_ends_with_batches_left_over(scripts: Scripts, loop: str) -> None:
    scripts.check("process_end", "with_batches_left_over", loop)


def test_a_loop_that_is_never_closed_does_not_keep_the_process_alive(scripts: Scripts) -> None:
    process = scripts.start("process_end", "with_a_loop_that_is_never_closed")
    # What becomes of the loop and its tasks is not ours.
    code, out, err = finish(process, noise=())
    assert code == 0, err
    assert out.strip() == "fine"
