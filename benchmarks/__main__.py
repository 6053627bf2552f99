"""The command line: ``python -m benchmarks [NAMES] [--json FILE] [--plot DIR] [--quick]``."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from .peers import PEERS
from .question import Size
from .questions import QUESTIONS
from .report import from_json, machine_lines, print_answer, to_json, to_markdown
from .runner import Answer, machine, run_question

ROUNDS: dict[Size, int] = {"full": 5, "quick": 3, "smoke": 1}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="What parallel_core costs, and how fast it stops, beside its peers.",
        epilog=f"NAMES: {', '.join(QUESTIONS)}. PEERS: {', '.join(PEERS)}.",
    )
    parser.add_argument(
        "names", nargs="*", choices=[*QUESTIONS, []], metavar="NAMES", help="default: all of them"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw charts there, PNG and SVG")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="fewer cells, 3 rounds")
    size.add_argument("--smoke", action="store_true", help="tiny sizes, one round: does it run?")
    size.add_argument(
        "--read", type=Path, metavar="FILE", help="measure nothing: show what --json has written"
    )
    parser.add_argument("--rounds", type=int, help="of each cell (5; with --quick 3)")
    parser.add_argument(
        "--peers", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="PEERS"
    )
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    options.peers = list(dict.fromkeys(options.peers))
    _check_outputs(parser, options)
    if options.read is not None and not options.read.is_file():
        parser.error(f"there is no file {options.read}")
    if not hasattr(os, "fork"):
        parser.error("the benchmarks need os.fork, which this system does not have")
    return options


def _check_outputs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Before anything is measured: half an hour later would be late."""
    for path in (options.json, options.markdown):
        if path is not None and not path.parent.is_dir():
            parser.error(f"there is no folder {path.parent}")
        if path is not None and path.is_dir():
            parser.error(f"{path} is a folder, not a file")
    if options.plot is not None:
        if importlib.util.find_spec("matplotlib") is None:
            parser.error("--plot needs matplotlib: pip install 'parallel_core[bench]'")
        try:
            options.plot.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--plot: {error}")


def _read(path: Path) -> tuple[dict[str, Any], int, list[Answer]]:
    """What --json has written."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        return document["machine"], document["rounds"], from_json(document)
    except (ValueError, KeyError, TypeError) as error:
        raise SystemExit(
            f"{path} has not been written by --json of these benchmarks "
            f"({type(error).__name__}: {error})"
        ) from None


def main() -> int:
    options = parse_arguments()
    console = Console()
    if options.read is not None:
        about, rounds, answers = _read(options.read)
        names = options.names or list(QUESTIONS)
        answers = [answer for answer in answers if answer.question.name in names]
        _print_machine(console, about)
        for answer in answers:
            print_answer(console, answer)
    else:
        size: Size = "smoke" if options.smoke else "quick" if options.quick else "full"
        rounds = options.rounds or ROUNDS[size]
        about = machine()
        _print_machine(console, about)
        answers = []
        for name in options.names or list(QUESTIONS):
            answers.append(_measure(console, name, size, rounds, options.peers))
            print_answer(console, answers[-1])
            _write_json(options.json, about, rounds, answers)  # what is there is not lost
    _write_json(options.json, about, rounds, answers)
    if options.markdown is not None:
        options.markdown.write_text(to_markdown(about, rounds, answers))
    if options.plot is not None:
        from .charts import draw

        for path in draw(answers, options.plot):
            console.print(f"drawn: {path}")
    failed = [
        f"{answer.question.name}, {cell.peer.title}: {cell.problem}"
        for answer in answers
        for group in answer.groups
        for cell in group.cells
        if cell.problem is not None and cell.problem.startswith("failed")
    ]
    for line in failed:
        console.print(line, style="red")
    return 1 if failed else 0


def _write_json(
    path: Path | None, about: dict[str, Any], rounds: int, answers: list[Answer]
) -> None:
    if path is not None:
        path.write_text(json.dumps(to_json(about, rounds, answers), indent=1) + "\n")


def _measure(console: Console, name: str, size: Size, rounds: int, peers: list[str]) -> Answer:
    began = time.monotonic()
    with console.status(name) as status:
        answer = run_question(
            QUESTIONS[name], size, rounds, [PEERS[key] for key in peers], status.update
        )
    console.print(f"{name}: {time.monotonic() - began:.0f} s")
    return answer


def _print_machine(console: Console, about: dict[str, Any]) -> None:
    for line in machine_lines(about):
        console.print(line)


if __name__ == "__main__":
    raise SystemExit(main())
