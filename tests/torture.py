"""Runs of files that are killed, starved of disk and served badly: is each answer there, once?

``python tests/torture.py`` (``make torture``) does it to the command ``parallel-core run``, and
tells in a table what it has cost; it exits with 1 if a promise was broken. With ``--light`` the
calls are made without litellm, as in ``test_run_crash.py``, which takes its scenarios from here.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from helpers.process_trees import still_running, workers_of
from helpers.torture_bench import (
    GROUP,
    NOT_WRITTEN,
    PATIENCE,
    STOPPED,
    Measured,
    NotAllowedError,
    Torture,
    TortureBench,
    small_file_system,
    torture_bench,
    until,
)
from helpers.torture_output import custom_id_of, ids_in, reply_of
from parallel_core.demo_server import Trouble
from parallel_core.ray_engine.messages import largest_block


def killed(torture: Torture) -> Measured:
    """SIGKILL, again and again."""
    began = time.monotonic()
    with torture_bench(torture) as bench:
        kills = 0
        for _kill in range(torture.kills):
            kills += bench.signal_at_a_moment(bench.start(), signal.SIGKILL)
        bench.finish()
        allowed = kills * (torture.concurrency + GROUP)
        return bench.measured("killed", kills=kills, allowed=allowed, began=began)


def workers(torture: Torture) -> Measured:
    """SIGKILL of the run, and of one of its two workers on Ray."""
    torture = dataclasses.replace(torture, workers=2)
    began = time.monotonic()
    # The paths of Ray's sockets must be short.
    with (
        tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder,
        torture_bench(torture) as bench,
    ):
        bench.environment = {
            "HOME": folder,
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        drivers = killed_workers = 0
        processes: list[int] = []
        for _kill in range(torture.kills):
            process = bench.start()
            killed_workers += bench.kill_a_worker_at_a_moment(process)
            processes += workers_of(process.pid)
            drivers += bench.signal_at_a_moment(process, signal.SIGKILL)
        bench.finish()
        for pid in still_running(processes, within=PATIENCE):
            # (Two agents of Ray outlive it for a minute.)
            bench.problems.append(f"a worker has outlived its run: process {pid}")
        if not killed_workers:
            bench.problems.append("no worker was killed")
        # What a worker has in flight, and what waits there.
        waiting = largest_block(torture.workers, torture.concurrency)
        of_a_worker = torture.concurrency + waiting
        allowed = drivers * (torture.workers * of_a_worker + GROUP)
        allowed += killed_workers * of_a_worker
        return bench.measured(
            "workers", kills=drivers + killed_workers, allowed=allowed, began=began
        )


def terminated(torture: Torture) -> Measured:
    """SIGTERM: nothing is cut off, so nothing is paid twice."""
    began = time.monotonic()
    with torture_bench(torture) as bench:
        kills = 0
        for _kill in range(torture.kills):
            process = bench.start()
            kills += bench.signal_at_a_moment(process, signal.SIGTERM)
            # While it starts, the signal may end it as it ends every program.
            if process.returncode not in (0, 130, -signal.SIGTERM):
                bench.problems.append(f"SIGTERM: exit code {process.returncode}: {bench.said()}")
        bench.finish()
        return bench.measured("terminated", kills=kills, allowed=0, began=began)


def badly_served(torture: Torture, *, split: bool = False) -> Measured:
    """A fifth of the answers are failures, and it is killed; failed requests are sent again."""
    began = time.monotonic()
    faults = dict.fromkeys(("rate_limited", "server_error", "reset", "truncated"), 0.05)
    with torture_bench(torture, faults=faults) as bench:
        bench.errors = torture.folder / "errors.jsonl" if split else None
        kills = 0
        for kill in range(torture.kills):
            process = bench.start(retry_failed=kill % 2 == 1)
            kills += bench.signal_at_a_moment(process, signal.SIGKILL)
        bench.finish(retry_failed=True)
        if bench.server.counts()["failed"] < torture.requests // 10:
            bench.problems.append("the server has failed too little")
        if bench.errors is not None and bench.errors.stat().st_size:
            bench.problems.append("there are failures left in the error file")
        allowed = kills * (torture.concurrency + GROUP)
        name = "badly served, split" if split else "badly served"
        return bench.measured(name, kills=kills, allowed=allowed, began=began)


def badly_served_and_split(torture: Torture) -> Measured:
    """The same with a file for the failures."""
    return badly_served(torture, split=True)


def in_trouble(torture: Torture) -> Measured:
    """SIGKILL while the server is overloaded, hangs, goes away or refuses the key.

    The Router is as it comes, with two deployments. The same command resumes, the trouble ends, and
    each request has its answer, without one that has failed.
    """
    kinds: list[Callable[[int], Trouble]] = [
        lambda after: Trouble("away", after=after, seconds=1.0),
        lambda after: Trouble("bad_key", after=after),
        lambda after: Trouble("overloaded", after=after),
        lambda after: Trouble("hang", after=after, share=0.5),
        lambda after: Trouble("unavailable", after=after, share=0.5),
        lambda after: Trouble("gemini_quota", after=after, share=0.5, retry_after=1.0),
        lambda after: Trouble("reset", after=after, share=0.5),
        lambda after: Trouble("quota", after=after),
    ]
    began = time.monotonic()
    with torture_bench(torture) as bench:
        bench.configure(["one", "other"])
        kills = 0
        share = torture.requests // (torture.kills + 1)
        known = set[str]()
        for number in range(torture.kills):
            trouble = kinds[number % len(kinds)](bench.random.randint(1, share))
            failed = bench.server.counts()["failed"]
            bench.server.set_trouble(trouble)
            process = bench.start()
            if trouble.kind in ("bad_key", "quota"):
                if process.wait(PATIENCE) != 1:
                    bench.problems.append(f"{trouble.kind}: exit code {process.returncode}")
            else:
                until(lambda failed=failed: bench.server.counts()["failed"] > failed, process)  # type: ignore[misc]
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(bench.random.uniform(0, 0.3))
                kills += process.poll() is None
                process.kill()
                process.wait(PATIENCE)
            known = _check_so_far(bench, known, trouble.kind)
        bench.server.set_trouble()
        bench.server.go_away(0.5)  # it is not there yet when the last run begins
        bench.finish()
        allowed = kills * (torture.concurrency + GROUP)
        return bench.measured("in trouble", kills=kills, allowed=allowed, began=began)


def _check_so_far(bench: TortureBench, known: set[str], kind: str) -> set[str]:
    """Each request has one answer or none, and none that was there is gone; return their ids."""
    if not bench.output.exists():
        return known
    ids = ids_in(bench.output)
    if len(set(ids)) < len(ids):
        bench.problems.append(f"{kind}: {len(ids) - len(set(ids))} ids are there more than once")
    if lost := known - set(ids):
        bench.problems.append(f"{kind}: {len(lost)} answers are lost")
    lines = bench.output.read_bytes().splitlines(keepends=True)
    results = [json.loads(line) for line in lines if line.endswith(b"\n")]
    if failed := [result for result in results if reply_of(result) is None]:
        bench.problems.append(f"{kind}: {len(failed)} requests have failed: {failed[0]}")
    return set(ids)


def killed_while_sorting(torture: Torture) -> Measured:
    """SIGKILL while the output is brought into the order of the input: nothing is paid for."""
    began = time.monotonic()
    with torture_bench(torture) as bench:
        bench.finish()
        unsorted = bench.output.read_bytes()
        copy = torture.folder / "copy"
        copy.mkdir()
        for path in torture.folder.glob("answers.*"):
            shutil.copy(path, copy)
        bench.finish(sort=True)
        in_order = bench.output.read_bytes()
        if ids_in(bench.output) != [custom_id_of(number) for number in range(torture.requests)]:
            bench.problems.append("it is not in the order of the input")
        kills = 0
        for kill in range(torture.kills):
            for path in copy.iterdir():
                shutil.copy(path, torture.folder)
            if torture.light:
                # From before the first line to after the last one.
                line = kill * torture.requests // max(torture.kills - 1, 1)
                process = bench.start(sort=True, stops_at=line)
                until(lambda: STOPPED in bench.said(), process)
            else:
                process = bench.start(sort=True)
                # What the sorted lines are written to, before it takes the place of the output.
                until(bench.output.with_name(".answers.jsonl.new").exists, process, poll=0.0)
                if kill % 2:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(bench.random.uniform(0.0, 0.01))
            kills += process.poll() is None
            process.kill()
            process.wait(PATIENCE)
            if bench.output.read_bytes() not in (unsorted, in_order):
                bench.problems.append("it is neither sorted nor as it was")
        bench.finish(sort=True)
        if bench.output.read_bytes() != in_order:
            bench.problems.append("it is not sorted in the end")
        return bench.measured("killed while sorting", kills=kills, allowed=0, began=began)


def restarted_server(torture: Torture) -> Measured:
    """The server goes and comes back at the same address, while the run goes on."""
    began = time.monotonic()
    with torture_bench(torture) as bench:
        restarts = 0
        process = bench.start()
        share = torture.requests // (torture.kills + 1)
        for _restart in range(torture.kills):
            wanted = bench.server.accepted + bench.random.randint(1, share)
            until(lambda wanted=wanted: bench.server.accepted >= wanted, process)  # type: ignore[misc]
            restarts += process.poll() is None
            bench.server.restart()
        if process.wait(PATIENCE) not in (0, 1):
            bench.problems.append(f"exit code {process.returncode}: {bench.said()}")
        bench.finish(retry_failed=True)
        # Answers that were on their way to us when the connections were cut.
        allowed = restarts * torture.concurrency
        return bench.measured("restarted server", kills=restarts, allowed=allowed, began=began)


def full_disk(torture: Torture) -> Measured:
    """A file system that is full, then larger, and full once more. Needs to be root."""
    began = time.monotonic()
    folder = torture.folder / "disk"
    output = folder / "answers.jsonl"
    with small_file_system(folder) as resize, torture_bench(torture, output=output) as bench:
        failures = 0
        # Of an output of about 450 bytes a request, and statistics of another 150.
        for size in (200, 200, 400):
            resize(size * torture.requests)
            failures += _run_out_of_disk(bench)
        resize(64_000_000)
        _finish_exactly(bench)
        allowed = failures * torture.concurrency
        return bench.measured("full disk", kills=failures, allowed=allowed, began=began)


def file_too_large(torture: Torture) -> Measured:
    """A limit of the size of files, as a quota: the rescue file still has room."""
    began = time.monotonic()
    with torture_bench(torture) as bench:
        failures = 0
        for limit in (100, 250):
            failures += _run_out_of_disk(bench, limit * torture.requests)
        _finish_exactly(bench)
        allowed = failures * torture.concurrency
        return bench.measured("file too large", kills=failures, allowed=allowed, began=began)


def _rescued(bench: TortureBench) -> list[Path]:
    places = [*bench.output.parent.glob("*.rescue.jsonl")]
    return places + [*bench.torture.folder.glob("*.rescue.jsonl")] * (
        bench.output.parent != bench.torture.folder
    )


def _run_out_of_disk(bench: TortureBench, file_size: int | None = None) -> bool:
    """A run that cannot write all it has; whether it had begun."""
    before = bench.server.accepted
    known = set(ids_in(bench.output))
    known.update(custom_id for place in _rescued(bench) for custom_id in ids_in(place))
    process = bench.start(file_size=file_size)
    code = process.wait(PATIENCE)
    made = bench.server.accepted - before
    said = " ".join(bench.said().split())
    if code not in (NOT_WRITTEN, 2) or (code == 2 and made):
        bench.problems.append(f"a full disk: exit code {code}: {said}")
    kept = set(ids_in(bench.output))
    for place in _rescued(bench):
        kept.update(ids_in(place))
        if made and str(place) not in said:
            bench.problems.append(f"{place.name} is not told: {said}")
    if made and not _rescued(bench):
        bench.problems.append(f"nothing was rescued: {said}")
    if lost := known - kept:
        bench.problems.append(f"{len(lost)} results that were there are lost")
    if made > len(kept - known) + bench.torture.concurrency:
        bench.problems.append(f"{made} calls, of which {len(kept - known)} are kept")
    return made > 0


def _finish_exactly(bench: TortureBench) -> None:
    """With room for all: what was rescued is not sent again."""
    kept = set(ids_in(bench.output))
    kept.update(custom_id for place in _rescued(bench) for custom_id in ids_in(place))
    before = bench.server.accepted
    bench.finish()
    made = bench.server.accepted - before
    if made != bench.torture.requests - len(kept):
        bench.problems.append(f"{made} calls more, though {len(kept)} results were kept")
    if left := _rescued(bench):
        bench.problems.append(f"{left[0].name} is still there")


SCENARIOS: dict[str, Callable[[Torture], Measured]] = {
    "killed": killed,
    "terminated": terminated,
    "killed-while-sorting": killed_while_sorting,
    "badly-served": badly_served,
    "badly-served-and-split": badly_served_and_split,
    "restarted-server": restarted_server,
    "in-trouble": in_trouble,
    "full-disk": full_disk,
    "file-too-large": file_too_large,
    "workers": workers,
}


def _table(rows: list[Measured | str]) -> str:
    head = ("scenario", "kills", "accepted", "paid", "paid twice", "allowed", "seconds", "")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        if isinstance(row, str):
            lines.append((row, *[""] * 6, "skipped: mounting is not allowed"))
            continue
        numbers = (row.kills, row.accepted, row.paid, row.paid_twice, row.allowed)
        verdict = "kept" if row.kept else "BROKEN"
        lines.append((row.scenario, *map(str, numbers), f"{row.seconds:.1f}", verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        f"{line[0]:<{widths[0]}}  "
        + "  ".join(f"{text:>{width}}" for text, width in zip(line[1:-1], widths[1:], strict=False))
        + f"  {line[-1]}"
        for line in lines
    )


def main() -> int:
    """Torture, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=3000, help="of each scenario")
    parser.add_argument("--kills", type=int, default=10, help="of each scenario")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the faults")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="repeat for more")
    parser.add_argument("--light", action="store_true", help="calls without litellm")
    parser.add_argument("--smoke", action="store_true", help="does it run? half a minute of it")
    options = parser.parse_args()
    if options.smoke:
        options.requests, options.kills = 300, 2
        options.scenario = options.scenario or ["killed", "file-too-large"]
    print(f"{options.requests} requests in each scenario, seed {options.seed}", flush=True)
    rows: list[Measured | str] = []
    for name in options.scenario or SCENARIOS:
        with tempfile.TemporaryDirectory(prefix="torture-") as folder:
            torture = Torture(
                folder=Path(folder),
                light=options.light,
                requests=options.requests,
                kills=options.kills,
                seed=options.seed,
                concurrency=options.concurrency,
            )
            try:
                row = SCENARIOS[name](torture)
            except NotAllowedError:
                rows.append(name)
                continue
        rows.append(row)
        print(f"{name}: {row.seconds:.1f} s", *row.problems[:20], sep="\n    ", flush=True)
    print(_table(rows))
    return 0 if all(isinstance(row, str) or row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
