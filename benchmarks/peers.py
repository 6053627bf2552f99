"""Everything a user would pick instead, and ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Literal

from . import library_peers, plain_peers
from .adapter import Adapter
from .own_peers import ParallelCore


@dataclass(frozen=True)
class Peer:
    """A way to make many calls at once.

    Attributes:
        key: its name on the command line and in JSON.
        title: its name in tables and charts.
        world: the library that runs it.
        distribution: the package whose version is reported; None: what Python brings.
        adapter: makes its adapter.
        ours: it is parallel_core.
    """

    key: str
    title: str
    world: Literal["asyncio", "trio"]
    distribution: str | None
    adapter: Callable[[], Adapter]
    ours: bool = False

    @property
    def version(self) -> str | None:
        """The installed version, or None where the peer is not installed."""
        if self.distribution is None:
            return "-"
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None


GATHER = "gather"
FLOOR = "pool"

PEERS = {
    peer.key: peer
    for peer in (
        Peer(GATHER, "semaphore + gather", "asyncio", None, plain_peers.Gather),
        Peer("original", "original proposal", "asyncio", None, plain_peers.Original),
        Peer(FLOOR, "TaskGroup pool", "asyncio", None, plain_peers.Pool),
        Peer("anyio", "anyio task group", "asyncio", "anyio", library_peers.AnyioTaskGroup),
        Peer("tqdm", "tqdm.asyncio.gather", "asyncio", "tqdm", library_peers.Tqdm),
        Peer("aiometer", "aiometer", "asyncio", "aiometer", library_peers.Aiometer),
        Peer("aiostream", "aiostream", "asyncio", "aiostream", library_peers.Aiostream),
        Peer("langchain", "langchain-core", "asyncio", "langchain-core", library_peers.Langchain),
        Peer(
            "async-batch-llm",
            "async-batch-llm",
            "asyncio",
            "async-batch-llm",
            library_peers.AsyncBatchLlm,
        ),
        Peer("infermesh", "infermesh", "asyncio", "infermesh", library_peers.Infermesh),
        Peer(
            "litellm-abatch",
            "litellm abatch_completion",
            "asyncio",
            "litellm",
            library_peers.LitellmBatch,
        ),
        Peer("trio-tasks", "trio task per call", "trio", "trio", plain_peers.TrioTaskPerCall),
        Peer("trio-pool", "trio pool", "trio", "trio", plain_peers.TrioPool),
        Peer(
            "ours-asyncio",
            "parallel_core in asyncio",
            "asyncio",
            "parallel_core",
            ParallelCore,
            ours=True,
        ),
        Peer(
            "ours-trio", "parallel_core in trio", "trio", "parallel_core", ParallelCore, ours=True
        ),
        Peer(
            "ours-trio-uvloop",
            "parallel_core in trio (uvloop)",
            "trio",
            "uvloop",
            partial(ParallelCore, "thread-uvloop"),
            ours=True,
        ),
        Peer(
            "ours-trio-asyncio",
            "parallel_core in trio-asyncio",
            "trio",
            "trio-asyncio",
            partial(ParallelCore, "trio-asyncio"),
            ours=True,
        ),
    )
}
