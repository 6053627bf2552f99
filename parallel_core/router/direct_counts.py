"""The counts of a direct batch whose calls are made by workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec


class HasDirectCounts(Protocol):
    """Counts the attempts of a direct batch.

    Attributes:
        direct_calls: attempts that were sent directly.
        indirect_calls: attempts that went through litellm, by reason.
        differences: answers that differ from litellm's, by member.
    """

    @property
    def direct_calls(self) -> int: ...
    @property
    def indirect_calls(self) -> Mapping[str, int]: ...
    @property
    def differences(self) -> Mapping[str, int]: ...


class DirectCounts(msgspec.Struct, eq=False, omit_defaults=True):
    """The counts of a batch, or of one call of it, made elsewhere (:class:`HasDirectCounts`)."""

    direct_calls: int = 0
    indirect_calls: dict[str, int] = {}
    differences: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self.direct_calls or self.indirect_calls or self.differences)

    def add(self, other: HasDirectCounts) -> None:
        """Add other counts to these."""
        self.direct_calls += other.direct_calls
        for mine, theirs in (
            (self.indirect_calls, other.indirect_calls),
            (self.differences, other.differences),
        ):
            for name, number in theirs.items():
                mine[name] = mine.get(name, 0) + number

    def packed(self) -> bytes:
        """Return these counts as bytes."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def unpacked(cls, packed: bytes) -> DirectCounts:
        """Return the counts that :meth:`packed` made to bytes."""
        return msgspec.msgpack.decode(packed, type=cls)
