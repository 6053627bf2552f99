"""Contents of inputs, recognised by their first bytes."""

from __future__ import annotations

from typing import Final, Literal

_UTF8_MARK: Final = b"\xef\xbb\xbf"
_PARQUET: Final = (b"PAR1", b"PARE")  # the second is encrypted
_ARROW: Final = (b"ARROW1", b"\xff\xff\xff\xff")  # a file, and a stream
FEATHER_1: Final = b"FEA1"


def table_format(beginning: bytes) -> Literal["parquet", "arrow"] | None:
    """Return the format of a table whose rows are read with pyarrow; None for all else."""
    if beginning.startswith(_PARQUET):
        return "parquet"
    return "arrow" if beginning.startswith((*_ARROW, FEATHER_1)) else None


def is_table(beginning: bytes) -> bool:
    """Return True if the contents are a table that is read with pyarrow."""
    return table_format(beginning) is not None


def is_array(beginning: bytes) -> bool:
    """Return True if the contents begin as a JSON array."""
    return beginning.removeprefix(_UTF8_MARK).lstrip().startswith(b"[")
