"""Become another program, which ignores no signal that ends a run.

Who runs the tests in the background has some of these ignored, and so would the command.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
