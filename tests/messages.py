"""Write the catalogue of errors, tests/project/messages.txt: ``make messages``.

It runs the tests, notes every error that the package makes in them, and keeps one example for each
place in the source. An example that still fits stays as it is. Read the difference: does each text
say what is wrong, where, and what to do?
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.messages import CATALOGUE, Met, catalogue, templates, write_catalogue

HOOK = Path(__file__).with_name("messages_hook")


def met_in_tests(options: list[str]) -> list[Met]:
    """The errors that the package made in the tests."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes.jsonl"
        path = os.pathsep.join([str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])])
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
            env={**os.environ, "PYTHONPATH": path, "PARALLEL_CORE_MESSAGES": str(notes)},
            check=False,
        )
        return [Met(*json.loads(line)) for line in notes.read_text().splitlines()]


def as_everywhere(met: Met) -> Met:
    """The error without what differs from machine to machine."""
    text = re.sub(
        r"/\S*?/(?:pytest-of-\w+/)?(?:popen-\w+/)?[\w.-]+_?\w*\d+/(?=[\w.])", "/tmp/", met.text
    )
    text = re.sub(r"0x[0-9a-f]{6,}", "0x…", text)
    return Met(met.file, met.kind, text)


def main() -> None:
    """Run the tests with these options of pytest, and write the catalogue."""
    before = catalogue() if CATALOGUE.exists() else []
    # Short texts first, and always in the same order.
    found = sorted(
        set(map(as_everywhere, met_in_tests(sys.argv[1:]))),
        key=lambda one: (len(one.text), one.text),
    )
    kept: list[Met] = []
    unmet = []
    for template in templates():
        fitting = [one for one in (*before, *found) if template.fits(one)]
        if not fitting:
            if template.reason_unmet is None:
                unmet.append(template)
        elif not any(template.fits(one) for one in kept):
            kept.append(fitting[0])
    write_catalogue(kept)
    print(f"{len(kept)} errors in {CATALOGUE.name}")
    for template in unmet:
        print(f"not met: {template.file}:{template.line} {template.kind}: {template.pattern}")


if __name__ == "__main__":
    main()
