"""Tables in the terminal, and JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from .question import Quantity, Question
from .runner import Cell, Spread, describe, ratios


def print_machine(console: Console, machine: dict[str, Any]) -> None:
    console.print(
        f"Python {machine['python']} on {machine['system']}, {machine['processor']}, "
        f"{machine['cores']} cores, load {machine['load']}"
    )
    console.print(
        ", ".join(
            f"{name} {version or 'not installed'}" for name, version in machine["versions"].items()
        )
    )


def print_question(console: Console, question: Question, groups: list[list[Cell]]) -> None:
    console.rule(question.title)
    for cells in groups:
        if not cells:
            continue
        base = next((cell for cell in cells if cell.peer.key == question.base), None)
        table = Table(title=describe(cells[0].parameters), title_justify="left")
        table.add_column("")
        first = question.quantities[0]
        for quantity in question.quantities:
            unit = f" ({quantity.unit})" if quantity.unit else ""
            table.add_column(f"{quantity.title}{unit}", justify="right")
            if quantity is first and base is not None:
                table.add_column(f"x {base.peer.title}", justify="right")
        for cell in cells:
            table.add_row(cell.peer.title, *_columns(cell, base, question))
        console.print(table)


def _columns(cell: Cell, base: Cell | None, question: Question) -> list[str]:
    columns: list[str] = []
    for quantity in question.quantities:
        columns.append(_number(cell, quantity))
        if quantity is question.quantities[0] and base is not None:
            columns.append(_spread(ratios(cell, base, quantity.key)))
    if cell.problem is not None:
        columns[0] = f"{columns[0]} {cell.problem}" if cell.rounds else cell.problem
    return columns


def _number(cell: Cell, quantity: Quantity) -> str:
    values = cell.values(quantity.key)
    if not values:
        return quantity.absent if cell.rounds else ""
    return _spread(Spread.of(values))


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    median, smallest, largest = (
        _short(value) for value in (spread.median, spread.smallest, spread.largest)
    )
    return median if smallest == largest else f"{median} ({smallest}-{largest})"


def _short(value: float) -> str:
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def to_json(question: Question, groups: list[list[Cell]]) -> list[dict[str, Any]]:
    return [
        {
            "question": question.name,
            "peer": cell.peer.key,
            "parameters": cell.parameters,
            "rounds": cell.rounds,
            "problem": cell.problem,
        }
        for cells in groups
        for cell in cells
    ]
