"""Tables for the terminal and for documents, and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from .peers import PEERS
from .question import Fit, Quantity, Question
from .questions import QUESTIONS
from .runner import Answer, Cell, Group, Spread, describe, exponent, ratios


@dataclass(frozen=True)
class TextTable:
    """A table of words and numbers; the first column names the peer."""

    title: str
    header: list[str]
    rows: list[list[str]]


def machine_lines(machine: dict[str, Any]) -> list[str]:
    versions = ", ".join(
        f"{name} {version or 'not installed'}" for name, version in machine["versions"].items()
    )
    load = ", ".join(f"{value:.2f}" for value in machine["load"])
    system = (
        f"Python {machine['python']} on {machine['system']}, {machine['processor']}, "
        f"{machine['cores']} cores, load {load}"
    )
    return [system, versions]


def refused_lines(answer: Answer) -> list[str]:
    return [
        f"Not asked, {reason}: {', '.join(peer.title for peer in peers)}."
        for reason, peers in answer.refused.items()
    ]


def tables(answer: Answer) -> Iterator[TextTable]:
    """A table for each set of parameters, and one for the exponents that were fitted."""
    for group in answer.groups:
        if group.cells:
            yield _group_table(answer, group)
    fits = [fit for fit in answer.question.fits if _can_be_fitted(fit, answer)]
    if fits:
        yield TextTable(
            "exponents: 1 is proportional, 0 is constant",
            ["", *(fit.title for fit in fits)],
            [
                [cell.peer.title, *(_exponent(exponent(fit, answer, cell.peer)) for fit in fits)]
                for cell in answer.groups[0].cells
            ],
        )


def _can_be_fitted(fit: Fit, answer: Answer) -> bool:
    cells = answer.groups[0].cells
    return any(exponent(fit, answer, cell.peer) is not None for cell in cells)


def _exponent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _group_table(answer: Answer, group: Group) -> TextTable:
    question = answer.question
    base = group.of(question.base)
    quantities = [
        quantity
        for quantity in question.quantities
        # A column for what this group measures; None is a measurement, too.
        if any(quantity.key in one for cell in group.cells for one in cell.rounds)
    ]
    header = [""]
    for quantity in quantities:
        header.append(f"{quantity.title} ({quantity.unit})" if quantity.unit else quantity.title)
        if quantity.key in question.compared and base is not None:
            header.append(f"x {base.peer.title}")
    rows = [
        [_name(cell, answer.rounds), *_columns(question, cell, base, quantities)]
        for cell in group.cells
    ]
    if not quantities:
        header.append("")
    return TextTable(describe(group.parameters), header, rows)


def _name(cell: Cell, rounds: int) -> str:
    count = len(cell.rounds)
    if count in (0, rounds):
        return cell.peer.title
    return f"{cell.peer.title} ({count} round{'' if count == 1 else 's'})"


def _columns(
    question: Question, cell: Cell, base: Cell | None, quantities: list[Quantity]
) -> Iterator[str]:
    if not quantities and cell.problem is not None:
        yield cell.problem
    for position, quantity in enumerate(quantities):
        text = _of_cell(cell, quantity)
        if position == 0 and cell.problem is not None:
            text = f"{text} {cell.problem}".strip()
        yield text
        if quantity.key in question.compared and base is not None:
            yield _spread(ratios(cell, base, quantity.key))


def _of_cell(cell: Cell, quantity: Quantity) -> str:
    values = cell.values(quantity.key)
    if not values:
        return quantity.absent if cell.rounds else ""
    return _spread(Spread.of(values))


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    median, smallest, largest = (
        number(value) for value in (spread.median, spread.smallest, spread.largest)
    )
    return median if smallest == largest else f"{median} ({smallest}-{largest})"


def number(value: float) -> str:
    """A number with as many digits as tell something."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.2g}"


# --- the terminal ---


def print_answer(console: Console, answer: Answer) -> None:
    console.rule(answer.question.title)
    for line in refused_lines(answer):
        console.print(line, style="dim")
    for text in tables(answer):
        table = Table(title=text.title, title_justify="left")
        for position, name in enumerate(text.header):
            table.add_column(name, justify="right" if position else "left", overflow="fold")
        for row in text.rows:
            table.add_row(*row)
        console.print(table)


# --- documents ---


def to_markdown(machine: dict[str, Any], rounds: int, answers: list[Answer]) -> str:
    """Everything as tables for a document."""
    lines = [
        *_paragraphs(machine_lines(machine)),
        f"{rounds} rounds: median (smallest-largest).",
        "",
    ]
    for answer in answers:
        lines += [f"### {answer.question.title}", "", f"`{answer.question.name}`", ""]
        lines += _paragraphs(refused_lines(answer))
        for text in tables(answer):
            lines += [f"**{text.title}**", ""]
            lines.append(_markdown_row(text.header))
            lines.append(_markdown_row(["---", *["---:"] * (len(text.header) - 1)]))
            lines += [_markdown_row(row) for row in text.rows]
            lines.append("")
    return "\n".join(lines)


def _paragraphs(lines: list[str]) -> list[str]:
    return [text for line in lines for text in (line, "")]


def _markdown_row(columns: list[str]) -> str:
    return f"| {' | '.join(columns)} |"


# --- JSON ---


def to_json(machine: dict[str, Any], rounds: int, answers: list[Answer]) -> dict[str, Any]:
    return {
        "machine": machine,
        "rounds": rounds,
        "answers": [
            {
                "question": answer.question.name,
                "refused": {
                    reason: [peer.key for peer in peers] for reason, peers in answer.refused.items()
                },
                "groups": [
                    {
                        "parameters": group.parameters,
                        "cells": [
                            {
                                "peer": cell.peer.key,
                                "rounds": cell.rounds,
                                "problem": cell.problem,
                                "took": round(cell.took, 2),
                            }
                            for cell in group.cells
                        ],
                    }
                    for group in answer.groups
                ],
            }
            for answer in answers
        ],
    }


def from_json(document: dict[str, Any]) -> list[Answer]:
    """What :func:`to_json` has written."""
    answers: list[Answer] = []
    for written in document["answers"]:
        groups = [
            Group(
                group["parameters"],
                [
                    Cell(
                        PEERS[cell["peer"]],
                        group["parameters"],
                        cell["rounds"],
                        cell["problem"],
                        cell["took"],
                    )
                    for cell in group["cells"]
                ],
            )
            for group in written["groups"]
        ]
        refused = {
            reason: [PEERS[key] for key in keys] for reason, keys in written["refused"].items()
        }
        answers.append(Answer(QUESTIONS[written["question"]], document["rounds"], groups, refused))
    return answers
