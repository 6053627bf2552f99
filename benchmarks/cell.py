"""One cell in this process: ``python -m benchmarks.cell QUESTION PEER PARAMETERS ANSWER``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from .peers import PEERS
from .questions import QUESTIONS


def main() -> None:
    name, peer, parameters, answer = sys.argv[1:]
    question = QUESTIONS[name]
    measured = question.measure(PEERS[peer], json.loads(parameters))
    Path(answer).write_text(json.dumps(measured))
    sys.stderr.flush()
    os._exit(0)  # what a peer has left running, a hundred thousand tasks, is not waited for


if __name__ == "__main__":
    main()
