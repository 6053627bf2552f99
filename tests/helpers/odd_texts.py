"""Texts that a terminal would obey, and files of requests with such."""

from __future__ import annotations

import json
from pathlib import Path

EVIL = "mo\x1b[31mdel\x9b2J\u202e[bold]é€"


HARMLESS = r"mo\x1b[31mdel\x9b2J\u202e[bold]é€"


MESSAGES = [{"role": "user", "content": "Hi."}]


def write_requests(path: Path, *models: str) -> Path:
    lines = (json.dumps({"model": model, "messages": MESSAGES}) + "\n" for model in models)
    path.write_text("".join(lines), encoding="utf-8")
    return path
