"""``python -m parallel_core.cli``."""

from .commands import main

if __name__ == "__main__":
    main()
