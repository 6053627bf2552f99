"""The command, with a signal at the import of a module: ``MODULE NUMBER ARGUMENT ...``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

import parallel_core_command


class Interrupting:
    """Finds no module, and sends a signal when it is asked for one."""

    def __init__(self, module: str, number: int) -> None:
        self._module = module
        self._number = number

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> None:
        if name == self._module:
            os.kill(os.getpid(), self._number)


if __name__ == "__main__":
    module, number = sys.argv[1:3]
    del sys.argv[1:3]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off
    sys.meta_path.insert(0, Interrupting(module, int(number)))
    parallel_core_command.main()
