"""Requests whose answers name them, and checks of an output file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any


def custom_id_of(number: int) -> str:
    return f"request-{number}"


def write_requests(path: Path, count: int) -> None:
    """Write requests whose answers name their request."""
    with path.open("w") as lines:
        for number in range(count):
            body = {
                "model": "fast",
                "messages": [{"role": "user", "content": f"Question {number}."}],
                "extra_body": {"demo": {"reply": f"answer {custom_id_of(number)}"}},
            }
            lines.write(json.dumps({"custom_id": custom_id_of(number), "body": body}) + "\n")


def examine(output: Path, requests: int) -> list[str]:
    """Return the problems of the output of a complete run."""
    problems: list[str] = []
    seen: Counter[str] = Counter()
    for number, line in enumerate(output.read_bytes().splitlines(keepends=True), start=1):
        try:
            result = json.loads(line)
            custom_id: str = result["custom_id"]
        except (ValueError, KeyError, TypeError):
            problems.append(f"line {number} is no result")
            continue
        if not line.endswith(b"\n"):
            problems.append(f"line {number} is torn")
        seen[custom_id] += 1
        if reply_of(result) != f"answer {custom_id}":
            problems.append(f"line {number} is not the answer to {custom_id}")
    wanted = {custom_id_of(number) for number in range(requests)}
    if missing := wanted - seen.keys():
        problems.append(f"{len(missing)} ids are missing")
    if unknown := seen.keys() - wanted:
        problems.append(f"{len(unknown)} ids are of no request")
    if twice := [custom_id for custom_id, count in seen.items() if count > 1]:
        problems.append(f"{len(twice)} ids are there more than once")
    return problems


def reply_of(result: dict[str, Any]) -> object:
    try:
        return result["response"]["body"]["choices"][0]["message"]["content"]
    except (KeyError, TypeError, IndexError):
        return None


def ids_in(path: Path) -> list[str]:
    """Return the ids of all whole lines. The file may be missing or end in a torn line."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line)["custom_id"] for line in lines if line.endswith(b"\n")]


def has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0
