"""The command line: ``python -m benchmarks [NAMES] [--json FILE] [--quick]``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from rich.console import Console

from .peers import PEERS
from .question import Size
from .questions import QUESTIONS
from .report import print_machine, print_question, to_json
from .runner import machine, run_question


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="What parallel_core costs, and how fast it stops, beside its peers.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        choices=[*QUESTIONS, []],
        metavar="NAMES",
        help=f"of {', '.join(QUESTIONS)}; all of them if none is given",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--quick", action="store_true", help="fewer cells and rounds")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one round: does it run?")
    parser.add_argument("--rounds", type=int, help="of each cell (5; with --quick 3)")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    options = parser.parse_args()
    size: Size = "smoke" if options.smoke else "quick" if options.quick else "full"
    rounds = options.rounds or {"smoke": 1, "quick": 3, "full": 5}[size]
    console = Console()
    about = machine()
    print_machine(console, about)
    cells = []
    began = time.monotonic()
    for name in options.names or list(QUESTIONS):
        question = QUESTIONS[name]
        peers = [PEERS[key] for key in options.peers]
        with console.status(name) as status:
            groups = run_question(question, size, rounds, peers, status.update)
        print_question(console, question, groups)
        cells += to_json(question, groups)
    console.print(f"{time.monotonic() - began:.0f} s, {rounds} rounds")
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": about, "cells": cells}, indent=1))


if __name__ == "__main__":
    main()
