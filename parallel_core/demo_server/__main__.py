"""``python -m parallel_core.demo_server``."""

from .command import main

if __name__ == "__main__":
    main()
