"""The snippets of the README and the docs, and what runs them."""

from __future__ import annotations

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


def snippets(language: str) -> dict[str, str]:
    """Each snippet, by its document and its number there."""
    found: dict[str, str] = {}
    for document in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        texts = re.findall(
            rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL
        )
        found.update((f"{document.name}-{number}", text) for number, text in enumerate(texts, 1))
    assert found
    return found


def needs_ray(snippet: str) -> bool:
    return "import ray\n" in snippet or "ray_engine" in snippet


def written(snippet: str, folder: Path, base_url: str) -> Path:
    """A Python snippet as a script, with what a reader has and this machine has not."""
    # example.org stands for a server that the reader has; here no network is needed.
    text = snippet.replace("https://example.org/", base_url)
    # A hundred requests find what a thousand do.
    text = text.replace("range(1000)", "range(100)")
    script = folder / "snippet.py"
    script.write_text(text)
    return script
