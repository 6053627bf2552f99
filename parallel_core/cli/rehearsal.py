"""The command ``parallel-core demo --trouble``: a run of a file through what providers do."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import typer

from parallel_core.demo_server import DemoServerSettings, Trouble

from .terminal import program, shell_line

_REVOKED: Final = "demo-3"
_SHOWN: Final = (
    (
        Trouble("bad_key", key=_REVOKED),
        "the key of the model smart is refused: the run stops this model, the others go on",
    ),
    (
        Trouble("overloaded", key="demo-2", after=20, seconds=1.5),
        "one of the two deployments of fast is overloaded: its requests are sent again",
    ),
    (
        Trouble("rate_limited", share=0.05, retry_after=1),
        "one request in twenty is told to come back after a second",
    ),
    (
        Trouble("away", after=90, seconds=3),
        "the server goes away for three seconds: the run waits, and no request fails",
    ),
    (
        Trouble("request_too_large", model="fast", after=30, count=1),
        "one request is larger than the limit: it fails at once, since waiting cannot help",
    ),
    (
        Trouble("empty", model="fast", after=40, count=1),
        "one answer has no choices",
    ),
    (
        Trouble("cut", model="fast", after=50, count=2),
        "two answers are cut",
    ),
)
_MAY_FAIL: Final = 2  # the request that is too large, and the answer without choices
_DEPLOYMENTS: Final = (
    ("fast", "demo-1"),
    ("fast", "demo-2"),
    ("slow", "demo-1"),
    ("smart", _REVOKED),
)


def rehearse(run: Callable[[Sequence[str]], int], requests: Path, concurrency: int) -> int:
    """Run a file through trouble, and once more when the trouble is over.

    Args:
        run: runs the command line ``parallel-core`` with these words; returns its exit code.
        requests: a file with requests for the models fast, slow and smart.
        concurrency: calls in flight at most.

    Returns:
        0 if each request has exactly one line in the end, and no more have failed than are meant
        to; 1 if not; the code of a run that ended in another way, such as 130 by Ctrl-C.
    """
    from parallel_core.demo_server import demo_server_process

    # litellm would otherwise fetch its price map over the network at import.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    folder = Path(tempfile.mkdtemp(prefix="parallel-core-demo-"))
    output, config = folder / "answers.jsonl", folder / "config.yaml"
    command = ["run", str(requests), "-o", str(output), "--config", str(config)]
    command += ["--concurrency", str(concurrency)]
    settings = DemoServerSettings(trouble=[trouble for trouble, _ in _SHOWN])
    with demo_server_process(settings) as server:
        config.write_text(_config(server.url), encoding="utf-8")
        typer.echo("A server on this machine makes up the answers, and makes this trouble:\n")
        for trouble, meaning in _SHOWN:
            typer.echo(f"  {trouble.to_text()}\n      {meaning}")
        code = _act(run, command)
        if code not in (0, 1):
            return code
        problems = [] if code else ["the run ended with 0, though a key was refused"]
        server.set_trouble(())
        typer.echo(
            "\nExit code 1: a model was stopped, and requests have failed.\n"
            "The key is accepted from now on, as if you had replaced it. The same command sends "
            "what is left, and nothing else:"
        )
        code = _act(run, command)
        if code not in (0, 1):
            return code
    more_problems, told = _examine(requests, output)
    problems += more_problems
    report = shell_line([*program(), "report", str(output)])
    typer.echo(f"\n{told}\n\nWhat to look at:")
    for what, why in (
        ("the first run", "what it waited for, which model was stopped and why, what has failed"),
        (str(output), "the answers, and the failures in the provider's words"),
        (report, "both runs together: failures, attempts, latency"),
        ('docs/failures.md, "Rehearse it"', "the same trouble for a config of your own"),
    ):
        typer.echo(f"  {what}\n      {why}")
    for problem in problems:
        typer.echo(f"This should not be: {problem}", err=True)
    return 1 if problems else 0


def _act(run: Callable[[Sequence[str]], int], command: Sequence[str]) -> int:
    typer.echo(f"\n$ {shell_line([*program(), *command])}")
    return run(command)


def _config(url: str) -> str:
    """A config of litellm's proxy: JSON is YAML."""
    deployments = [
        {
            "model_name": model,
            "litellm_params": {"model": f"openai/{model}", "api_base": url, "api_key": key},
        }
        for model, key in _DEPLOYMENTS
    ]
    return json.dumps({"model_list": deployments}, indent=2) + "\n"


def _examine(requests: Path, output: Path) -> tuple[list[str], str]:
    """What is wrong with the output, and a sentence about it."""
    wanted = sum(1 for line in requests.read_text(encoding="utf-8").split("\n") if line.strip())
    seen = Counter[str]()
    failed = 0
    for line in output.read_text(encoding="utf-8").split("\n"):
        if line:
            result = json.loads(line)
            seen[result["custom_id"]] += 1
            answer = result["response"]
            failed += answer is None or answer["status_code"] != 200
    problems: list[str] = []
    if twice := [custom_id for custom_id, times in seen.items() if times > 1]:
        problems.append(f"{len(twice)} of the requests have more than one line, such as {twice[0]}")
    if len(seen) != wanted:
        problems.append(f"{wanted - len(seen)} of {wanted} requests have no line")
    if failed > _MAY_FAIL:
        problems.append(f"{failed} requests have failed, and at most {_MAY_FAIL} are meant to")
    return problems, (
        f"{wanted} requests, {sum(seen.values())} lines: {len(seen) - failed} answers, "
        f"{failed} {'failure' if failed == 1 else 'failures'}."
    )
