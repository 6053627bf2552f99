"""Every snippet of the README and the docs runs as it stands.

Most run in forked processes, which do not import litellm again. The first one of the README runs as
a reader would run it, too.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from helpers.snippets import (
    REPOSITORY,
    Run,
    exit_code,
    needs_ray,
    snippets,
    write_files,
    written,
)
from helpers.thorough import thorough_but

# What a reader tries first. The others take seconds, and tests of what they show are quicker.
DAILY = re.compile(r"README|start/")


def params(language: str) -> list[Any]:
    names = [name for name, text in snippets(language).items() if not needs_ray(text)]
    return thorough_but(list(filter(DAILY.match, names)), names)


def check_python(snippet: str, run: Run, base_url: str, folder: Path, *, afresh: bool) -> None:
    done = run(["python", str(written(snippet, folder, base_url))], folder, afresh=afresh)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stdout
    assert "parallel_core" not in done.stderr, done.stderr


@pytest.mark.parametrize("name", params("python"))
def test_a_python_snippet(name: str, run: Run, environment: dict[str, str], tmp_path: Path) -> None:
    snippet = snippets("python")[name]
    check_python(snippet, run, environment["OPENAI_BASE_URL"], tmp_path, afresh=False)


@pytest.mark.thorough
def test_the_first_python_snippet_afresh(
    run: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    snippet = snippets("python")["README.md-1"]
    check_python(snippet, run, environment["OPENAI_BASE_URL"], tmp_path, afresh=True)


@pytest.mark.parametrize("name", params("console"))
def test_a_console_snippet(name: str, run: Run, tmp_path: Path) -> None:
    check_console(name, run, tmp_path, afresh=False)


@pytest.mark.thorough
def test_the_first_command_afresh(run: Run, tmp_path: Path) -> None:
    check_console("README.md-1", run, tmp_path, afresh=True)


def check_console(name: str, run: Run, folder: Path, *, afresh: bool) -> None:
    """Run the commands of a snippet. All end with 0, but for the last one of some."""
    (folder / "examples").symlink_to(REPOSITORY / "examples")
    write_files(name, folder)
    lines = snippets("console")[name].splitlines()
    for number, line in enumerate(lines, 1):
        assert line.startswith("$ ")
        command = shlex.split(line.removeprefix("$ "), comments=True)
        if command[0] == "make":  # what these do is run by CI itself
            makefile = (REPOSITORY / "Makefile").read_text()
            assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE)
            assert not afresh
            continue
        done = run(command, folder, afresh=afresh)
        afresh = False
        expected = exit_code(name) if number == len(lines) else 0
        assert done.returncode == expected, done.stderr
        if command[1] == "run" and not expected and not {"--json", "--validate"} & set(command):
            assert re.search(r"^failed +0$", done.stdout, re.MULTILINE)
