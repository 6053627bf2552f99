"""Links to the examples, which lie beside the folder of the documents."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

EXAMPLES = Path("examples")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Copy the examples into the site."""
    source = Path(config.docs_dir).parent / EXAMPLES
    for path in sorted([*source.glob("*.py"), *source.glob("*.jsonl")]):
        uri = (EXAMPLES / path.name).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to the examples lead to the copies."""
    up = "../" * page.file.src_uri.count("/")
    return markdown.replace(f"]({up}../{EXAMPLES.name}/", f"]({up}{EXAMPLES.name}/")
