"""Lines of a stream, none of which is read whole if it is longer than a limit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import BinaryIO, Final

from parallel_core.errors import InputFileError

from .input_records import InputProblem

_MIB: Final = 1 << 20
LONGEST_LINE: Final = 100.0
"""MiB of the longest line that is read, unless an option says otherwise."""

_UTF8_MARK: Final = b"\xef\xbb\xbf"
_SKIPPED: Final = 1 << 20  # bytes of a line that are skipped at once


def bytes_of(max_line: float) -> int:
    """Return the number of bytes of a limit in MiB.

    Raises:
        ValueError: it is not finite and above 0.
    """
    if not 0 < max_line < math.inf:
        raise ValueError(f"max_line must be a finite number of MiB above 0, not {max_line!r}")
    return max(1, int(max_line * _MIB))


def too_long(line: int, longest: int) -> InputProblem:
    """Return the problem of a line, element or row that is longer than the limit."""
    message = f"longer than {_mib(longest)} MiB"
    hint = "if it is meant to be one request, give a higher --max-line (in MiB)"
    return InputProblem(line, "line_too_long", message, hint, str(line))


def unending(place: str, longest: int) -> InputFileError:
    """Return the error of a row of CSV that is longer than the limit."""
    return InputFileError(
        f"{place} is longer than {_mib(longest)} MiB: close the quotes of its fields; or, if it is "
        "meant to be one request, give a higher --max-line (in MiB)"
    )


def text_rows(stream: BinaryIO, longest: int) -> Iterator[tuple[int, bytes | InputProblem]]:
    """Yield the lines of a stream that are not blank, numbered from 1, without a UTF-8 BOM.

    In the place of a line that is longer than ``longest`` bytes, its problem is yielded.
    """
    read, line, most = stream.readline, 0, longest + 1
    while row := read(most):
        line += 1
        if len(row) > longest:
            while row and not row.endswith(b"\n"):
                row = read(_SKIPPED)
            yield line, too_long(line, longest)
            continue
        if line == 1 and row.startswith(_UTF8_MARK):
            row = row[len(_UTF8_MARK) :]
        if not row.isspace() and row:
            yield line, row
        del row  # a long line must not stay in memory while the next is read


def _mib(size: int) -> str:
    return f"{size / _MIB:.4g}"
