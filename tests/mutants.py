"""The mutation test: which faults, planted by mutmut one at a time, do the quick tests miss?

    python tests/mutants.py [--group budget] [--every 7] [--minimum 85]

It runs mutmut over the files of each group (`[tool.mutmut]` in pyproject.toml says with which
tests), prints how many mutants were killed, writes the difference that each survivor makes to
build/mutants.txt, and ends with 1 where a group is below the minimum. docs/mutants.md says why
those that survive do.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import os
import resource
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mutmut.__main__ import create_mutants
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import copy_also_copy_files, copy_src_dir, walk_mutatable_files

GROUPS = {
    "engine": (
        "nursery_engine.py",
        "engine/[!gu]*.py",
        "router_hosts/call_loop.py",
    ),
    "bridge": (
        "bridge.py",
        "engine/asyncio_backend.py",
        "engine/asyncio_scopes.py",
        "engine/guest.py",
        "uninterrupted.py",
    ),
    "failures": ("failures/*.py",),
    "budget": ("control/budget.py",),
    "journal": (
        "journal/writer.py",
        "journal/result_files.py",
        "journal/statistics_file.py",
        "journal/waiting_tasks.py",
    ),
}

FILES: dict[str, Path] = {}
"""The file of each mutant."""

STATISTICS = Path("mutants/mutmut-stats.json")
"""What mutmut knows of the tests: how long they take, and which functions they reach."""

ALL_TESTS = Path("mutants/all-tests.json")

# One that hangs is killed by the test that hangs: pytest's faulthandler ends the process.
KILLED = ("killed", "timeout", "segfault")

# A mutant may fill lists without end.
BYTES_OF_MEMORY = 12 * 2**30


def mutants_of(group: str, every: int) -> dict[str, str]:
    """Return what is known of each mutant of a group, or of every n-th in the order of the source.

    The mutants must have been made.
    """
    known: dict[str, str] = {}
    for path in sorted(walk_mutatable_files()):
        inside = path.relative_to("parallel_core").as_posix()
        if any(fnmatch(inside, pattern) for pattern in GROUPS[group]):
            data = SourceFileMutationData(path=path)
            data.load()
            for name, exit_code in data.exit_code_by_key.items():
                known[name] = status_by_exit_code[exit_code]
                FILES[name] = path
    return dict(list(known.items())[::every])


def keep_quick_tests(seconds: float) -> None:
    """Leave each function the quickest of its tests that take so many seconds in all.

    A mutant that survives has run them all. What mutmut has found out is kept beside its own file,
    so that other seconds can be chosen later.
    """
    found: dict[str, Any] = json.loads(STATISTICS.read_text())
    duration: dict[str, float] = found["duration_by_test"]
    known: dict[str, list[str]] = json.loads(ALL_TESTS.read_text()) if ALL_TESTS.exists() else {}
    tests_of: dict[str, list[str]] = found["tests_by_mangled_function_name"]
    for function, tests in tests_of.items():
        known[function] = sorted(
            {test for test in (*tests, *known.get(function, ())) if test in duration},
            key=lambda test: (duration[test], test),
        )
    ALL_TESTS.write_text(json.dumps(known))
    for function, tests in known.items():
        taken = list(itertools.accumulate(duration[test] for test in tests))
        tests_of[function] = tests[: max(20, bisect.bisect(taken, seconds))]
    STATISTICS.write_text(json.dumps(found))


def run(names: list[str], processes: int, seconds: float) -> None:
    """Run mutants, and before that, where it has not been found out, each test once."""
    environment = {"PARALLEL_CORE_HOSTS": "usual", "HYPOTHESIS_PROFILE": "few"} | os.environ
    mutmut = [sys.executable, "-m", "mutmut", "run", "--max-children", str(processes)]
    resource.setrlimit(resource.RLIMIT_AS, (BYTES_OF_MEMORY, BYTES_OF_MEMORY))
    if not STATISTICS.exists():
        subprocess.run([*mutmut, names[0]], env=environment, check=True)
    keep_quick_tests(seconds)
    subprocess.run([*mutmut, *names], env=environment, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--group", choices=GROUPS, action="append", help="only these")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th mutant")
    parser.add_argument(
        "--seconds", type=float, default=3, help="of a function's tests, the quickest"
    )
    parser.add_argument("--minimum", type=float, default=85, help="percent that must be killed")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--survivors", action="store_true", help="only those not killed before")
    parser.add_argument("--report", action="store_true", help="run nothing: read the last results")
    arguments = parser.parse_args()
    groups = arguments.group or list(GROUPS)
    copy_src_dir()
    copy_also_copy_files()
    create_mutants(arguments.processes)
    mutants = {group: mutants_of(group, arguments.every) for group in groups}
    if not arguments.report:
        run(
            [
                name
                for known in mutants.values()
                for name, status in known.items()
                if not (arguments.survivors and status in KILLED)
            ],
            arguments.processes,
            arguments.seconds,
        )
        mutants = {group: mutants_of(group, arguments.every) for group in groups}

    below = False
    survivors: list[tuple[str, str]] = []
    print(f"{'group':10}{'mutants':>9}{'run':>9}{'killed':>9}{'missed':>9}{'percent':>9}")
    for group, known in mutants.items():
        ran = {name: status for name, status in known.items() if status != "not checked"}
        missed = [(name, status) for name, status in ran.items() if status not in KILLED]
        survivors += missed
        killed = len(ran) - len(missed)
        percent = 100 * killed / len(ran) if ran else 0.0
        below |= percent < arguments.minimum
        counts = f"{len(known):>9}{len(ran):>9}{killed:>9}{len(missed):>9}"
        print(f"{group:10}{counts}{percent:>9.1f}")
    report = Path("build/mutants.txt")
    report.parent.mkdir(exist_ok=True)
    report.write_text(
        "\n".join(
            f"# {name}: {status}\n{get_diff_for_mutant(name, path=FILES[name])}"
            for name, status in survivors
        )
    )
    print(f"{len(survivors)} were missed: {report}")
    return int(below)


if __name__ == "__main__":
    sys.exit(main())
