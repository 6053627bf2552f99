"""The page with every option of every command, made from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from parallel_core.cli.commands import app

PAGE = "reference/commands.md"
PROGRAM = "parallel-core"
INTRODUCTION = """\
# Commands

Every option of every command, as `--help` prints it. [The commands](../cli.md) explains how they
behave, and [A file of prompts overnight](../guides/file-overnight.md) how to use them.

With `python -m parallel_core` they run where the folder of scripts is not on the `PATH`.
"""
PLAIN = "Arguments and options"  # the group of options that belong to no panel


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the files of the site."""
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """Return the page as Markdown."""
    return "\n".join([INTRODUCTION, *_sections(typer.main.get_command(app), PROGRAM)])


def _sections(command: Any, name: str) -> Iterator[str]:
    """Yield the lines of a command, and of the commands below it."""
    context = typer.Context(command, info_name=name)
    if name != PROGRAM:
        yield from (f"## {name}", "", "```text")
        yield from (" ".join([name, *command.collect_usage_pieces(context)]), "```", "")
        yield from (_text(command.help or ""), "")
        for panel, parameters in _panels(command, context).items():
            yield from (f"**{panel}**", "")
            for parameter in parameters:
                record, text = parameter.get_help_record(context)
                yield from (f"`{record}`", f":   {_text(text)}", "")
    for below, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _sections(inner, f"{name} {below}")


def _panels(command: Any, context: typer.Context) -> dict[str, list[Any]]:
    """Group the parameters as the help does. The argument comes first."""
    panels: dict[str, list[Any]] = {}
    for parameter in command.get_params(context):
        if not getattr(parameter, "hidden", False) and parameter.name != "help":
            panel = getattr(parameter, "rich_help_panel", None) or PLAIN
            panels.setdefault(panel, []).append(parameter)
    return panels


def _text(text: str) -> str:
    """Return a text of the help such that Markdown shows it as it is, with its line ends."""
    for character in "\\`*_<>[]":
        text = text.replace(character, f"\\{character}")
    return re.sub(r"(?<=\S)\n(?=\S)", "  \n", text)
