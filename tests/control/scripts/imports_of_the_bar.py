"""Import the bar, and rich not before it is drawn."""

from __future__ import annotations

import sys

from parallel_core.control.progress_bar import ProgressBar

if __name__ == "__main__":
    assert "rich" not in sys.modules
    ProgressBar()
    assert "rich.console" in sys.modules
