"""A folder, a demo server and the command ``parallel-core run``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from helpers.forked_processes import ForkedProcess, ForkedProcesses
from parallel_core import cli
from parallel_core.demo_server import DemoServerThread

KEY = "sk-test-0123456789abcdefghijklmnop"


@dataclass(frozen=True)
class Done:
    code: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """The whole output in one line."""
        return " ".join(f"{self.stdout} {self.stderr}".split())


def the_end_of(process: ForkedProcess) -> Done:
    return Done(process.wait(), process.stdout, process.stderr)


def in_this_process(arguments: Sequence[str], **options: Any) -> Done:
    """Run the command in this process. Only for runs that end before litellm is needed."""
    result = CliRunner().invoke(cli.app, ["run", *map(str, arguments)], **options)
    boxed = result.stderr.translate({ord(c): " " for c in "│╭╮╰╯─"})
    return Done(result.exit_code, result.stdout, boxed)


class Bench:
    """A folder, a server and a way to run the command there."""

    def __init__(self, folder: Path, server: DemoServerThread, commands: ForkedProcesses) -> None:
        self.folder = folder
        self.server = server
        self.commands = commands
        self.config("")
        server.set_capacity(None)
        server.release()
        server.reset_stats()

    def config(self, more: str, settings: str = "num_retries: 0, disable_cooldowns: true") -> None:
        self.path("config.yaml").write_text(
            "model_list:\n"
            "  - model_name: fast\n"
            "    litellm_params:\n"
            f"      {{model: openai/fast, api_base: '{self.server.url}', api_key: none{more}}}\n"
            f"router_settings: {{{settings}}}\n"
        )

    def path(self, name: str) -> Path:
        return self.folder / name

    def write(self, *demos: dict[str, Any], name: str = "in.jsonl", model: str = "fast") -> None:
        """Write a request for each of these orders to the server."""
        with self.path(name).open("w") as lines:
            for number, demo in enumerate(demos):
                body = {
                    "model": model,
                    "messages": [{"role": "user", "content": f"Question {number}."}],
                    "extra_body": {"demo": {"latency": 0.0, "reply": f"answer {number}", **demo}},
                }
                lines.write(json.dumps({"custom_id": f"id-{number}", "body": body}) + "\n")

    def start(self, *arguments: object, router: bool = True, **options: Any) -> ForkedProcess:
        words = ["run", *map(str, arguments), *(["--config=config.yaml"] if router else [])]
        return self.commands.start(words, folder=self.folder, **options)

    def run(self, *arguments: object, **options: Any) -> Done:
        return the_end_of(self.start(*arguments, **options))

    def go_on(self, said: str) -> Done:
        """Run the command that a run has named."""
        line = next(line for line in said.splitlines() if line.startswith("resume with: "))
        program, *arguments = shlex.split(line.removeprefix("resume with: "))
        assert program == "parallel-core"
        return the_end_of(self.commands.start(arguments, folder=self.folder))

    @property
    def accepted(self) -> int:
        return self.server.stats().accepted

    def results(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path(name).read_text().splitlines()]

    def ids(self, name: str = "out.jsonl") -> list[str]:
        return [result["custom_id"] for result in self.results(name)]


def ids(*numbers: int) -> list[str]:
    return [f"id-{number}" for number in numbers]


HANGS: dict[str, Any] = {"fault": "hang"}

HELD: dict[str, Any] = {"held": True}  # from server.hold() to server.release()

FAILS: dict[str, Any] = {"fault": "server_error"}

REFUSED: dict[str, Any] = {"no such order": True}
