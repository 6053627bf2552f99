"""The benchmarks by name."""

from __future__ import annotations

from . import break_latency, cancel_latency, memory, overhead, router_throughput, scaling

QUESTIONS = {
    module.QUESTION.name: module.QUESTION
    for module in (cancel_latency, break_latency, overhead, memory, router_throughput, scaling)
}
