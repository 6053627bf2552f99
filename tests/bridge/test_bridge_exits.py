"""Ctrl-C, and exits raised by calls and sources, in processes of their own."""

from __future__ import annotations

import signal

import pytest

from helpers.bridge_processes import FORMS, Scripts, finish, interrupt_at

# --- Ctrl-C ---


@pytest.mark.parametrize("form", FORMS)
def test_ctrl_c_ends_a_batch_in_order(scripts: Scripts, loop: str, form: str) -> None:
    process = scripts.start("ctrl_c", "once", loop, form)
    interrupt_at(process, "ready")
    code, out, err = finish(process)
    assert code == -signal.SIGINT, err
    assert out.splitlines() == ["ready", "interrupted [0, 1, 2, 3] False"]
    assert err.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("form", FORMS)
def test_ctrl_c_twice_cuts_the_cleanup_of_calls_short(
    scripts: Scripts, loop: str, form: str
) -> None:
    process = scripts.start("ctrl_c", "twice", loop, form)
    interrupt_at(process, "ready")
    interrupt_at(process, "cleaning")
    if form in ("list", "block"):
        code, out, err = finish(process)
        assert out.splitlines() == ["ready", "cleaning", "interrupted [0, 1, 2, 3] False"]
    else:
        # The second one breaks off the shutdown of asyncio.run itself, which closes the loop with
        # tasks in it and says so.
        code, out, err = finish(process, noise=("TrioInternalError", "never awaited"))
        assert out.startswith("ready\ncleaning\ninterrupted")
    assert code == -signal.SIGINT, err


def test_ctrl_c_in_a_busy_batch(scripts: Scripts, loop: str) -> None:
    """It comes at any time: in a call, in the engine, or in a step of trio."""
    process = scripts.start("ctrl_c", "in_a_busy_batch", loop)
    interrupt_at(process, "ready")
    code, out, err = finish(process)
    assert code == -signal.SIGINT, err
    assert out.splitlines() == ["ready", "interrupted [] False"]


def test_ctrl_c_between_short_batches(scripts: Scripts, loop: str) -> None:
    """It comes while guest runs begin and end, hundreds of times a second."""
    process = scripts.start("ctrl_c", "between_short_batches", loop)
    interrupt_at(process, "ready")
    code, out, err = finish(process)
    assert code == -signal.SIGINT, err
    assert out.splitlines() == ["ready", "interrupted [] False"]


def test_ctrl_c_on_a_loop_without_a_runner(scripts: Scripts, loop: str) -> None:
    """It is raised out of the loop. The batch goes on when the loop does."""
    process = scripts.start("ctrl_c", "on_a_loop_without_a_runner", loop)
    interrupt_at(process, "ready")
    code, out, err = finish(process)
    assert code == 0, err
    assert out.splitlines() == ["ready", "interrupted []", "cancelled [0, 1, 2, 3] False"]
    assert not err


def test_sigint_handler_of_the_application_is_left_alone(scripts: Scripts, loop: str) -> None:
    scripts.check("ctrl_c", "with_a_handler_of_the_application", loop)


def test_ctrl_c_in_parallel_completions(scripts: Scripts) -> None:
    process = scripts.start("ctrl_c", "in_parallel_completions")
    interrupt_at(process, "ready")
    code, out, err = finish(process)
    assert code == -signal.SIGINT, err
    assert out.splitlines() == ["ready", "['m0', 'm1', 'm2', 'm3'] ['MainThread']"]


# --- KeyboardInterrupt and SystemExit raised by calls ---

KINDS = {"KeyboardInterrupt": -signal.SIGINT, "SystemExit": 7}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exit_raised_in_a_call_leaves_the_loop_and_the_process(
    scripts: Scripts, loop: str, form: str, kind: str
) -> None:
    code, out, err = finish(scripts.start("exits", "of_a_call", loop, kind, form))
    assert out.strip() == f"{kind} [0, 1, 2] False", err
    assert code == KINDS[kind], err


@pytest.mark.parametrize("where", ["of_a_sync_source", "of_an_async_source"])
def test_an_exit_raised_by_a_source(scripts: Scripts, loop: str, where: str) -> None:
    code, out, err = finish(scripts.start("exits", where, loop, "SystemExit"))
    # The calls of items that a sync source gave just before may not have begun.
    begun = ["[0, 1, 2]"] if where == "of_an_async_source" else ["[0, 1, 2]", "[]"]
    assert out.strip() in [f"SystemExit {calls} False" for calls in begun], err
    assert code == 7


@pytest.mark.parametrize("kind", KINDS)
def test_an_exit_raised_in_a_call_of_parallel_completions(scripts: Scripts, kind: str) -> None:
    process = scripts.start("exits", "of_a_call_of_parallel_completions", "asyncio", kind)
    code, out, err = finish(process)
    assert out.strip() == f"{kind} ['m0', 'm1', 'm2']", err
    assert code == KINDS[kind], err
