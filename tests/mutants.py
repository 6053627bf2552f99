"""The mutation test: which faults, planted by mutmut one at a time, do the quick tests miss?

    python tests/mutants.py [--group budget] [--every 7] [--minimum 85]

It runs mutmut over the files of each group (`[tool.mutmut]` in pyproject.toml says with which
tests), prints how many mutants were killed, writes the difference that each survivor makes to
build/mutants.txt, and ends with 1 where a group is below the minimum. docs/mutants.md says why
those that survive do.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import get_mutant_name

GROUPS = {
    "engine": (
        "nursery_engine.py",
        "_batch.py",
        "_feed.py",
        "_call_loop.py",
        "_agenda*.py",
        "_handle.py",
        "_waiting.py",
        "_timers.py",
    ),
    "bridge": ("bridge.py", "_guest.py", "_slot_host.py", "_uninterrupted.py"),
    "failures": ("failures/*.py",),
    "budget": ("control/budget.py",),
    "journal": ("_journal_writer.py",),
}

# One that hangs is killed by the test that hangs: pytest's faulthandler ends the process.
KILLED = ("killed", "timeout", "segfault")

# A mutant may fill lists without end.
BYTES_OF_MEMORY = 12 * 2**30


def mutants_of(group: str, every: int) -> dict[str, Path]:
    """Return the file of each mutant of a group, or of every n-th in the order of the source."""
    names: dict[str, Path] = {}
    for path in sorted(walk_mutatable_files()):
        inside = path.relative_to("parallel_core").as_posix()
        if any(fnmatch(inside, pattern) for pattern in GROUPS[group]):
            mutated = mutate_file_contents(str(path), path.read_text())
            names.update((get_mutant_name(path, name), path) for name in mutated.mutant_names)
    return dict(list(names.items())[::every])


def run(names: list[str], processes: int) -> None:
    environment = {"PARALLEL_CORE_HOSTS": "usual", "HYPOTHESIS_PROFILE": "few"} | os.environ
    mutmut = [sys.executable, "-m", "mutmut", "run", "--max-children", str(processes)]
    resource.setrlimit(resource.RLIMIT_AS, (BYTES_OF_MEMORY, BYTES_OF_MEMORY))
    subprocess.run([*mutmut, *names], env=environment, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--group", choices=GROUPS, action="append", help="only these")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th mutant")
    parser.add_argument("--minimum", type=float, default=85, help="percent that must be killed")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--report", action="store_true", help="run nothing: read the last results")
    arguments = parser.parse_args()
    groups = arguments.group or list(GROUPS)
    mutants = {group: mutants_of(group, arguments.every) for group in groups}
    if not arguments.report:
        run([name for names in mutants.values() for name in names], arguments.processes)

    data: dict[Path, SourceFileMutationData] = {}
    for names in mutants.values():
        for path in names.values():
            if path not in data:
                data[path] = SourceFileMutationData(path=path)
                data[path].load()
    below = False
    survivors: list[tuple[str, str]] = []
    print(f"{'group':10}{'mutants':>9}{'killed':>9}{'missed':>9}{'percent':>9}")
    for group, names in mutants.items():
        status = {
            name: status_by_exit_code[data[path].exit_code_by_key[name]]
            for name, path in names.items()
        }
        missed = [name for name in names if status[name] not in KILLED]
        survivors += [(name, status[name]) for name in missed]
        killed = len(names) - len(missed)
        percent = 100 * killed / len(names)
        below |= percent < arguments.minimum
        print(f"{group:10}{len(names):>9}{killed:>9}{len(missed):>9}{percent:>9.1f}")
    report = Path("build/mutants.txt")
    report.parent.mkdir(exist_ok=True)
    paths = {name: path for names in mutants.values() for name, path in names.items()}
    report.write_text(
        "\n".join(
            f"# {name}: {status}\n{get_diff_for_mutant(name, path=paths[name])}"
            for name, status in survivors
        )
    )
    print(f"{len(survivors)} were missed: {report}")
    return int(below)


if __name__ == "__main__":
    sys.exit(main())
