"""Import the bar alone, and rich not before it is drawn.

The first argument is the folder of the package. What its other parts import is not asked here.
"""

from __future__ import annotations

import importlib
import sys
import types


def main() -> None:
    package = types.ModuleType("parallel_core")
    package.__path__ = [sys.argv[1]]
    sys.modules["parallel_core"] = package
    bar = importlib.import_module("parallel_core.control.progress_bar")
    importlib.import_module("parallel_core.control.progress")
    assert not any(name.split(".")[0] == "rich" for name in sys.modules)
    bar.ProgressBar()
    assert "rich.console" in sys.modules


if __name__ == "__main__":
    main()
