"""The report as tables in a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parallel_core.printable import printable
from parallel_core.report import RunReport, formats


def print_report(report: RunReport, console: Console) -> None:
    """Print the report. Text from files is never interpreted as markup."""
    console.print(Text(f"Report of {printable(report.name)}", style="bold"))
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for what, value in formats.facts(report):
        facts.add_row(Text(what), Text(value))
    if facts.row_count:
        console.print(facts)
    for table in formats.tables(report):
        console.print()
        console.print(_drawn(table))
    if report.notes:
        console.print()
    for note in report.notes:
        console.print(Text(f"Note: {printable(note)}"))


def _drawn(table: formats.Table) -> Table:
    drawn = Table(
        title=Text(table.title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, head in enumerate(table.heads):
        if number < table.names:
            drawn.add_column(head, overflow="fold", min_width=5)
        else:
            drawn.add_column(head, justify="right", no_wrap=True)
    for number, row in enumerate(table.rows):
        is_sum = number >= len(table.rows) - table.sums
        drawn.add_row(*(Text(printable(cell)) for cell in row), style="bold" if is_sum else None)
    return drawn
