"""``python -m parallel_core.cli``."""

from .commands import main

main()
