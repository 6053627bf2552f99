"""Every example of the README runs, and shows what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.snippets import REPOSITORY, Run

EXAMPLES = [
    path
    for path in sorted((REPOSITORY / "examples").glob("*.py"))
    # These have tests of their own.
    if path.name not in ("make_requests.py", "trio_web.py", "movie_reviews_batch.py")
]
# What these show, snippets of the docs show more quickly.
SLOW = {"stream_race", "sync_batch"}
PARAMS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.thorough] if path.stem in SLOW else [])
    for path in EXAMPLES
]


@pytest.mark.thorough  # the snippets of the README make the same calls
@pytest.mark.parametrize("example", PARAMS)
def test_an_example(example: Path, run: Run) -> None:
    done = run(["python", str(example)])
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    if example.stem == "fail_fast":
        assert "the server saw 64 requests, 63 of them cancelled" in done.stdout
        assert "parallel_core: raised by request 20 (model 'fast')" in done.stdout
    elif example.stem == "stream_race":
        assert done.stdout.count("[synthetic]") == 3  # one of each model
        assert done.stdout.count("tokens in") == 4
        assert "failed" not in done.stdout
    else:
        assert len([line for line in done.stdout.splitlines() if "synthetic" in line]) == 50


def test_the_examples_are_those_that_the_readme_names() -> None:
    names = {path.stem for path in EXAMPLES}
    assert {"asyncio_batch", "trio_batch", "sync_batch", "fail_fast", "stream_race"} <= names
    lines = (REPOSITORY / "examples" / "requests.jsonl").read_text().splitlines()
    assert len({json.dumps(json.loads(line)["messages"]) for line in lines}) >= 200
