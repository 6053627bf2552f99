"""What litellm imports at its first call is imported before the clocks of the first batch start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "scripts" / "first_batch.py"


@pytest.mark.thorough  # a fresh process, with all that litellm imports
def test_the_first_batch_of_a_process_has_time_for_its_calls() -> None:
    """And preparing it sends nothing, logs nothing and runs no callback."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        },
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "done\n"
    assert "WARNING" not in done.stderr, done.stderr
