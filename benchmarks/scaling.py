"""How the cost of a call grows with the number of requests and with concurrency."""

from __future__ import annotations

from collections.abc import Iterator

from .overhead import cost_of_a_call
from .peers import GATHER, Peer
from .question import Done, Fit, Parameters, Quantity, Question, Size, not_for_calls


def measure(peer: Peer, parameters: Parameters, done: Done) -> None:
    cost = cost_of_a_call(peer, {"call": "no-op", "results": "as a list", **parameters})
    cpu = cost["cpu"]
    assert cpu is not None
    done({"cpu": cpu, "total": cpu * parameters["calls"] / 1e6})


def cells(size: Size) -> Iterator[Parameters]:
    if size == "smoke":
        yield {"along": "calls", "calls": 200, "concurrency": 8}
        yield {"along": "calls", "calls": 400, "concurrency": 8}
        return
    for calls in (1_000, 10_000) if size == "quick" else (1_000, 10_000, 100_000, 1_000_000):
        yield {"along": "calls", "calls": calls, "concurrency": 64}
    if size == "full":
        for concurrency in (8, 512, 4096):
            yield {"along": "concurrency", "calls": 10_000, "concurrency": concurrency}


def rounds(parameters: Parameters, size: Size) -> int | None:
    return 1 if parameters["calls"] >= 1_000_000 else None


QUESTION = Question(
    name="scaling",
    title="Does a call cost more when there are more of them?",
    quantities=(Quantity("total", "CPU of all", "s"), Quantity("cpu", "CPU per call", "µs")),
    cells=cells,
    measure=measure,
    base=GATHER,
    compared=("cpu",),
    refuses=not_for_calls,
    size="calls",
    rounds=rounds,
    fits=(
        Fit("CPU of all calls, as their number grows", "calls", "total", {"along": "calls"}),
        Fit("CPU per call, as concurrency grows", "concurrency", "cpu", {"along": "concurrency"}),
    ),
)
