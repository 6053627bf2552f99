"""The command where Ray is not installed; it must not import litellm to say so."""

import sys

sys.modules["ray"] = None  # type: ignore[assignment]
from parallel_core.cli import main  # noqa: E402 - it must not find Ray

try:
    main()
except SystemExit as end:
    assert "litellm" not in sys.modules
    sys.exit(end.code)
