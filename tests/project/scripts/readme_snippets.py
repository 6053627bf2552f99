"""Run every snippet of the README with what `pip install` of the wheel alone brings.

It needs no pytest: this Python has the wheel and nothing else.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the folder of the helpers

from helpers.snippets import snippets, write_files, written
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

NOT_HERE = ("make", "pip", "git", "cd")  # for a clone, or done already


def main() -> None:
    """Run them, and end with the first one that fails."""
    settings = DemoServerSettings(latency_median=0.0, models={"gpt-4o-mini": 1.0})
    with DemoServerThread(settings) as server, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_files("README.md-1", folder)
        environment = {
            **os.environ,
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": "none",
            "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
        }
        commands = [
            [sys.executable, str(written(text, folder, server.url))]
            for name, text in snippets("python").items()
            if name.startswith("README")
        ]
        ran = 0
        for command in commands:
            subprocess.run(command, cwd=folder, env=environment, check=True)
            ran += 1
        for name, text in snippets("console").items():
            for line in text.splitlines() if name.startswith("README") else ():
                command = shlex.split(line.removeprefix("$ "), comments=True)
                if command[0] not in NOT_HERE:
                    subprocess.run(command, cwd=folder, env=environment, check=True)
                    ran += 1
    assert ran > 2
    print(f"{ran} snippets of the README ran")


if __name__ == "__main__":
    main()
