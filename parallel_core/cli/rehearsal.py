"""The command ``parallel-core demo --trouble``: a run of a file with failures of providers."""

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
        "the key of the model smart is refused: the run stops this model, the others continue",
    ),
    (
        Trouble("overloaded", key="demo-2", after=20, seconds=1.5),
        "one of the two deployments of fast is overloaded: its requests are sent again",
    ),
    (
        Trouble("rate_limited", share=0.05, retry_after=1),
        "one request in twenty gets a 429 that asks to wait for a second",
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
_MAY_FAIL: Final = 2  # the request that is too large, and the one whose answer has no choices
_DEPLOYMENTS: Final = (
    ("fast", "demo-1"),
    ("fast", "demo-2"),
    ("slow", "demo-1"),
    ("smart", _REVOKED),
)


def rehearse(run: Callable[[Sequence[str]], int], requests: Path, concurrency: int) -> int:
    """Run a file with trouble, and again when the trouble is over.

    Args:
        run: runs the command line ``parallel-core`` with these words, and returns its exit code.
        requests: a file with requests for the models fast, slow and smart.
        concurrency: maximum number of calls in flight.

    Returns:
        0 if each request has exactly one line in the end, and no more requests have failed than are
        meant to; else 1. If a run ended in another way, its exit code, such as 130 for Ctrl-C.
    """
    from parallel_core.demo_server import demo_server_process

    # Otherwise litellm fetches its price map over the network at import.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    folder = Path(tempfile.mkdtemp(prefix="parallel-core-demo-"))
    output, config = folder / "answers.jsonl", folder / "config.yaml"
    command = ["run", str(requests), "-o", str(output), "--config", str(config)]
    command += ["--concurrency", str(concurrency)]
    settings = DemoServerSettings(trouble=[trouble for trouble, _ in _SHOWN])
    with demo_server_process(settings) as server:
        config.write_text(_config(server.url), encoding="utf-8")
        typer.echo("A server on this machine sends synthetic answers, and makes this trouble:\n")
        for trouble, meaning in _SHOWN:
            typer.echo(f"  {trouble.to_text()}\n      {meaning}")
        code = _run_and_echo(run, command)
        if code not in (0, 1):
            return code
        problems = [] if code else ["the run ended with exit code 0, although a key was refused"]
        server.set_trouble(())
        typer.echo(
            "\nExit code 1: a model was stopped, and requests have failed.\n"
            "From now on the key is accepted, as if you had replaced it. The same command sends "
            "only the requests that are left:"
        )
        code = _run_and_echo(run, command)
        if code not in (0, 1):
            return code
    more_problems, counts = _examine(requests, output)
    problems += more_problems
    report = shell_line([*program(), "report", str(output)])
    typer.echo(f"\n{counts}\n\nWhat to look at:")
    for what, why in (
        ("the first run", "what it waited for, which model was stopped and why, what has failed"),
        (str(output), "the answers, and the failures in the provider's words"),
        (report, "both runs together: failures, attempts, latency"),
        ('docs/failures.md, "Rehearse it"', "the same trouble for your own config"),
    ):
        typer.echo(f"  {what}\n      {why}")
    for problem in problems:
        typer.echo(f"Unexpected: {problem}", err=True)
    return 1 if problems else 0


def _run_and_echo(run: Callable[[Sequence[str]], int], command: Sequence[str]) -> int:
    typer.echo(f"\n$ {shell_line([*program(), *command])}")
    return run(command)


def _config(url: str) -> str:
    """Return a config of litellm's proxy, as JSON, which is valid YAML."""
    deployments = [
        {
            "model_name": model,
            "litellm_params": {"model": f"openai/{model}", "api_base": url, "api_key": key},
        }
        for model, key in _DEPLOYMENTS
    ]
    return json.dumps({"model_list": deployments}, indent=2) + "\n"


def _examine(requests: Path, output: Path) -> tuple[list[str], str]:
    """Return the problems of the output, and a sentence with its counts."""
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
        requests_have = "1 request has" if len(twice) == 1 else f"{len(twice)} requests have"
        problems.append(f"{requests_have} more than one line, such as {twice[0]}")
    if len(seen) != wanted:
        missing = wanted - len(seen)
        problems.append(
            f"{missing} of {wanted} requests {'has' if missing == 1 else 'have'} no line"
        )
    if failed > _MAY_FAIL:
        problems.append(f"{failed} requests have failed, and at most {_MAY_FAIL} are meant to fail")
    return problems, (
        f"{wanted} requests, {sum(seen.values())} lines: {len(seen) - failed} answers, "
        f"{failed} {'failure' if failed == 1 else 'failures'}."
    )
