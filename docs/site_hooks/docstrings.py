"""Docstrings as Markdown: roles of Sphinx and names of pages become links, code blocks fences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

import parallel_core
from parallel_core import demo_server, ray_engine, report

DOCS = Path(__file__).resolve().parents[1]
# A page, named by its path in the repository: a reader of the source can open it.
PAGE = re.compile(r"``docs/([\w/-]+\.md)``")
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([\w.]+)`")
CODE_BLOCK = re.compile(
    r"^(?P<indent> *)(?P<text>.*?)::\n\n(?P<code>(?:(?P=indent) {4}.*\n|\n)+)", re.MULTILINE
)
# Modules whose names are in the reference.
MODULES = (parallel_core, ray_engine, demo_server, report)
# The functions get the texts of the controls when they are imported. On the site, these stand once.
CONTROLS = "**controls: each control is an argument; see :class:`Controls`."


class MarkdownDocstrings(griffe.Extension):
    """Convert each docstring when its object was read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Convert the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Return the text of a docstring as Markdown."""
    text = text.replace("{controls}", CONTROLS)
    text = PAGE.sub(_page, ROLE.sub(_link, f"{text}\n"))
    return CODE_BLOCK.sub(_fence, text).rstrip("\n")


def _page(name: re.Match[str]) -> str:
    """Link a page by its title, from the folder of the reference."""
    first_line = (DOCS / name[1]).read_text(encoding="utf-8").partition("\n")[0]
    return f"[{first_line.removeprefix('# ')}](../{name[1]})"


def _link(role: re.Match[str]) -> str:
    """Link a public name; any other one is code."""
    path = role[1].removeprefix(f"{parallel_core.__name__}.")
    first = path.partition(".")[0]
    for module in MODULES:
        if first in dir(module) and not hasattr(getattr(module, first), "__path__"):
            return f"[`{path}`][{module.__name__}.{path}]"
    return f"`{role[1]}`"


def _fence(block: re.Match[str]) -> str:
    indent, text = block["indent"], block["text"].rstrip()
    before = f"{indent}{text}:\n\n" if text else ""
    code = block["code"].strip("\n")
    code = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    return f"{before}{indent}```python\n{code}\n{indent}```\n\n"
