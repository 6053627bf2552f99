"""The entry point of the console script.

It is no part of the package, whose import takes a while: a signal that comes meanwhile ends the
process in good order, instead of with a traceback out of an import.
"""

import os
import signal
import sys
from typing import NoReturn


def _end(*_: object) -> NoReturn:
    # An exception could be caught or replaced by whatever is being imported. Nothing is open yet.
    text = "interrupted before anything was sent"
    if "--json" in sys.argv:
        os.write(1, f'{{"event":"error","text":"{text}"}}\n'.encode())
    else:
        os.write(2, f"{text}\n".encode())
    os._exit(130)


def main() -> None:
    """Run ``parallel-core``."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # What nohup has switched off stays so.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    from parallel_core.cli import main as run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
