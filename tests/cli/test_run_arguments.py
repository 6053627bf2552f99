"""The options of ``parallel-core run``, and its help."""

from __future__ import annotations

import dataclasses
import re
from itertools import pairwise
from typing import Any

import typer
from typer.testing import CliRunner

from parallel_core.cli.commands import app
from parallel_core.cli.run_arguments import RunArguments


def test_every_argument_is_an_option_in_one_panel() -> None:
    command: Any = typer.main.get_command(app)
    parameters = [one for one in command.commands["run"].params if one.name != "help"]
    names = [parameter.name for parameter in parameters]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(RunArguments))
    panels = [getattr(parameter, "rich_help_panel", None) for parameter in parameters[1:]]
    assert None not in panels
    assert panels[0] == "Most used"
    # The options of a panel stand together.
    changes = sum(one != other for one, other in pairwise(panels))
    assert changes == len(set(panels)) - 1


def test_the_help_fits_80_columns_and_cuts_no_option() -> None:
    told = CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(app, ["run", "--help"]).output
    assert max(map(len, told.splitlines())) <= 80
    for field in dataclasses.fields(RunArguments):
        option = f"--{field.name.replace('_', '-')}"
        assert field.name == "source" or re.search(rf"{option}\b", told), option
