"""The page with every table of the last full run, made from `docs/benchmarks.json`."""

from __future__ import annotations

import json
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from benchmarks.report import from_json, to_markdown

PAGE = "benchmark-tables.md"
INTRODUCTION = """\
# All tables of the benchmarks

Every figure of the last full run. [Benchmarks](benchmarks.md) says what came out, what the peers
are, and how to read the columns.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the files of the site."""
    run = json.loads((Path(config.docs_dir) / "benchmarks.json").read_text(encoding="utf-8"))
    tables = to_markdown(run["machine"], run["rounds"], from_json(run))
    files.append(File.generated(config, PAGE, content=f"{INTRODUCTION}\n{tables}"))
    return files
