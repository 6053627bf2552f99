"""Run ``parallel-core --version``, and print which clients that has imported."""

from __future__ import annotations

import contextlib
import sys

from parallel_core import cli

if __name__ == "__main__":
    with contextlib.suppress(SystemExit):
        cli.app(["--version"])
    print([name for name in ("aiohttp", "litellm", "openai", "ray") if name in sys.modules])
