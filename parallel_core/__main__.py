"""The command line as ``python -m parallel_core``."""

from parallel_core_command import main

if __name__ == "__main__":
    main()
