"""``python -m parallel_core.demo_server``."""

from .command import main

main()
