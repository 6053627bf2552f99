"""The statistics file of a run, as the thread of its journal writes it."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from .files import Disk, open_at_a_new_line
from .system_errors import reason

logger = logging.getLogger("parallel_core")


class StatisticsFile:
    """The statistics file. It is not synced; a failure is logged once and stops nothing else."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._file: int | None = None
        self._given_up = False

    def write(self, lines: list[bytes]) -> None:
        """Write lines, without their newlines."""
        if not lines or self._given_up:
            return
        try:
            if self._file is None:
                self._file = open_at_a_new_line(self._path)
            self._disk.write_all(self._file, b"\n".join((*lines, b"")))
        except OSError as error:
            self._given_up = True
            logger.warning(
                "%s cannot be written (%s): the run continues without statistics",
                self._path,
                reason(error),
            )

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
