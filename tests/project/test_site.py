"""The site of the documents has every public name and option, and needs no network."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import griffe
import pytest
import typer

import parallel_core
from helpers.snippets import REPOSITORY
from parallel_core.cli.commands import app
from site_hooks.command_reference import page
from site_hooks.docstrings import MODULES, to_markdown
from site_hooks.local_resources import remote_resources

REFERENCE = REPOSITORY / "docs" / "reference"
# Parts of `parallel_core.report.RunReport`, which its page describes as fields.
PARTS_OF_A_REPORT = {
    "BEGINNING",
    "FailureReport",
    "Histogram",
    "LimitReport",
    "ModelReport",
    "Pause",
    "Percentiles",
    "Timeline",
}


def public_names(module: ModuleType) -> set[str]:
    """Return what a module exports, with the names that it imports when they are asked for."""
    names = {*module.__all__, *({"ParallelRouter"} if module is parallel_core else ())}
    return {f"{module.__name__}.{name}" for name in names if name not in PARTS_OF_A_REPORT}


def documented_names() -> list[str]:
    pages = sorted(REFERENCE.glob("*.md"))
    return [
        name
        for path in pages
        for name in re.findall(r"^::: ([\w.]+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def test_every_public_name_is_in_the_reference_once() -> None:
    names = documented_names()
    assert len(names) == len(set(names))
    assert set(names) == set.union(*map(public_names, MODULES))


@pytest.fixture(scope="module")
def package() -> Any:
    return griffe.load("parallel_core", search_paths=[str(REPOSITORY)])


@pytest.mark.parametrize("name", documented_names())
def test_a_public_name_has_a_docstring(name: str, package: Any) -> None:
    found = package[name.removeprefix("parallel_core.")]
    assert found.has_docstring, f"{name} has no docstring"
    if found.is_class:
        for member in found.members.values():
            if member.is_function and not member.name.startswith("_"):
                assert member.has_docstring, f"{member.path} has no docstring"


def test_docstrings_become_markdown() -> None:
    text = (
        "Send.\n\nFor instance::\n\n    await it(\n        1\n    )\n\n"
        "See :class:`Budget`, :func:`_own`, the page ``docs/reference/index.md``."
    )
    assert to_markdown(text) == (
        "Send.\n\nFor instance:\n\n```python\nawait it(\n    1\n)\n```\n\n"
        "See [`Budget`][parallel_core.Budget], `_own`, the page [Reference](../reference/index.md)."
    )


def test_every_option_is_in_the_reference() -> None:
    text = page()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {"run", "report", "doctor", "demo", "demo-server"} <= set(commands)
    for name, command in commands.items():
        section = text.partition(f"## parallel-core {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                for option in parameter.opts:
                    assert re.search(rf"^`.*{option}\b", section, re.MULTILINE), (name, option)
        assert inspect.cleandoc(command.help).split("\n")[0].split("`")[0] in section


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.html", '<script src="https://example.org/a.js"></script>'),
        ("a.html", '<link rel="stylesheet" href="//example.org/a.css">'),
        ("a.html", "<img alt='' src='http://example.org/a.png'>"),
        ("a.css", "@font-face { src: url(https://example.org/a.woff) }"),
        ("a.css", '@import "https://example.org/a.css";'),
    ],
)
def test_what_a_page_loads_from_the_network_is_found(name: str, text: str, tmp_path: Path) -> None:
    local = '<a href="https://example.org/">a link</a><script src="a.js"></script><img src="a.svg">'
    (tmp_path / "fine.html").write_text(local)
    assert not list(remote_resources(tmp_path))
    (tmp_path / name).write_text(text)
    (found,) = remote_resources(tmp_path)
    assert found.startswith(f"{name}: ")
