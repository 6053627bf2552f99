"""Write varied chat requests, one JSON object a line: the same ones on every run.

examples/requests.jsonl is the output of ``python examples/make_requests.py --count 240``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The share of each model, so that the slow one does not take up most of the time.
MODELS = {"fast": 6, "smart": 3, "slow": 1}

# Topics by field: a task of a field is asked about that field's topics only, and so makes sense.
TOPICS = {
    "history": [
        "the printing press",
        "the Silk Road",
        "the invention of the postage stamp",
        "the building of the Suez Canal",
        "coffee houses in eighteenth-century London",
        "the Library of Alexandria",
        "the first ascent of Mount Everest",
        "the standardisation of time zones",
    ],
    "science": [
        "photosynthesis",
        "plate tectonics",
        "the immune system",
        "why the sky is blue",
        "black holes",
        "how vaccines are tested",
        "the migration of Arctic terns",
        "superconductors",
    ],
    "programming": [
        "binary search",
        "garbage collection",
        "structured concurrency",
        "database indexes",
        "exponential backoff",
        "floating-point rounding",
        "Unicode normalisation",
        "consistent hashing",
    ],
    "daily life": [
        "baking sourdough bread",
        "repairing a bicycle puncture",
        "planning a week of cheap vegetarian meals",
        "growing tomatoes on a balcony",
        "moving into a first flat",
        "packing for a week with hand luggage only",
        "learning to juggle",
        "keeping a houseplant alive in winter",
    ],
}

TASKS = {
    "history": [
        "What were the three most important consequences of {topic}?",
        "Tell me the story of {topic} as a bedtime story.",
        "Write a short timeline about {topic}, one line for each date.",
        "Which common belief about {topic} is wrong?",
    ],
    "science": [
        "Explain {topic} to a ten-year-old.",
        "Summarise what is known, and what is still disputed, about {topic}.",
        "Write five exam questions about {topic}, with their answers.",
        "Which everyday comparison explains {topic} best, and where does it break down?",
    ],
    "programming": [
        "Show {topic} in twenty lines of Python or less.",
        "What do people get wrong most often about {topic}?",
        "Write a code review checklist for {topic}.",
        "When would you advise against {topic}?",
    ],
    "daily life": [
        "Give me step-by-step instructions for {topic}.",
        "What will a beginner in {topic} regret not having known?",
        "Make a shopping list for {topic}, with rough prices.",
        "Write a friendly e-mail to a neighbour who asked about {topic}.",
    ],
}

LANGUAGES = ["English"] * 4 + ["French", "German", "Japanese", "Portuguese", "Swahili", "Polish"]

# How long the answer is to be: the words that ask for it, and the limit in tokens.
LENGTHS = [
    ("Answer in one sentence.", 60),
    ("Answer in a short paragraph.", 200),
    ("Use at most five bullet points.", 250),
    ("Go into detail.", 800),
    ("", 400),
]

SYSTEM_MESSAGES = [
    "You are a patient teacher who checks every claim before making it.",
    "You are a terse expert. No greetings, no summaries.",
    "You are the editor of a local newspaper; your readers have five minutes.",
    "Answer as JSON with the keys 'answer' and 'confidence'.",
    "If you are not sure, say so, and say what would settle the question.",
]

FOLLOW_UPS = [
    "That is too long. Say it again in half the words.",
    "What is the strongest objection to that?",
    "Give a concrete example.",
    "Which part of that would an expert disagree with?",
    "Now explain it to somebody who has never heard of it.",
    "Translate the key terms into {language}.",
]

EARLIER_ANSWERS = [
    "In short: it depends on three things, and the second one matters most.",
    "There are two schools of thought. The older one starts from what can be measured.",
    "Most introductions begin at the wrong end, so let us begin with an example.",
]


def make_requests(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Make ``count`` different requests; the same ones for the same seed."""
    draw = random.Random(seed)
    seen: set[str] = set()
    while len(seen) < count:
        request = _make_request(draw)
        conversation = json.dumps(request["messages"])
        if conversation not in seen:
            seen.add(conversation)
            yield request


def _make_request(draw: random.Random) -> dict[str, Any]:
    field = draw.choice(list(TOPICS))
    language = draw.choice(LANGUAGES)
    length, max_tokens = draw.choice(LENGTHS)
    question = draw.choice(TASKS[field]).format(topic=draw.choice(TOPICS[field]))
    wishes = [length, "" if language == "English" else f"Answer in {language}."]
    messages = [_message("user", " ".join(filter(None, [question, *wishes])))]
    if draw.random() < 0.4:
        messages.insert(0, _message("system", draw.choice(SYSTEM_MESSAGES)))
    for _turn in range(draw.choices([0, 1, 2], weights=[7, 2, 1])[0]):
        follow_up = draw.choice(FOLLOW_UPS).format(language=draw.choice(LANGUAGES))
        messages.append(_message("assistant", draw.choice(EARLIER_ANSWERS)))
        messages.append(_message("user", follow_up))
    return {
        "model": draw.choices(list(MODELS), weights=list(MODELS.values()))[0],
        "messages": messages,
        "temperature": draw.choice([0.0, 0.2, 0.7, 1.0]),
        "max_tokens": max_tokens,
    }


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def main() -> None:
    """Write the requests to standard output, or to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=240, help="how many requests to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed: other requests")
    parser.add_argument("--output", type=Path, help="a file, instead of standard output")
    options = parser.parse_args()
    lines = "".join(
        json.dumps(request, ensure_ascii=False) + "\n"
        for request in make_requests(options.count, options.seed)
    )
    if options.output is None:
        sys.stdout.write(lines)
    else:
        options.output.write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
