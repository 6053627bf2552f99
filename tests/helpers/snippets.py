"""The snippets of the README and the docs, and what runs them."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Run(Protocol):
    def __call__(
        self, command: Sequence[str], folder: Path = ..., *, afresh: bool = ...
    ) -> Done: ...


def documents() -> dict[str, Path]:
    """Return the README and the pages of the docs, by their names in ``docs/``."""
    docs = REPOSITORY / "docs"
    pages = {path.relative_to(docs).as_posix(): path for path in sorted(docs.rglob("*.md"))}
    return {"README.md": REPOSITORY / "README.md", **pages}


def snippets(language: str) -> dict[str, str]:
    """Return each snippet, by its document and its number there."""
    found: dict[str, str] = {}
    for name, path in documents().items():
        texts = re.findall(
            rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL
        )
        found.update((f"{name}-{number}", text) for number, text in enumerate(texts, 1))
    assert found
    return found


def exit_code(snippet_name: str) -> int:
    """Return the exit code of the last command of a console snippet; a comment above it says it."""
    page, _, number = snippet_name.rpartition("-")
    found = re.findall(
        r"^(?:<!-- exit code (\d+) -->\n)?```console\n", documents()[page].read_text(), re.MULTILINE
    )
    return int(found[int(number) - 1] or 0)


def write_files(snippet_name: str, folder: Path) -> None:
    """Write the files that the page of a snippet shows: blocks with a title are files."""
    path = documents()[snippet_name.rpartition("-")[0]]
    pattern = r"^```\w+ title=\"([\w.]+)\"\n(.*?)^```"
    for name, text in re.findall(pattern, path.read_text(), re.MULTILINE | re.DOTALL):
        (folder / name).write_text(text)


def needs_ray(snippet: str) -> bool:
    return "import ray\n" in snippet or "ray_engine" in snippet


def written(snippet: str, folder: Path, base_url: str) -> Path:
    """A Python snippet as a script, with what a reader has and this machine has not."""
    # example.org stands for a server that the reader has; here no network is needed.
    text = snippet.replace("https://example.org/", base_url)
    # A hundred requests find what a thousand do.
    text = text.replace("range(1000)", "range(100)")
    script = folder / "snippet.py"
    script.write_text(_NOTEBOOK.format(text=text) if _awaits_at_top_level(text) else text)
    return script


# A cell of a notebook, as IPython runs it on its loop.
_NOTEBOOK = """\
import ast
import asyncio

cell = {text!r}
asyncio.run(eval(compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)))
"""


def _awaits_at_top_level(text: str) -> bool:
    code = compile(text, "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return bool(code.co_flags & inspect.CO_COROUTINE)
