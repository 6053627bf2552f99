"""Sums over the calls of a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from .durations import Durations


@dataclass(slots=True)
class Tally:
    """Sums over the calls of one model.

    Attributes:
        calls: number of calls whose time was measured.
        attempts: number of calls to a provider that these took.
        latencies: durations of the calls with an answer.
        failed_latencies: durations of the calls without one.
        first_chunks: seconds to the first chunk.
    """

    calls: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated_calls: int = 0
    cost: float = 0.0
    unpriced_calls: int = 0
    latencies: Durations = field(default_factory=Durations)
    failed_latencies: Durations = field(default_factory=Durations)
    first_chunks: Durations = field(default_factory=Durations)

    def add(self, other: Tally) -> None:
        """Add the sums of another tally."""
        self.calls += other.calls
        self.attempts += other.attempts
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cached_tokens += other.cached_tokens
        self.reasoning_tokens += other.reasoning_tokens
        self.estimated_calls += other.estimated_calls
        self.cost += other.cost
        self.unpriced_calls += other.unpriced_calls
        self.latencies.update(other.latencies)
        self.failed_latencies.update(other.failed_latencies)
        self.first_chunks.update(other.first_chunks)
