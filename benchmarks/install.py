"""Installs the peers, one by one: ``python -m benchmarks.install``.

A peer that does not install here is named, and the benchmarks report it as not installed. All that
stands in the extra ``bench`` is tried.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement


def peers() -> Iterator[Requirement]:
    """The requirements of the extra, whatever Python they are for."""
    for line in metadata.requires("parallel_core") or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is not None and "bench" in str(marker):
            yield requirement


def is_for_this_python(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": "bench"})


def install(requirement: Requirement) -> bool:
    requirement.marker = None
    options = ["--quiet", "--disable-pip-version-check", "-c", "constraints.txt"]
    command = [sys.executable, "-m", "pip", "install", *options, str(requirement)]
    return subprocess.run(command).returncode == 0


def main() -> None:
    for requirement in peers():
        if not is_for_this_python(requirement):
            print(f"not for this Python: {requirement}")
        elif not install(requirement):
            print(f"does not install here: {requirement}")


if __name__ == "__main__":
    main()
