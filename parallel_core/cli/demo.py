"""The command ``parallel-core demo``: runs through trouble, against a server on this machine.

Each part is a command line of this program that a user could type, run as it is. What is said about
it afterwards comes from its exit code, from its output file and from the counts of the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from parallel_core.demo_server import DemoServerSettings, DemoServerStats, Trouble

from .terminal import console, program, shell_line

if TYPE_CHECKING:
    from parallel_core.demo_server import DemoServerProcess

_CONCURRENCY: Final = 24
_INTERRUPTED: Final = 130  # exit code
_REQUESTS: Final = 150  # so that it takes less than a minute on a busy machine
_INTERRUPT_AFTER: Final = 40  # answers on disk
_PATIENCE: Final = 10.0  # seconds until the server notices a closed connection, at the latest
# USD per token, made up like the answers.
_PRICES: Final = {"input_cost_per_token": 5e-6, "output_cost_per_token": 2e-5}
_TROUBLE: Final = (
    (
        Trouble("hang", after=110, count=1),
        "one request is never answered: --attempt-timeout ends it, and it is sent again",
    ),
    (
        Trouble("rate_limited", share=0.1, retry_after=1),
        "one request in ten gets a 429 that asks to wait for a second",
    ),
    (
        Trouble("away", after=50, seconds=3),
        "the server goes away for three seconds",
    ),
)


class UnexpectedError(Exception):
    """A part of the demo has ended in another way than it should. The text says how."""


class StoppedError(Exception):
    """The user has stopped a run of the demo, or it could not write its answers.

    Attributes:
        code: exit code of the run.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def demo(run: Callable[[Sequence[str]], int], requests: Path) -> int:
    """Show runs with trouble, an interrupted run, and a run that fails fast.

    Args:
        run: runs the command line ``parallel-core`` with these words, and returns its exit code.
        requests: a file with requests for the models fast, slow and smart.

    Returns:
        0 if all went as it should, 1 if not. If a run was stopped, its exit code, such as 130 for
        Ctrl-C.
    """
    from parallel_core.demo_server import demo_server_process

    # Otherwise litellm fetches its price map over the network at import.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    folder = Path(tempfile.mkdtemp(prefix="parallel-core-demo-"))
    first = requests.read_bytes().splitlines(keepends=True)[:_REQUESTS]
    (folder / "requests.jsonl").write_bytes(b"".join(first))
    with contextlib.chdir(folder), demo_server_process() as server:
        Path("config.yaml").write_text(_config(server.url), encoding="utf-8")
        show = _Demo(run, server)
        _say(
            "A server on this machine answers with made-up texts. Nothing leaves this machine, and "
            f"nothing costs money. The files are in {folder}."
        )
        try:
            show.trouble()
            show.interrupted()
            show.fail_fast()
        except StoppedError as error:
            return error.code
        except UnexpectedError as error:
            _say(f"Unexpected: {error}")
            return 1
        show.report(folder)
    return 0


class _Demo:
    """The parts of the demo. Each raises :class:`UnexpectedError` or :class:`StoppedError`.

    They run in the folder of ``requests.jsonl``.
    """

    def __init__(self, run: Callable[[Sequence[str]], int], server: DemoServerProcess) -> None:
        self._run = run
        self._server = server
        self._total = _lines(Path("requests.jsonl"))

    def trouble(self) -> None:
        """Run a file while requests fail, and the server goes away. Every request is answered."""
        _title("1. Trouble", *(f"- {meaning}" for _, meaning in _TROUBLE))
        self._begin([trouble for trouble, _ in _TROUBLE])
        code = self._command("answers.jsonl", "--max-cost", "1", "--attempt-timeout", "7")
        if code == _INTERRUPTED:
            raise StoppedError(code)
        faults = self._server.stats().faults
        _check(code == 0, f"the run ended with exit code {code}, and not every request is answered")
        self._check_lines(Path("answers.jsonl"))
        _say(
            f"{self._total} of {self._total} requests are answered, although the server refused "
            f"{faults.get('rate_limited', 0)} with a 429, cut off {faults.get('away', 0)} when it "
            f"went away, and left {faults.get('hang', 0)} without an answer."
        )

    def interrupted(self) -> None:
        """Interrupt a run as Ctrl-C does, and run the same command again."""
        output = Path("resumed.jsonl")
        _title(
            "2. Ctrl-C",
            f"After {_INTERRUPT_AFTER} answers the demo presses Ctrl-C. The same command resumes.",
        )
        self._begin([])
        with _ctrl_c_after(output, _INTERRUPT_AFTER) as was_pressed:
            code = self._command(output.name)
        if not was_pressed.is_set() and code == _INTERRUPTED:
            raise StoppedError(code)
        _check(code == _INTERRUPTED, f"the interrupted run ended with exit code {code}, not 130")
        first = _lines(output)
        code = self._command(output.name)
        if code == _INTERRUPTED:
            raise StoppedError(code)
        _check(code == 0, f"the resumed run ended with exit code {code}")
        self._check_lines(output)
        sent = self._server.stats().accepted
        # On Windows a loop has no signal handlers: calls in flight are cancelled, and sent again.
        _check(sent == self._total or os.name == "nt", f"{sent} requests were sent")
        _say(
            f"{first} lines before Ctrl-C and with the calls in flight then, {self._total - first} "
            f"after it. The server was asked {sent} times for {self._total} answers."
        )

    def fail_fast(self) -> None:
        """End a run at its first failure, and ask the server when its calls were cancelled."""
        others = _CONCURRENCY - 1
        _title(
            "3. Fail fast",
            f"{_CONCURRENCY} calls are in flight. The server refuses the last one, and would never "
            f"answer the other {others}.",
        )
        self._begin([Trouble("content_refused", after=others, count=1), Trouble("hang")])
        options = ["--limit", str(_CONCURRENCY), "--fail-fast", "--grace", "0"]
        code = self._command("failed.jsonl", *options)
        if code == _INTERRUPTED:
            raise StoppedError(code)
        stats = self._idle()
        finished, cancelled = stats.last_finished_at, stats.last_disconnected_at
        _check(code == 1, f"the run ended with exit code {code}, not 1")
        _check(
            stats.disconnected == others and finished is not None and cancelled is not None,
            f"the server saw {stats.disconnected} of {others} calls cancelled",
        )
        assert finished is not None
        assert cancelled is not None
        _say(
            f"The server saw {stats.disconnected} calls cancelled, the last one "
            f"{1000 * (cancelled - finished):,.0f} ms after it had refused the request. None is in "
            "flight any more."
        )

    def report(self, folder: Path) -> None:
        """Write the page of the first run, and say where it is."""
        from parallel_core.report import html_page, summarize

        _title("4. The report")
        Path("report.html").write_text(html_page(summarize("answers.jsonl")), encoding="utf-8")
        _say(
            f"The first run, with its charts: {folder / 'report.html'}",
            f"In the terminal: {shell_line([*program(), 'report', str(folder / 'answers.jsonl')])}",
            f"Your own trouble: {shell_line([*program(), 'demo-server', '--help'])}",
            is_command=True,
        )

    def _begin(self, trouble: Sequence[Trouble]) -> None:
        """Let the server make this trouble from now on, and count from 0."""
        self._server.reset_stats()
        self._server.set_trouble(trouble)

    def _command(self, output: str, *options: str) -> int:
        """Run the file, as the user would. Return the exit code."""
        words = ["run", "requests.jsonl", "-o", output, "--config", "config.yaml"]
        more = ["--concurrency", str(_CONCURRENCY), *options]
        # A backslash lets it be copied from a narrow terminal.
        shown = f"$ {shell_line([*program(), *words])} \\", f"    {shell_line(more)}"
        _say(*shown, is_command=True)
        return self._run([*words, *more])

    def _check_lines(self, output: Path) -> None:
        """Check that each request has exactly one line, with an answer."""
        results = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        seen = Counter(result["custom_id"] for result in results)
        _check(
            len(seen) == len(results) == self._total,
            f"{output} has {len(results)} lines for {len(seen)} of {self._total} requests",
        )
        failed = [one for one in results if not _is_answered(one)]
        _check(not failed, f"{len(failed)} requests in {output} have no answer")

    def _idle(self) -> DemoServerStats:
        """Return the counts of the server when no call is in flight any more."""
        deadline = time.monotonic() + _PATIENCE
        while (stats := self._server.stats()).in_flight:
            _check(time.monotonic() < deadline, f"{stats.in_flight} calls are still in flight")
            time.sleep(0.01)
        return stats


@contextlib.contextmanager
def _ctrl_c_after(output: Path, answers: int) -> Generator[threading.Event]:
    """Send this process the signal of Ctrl-C when a file has so many lines.

    Where the signal is ignored, as in the background of a script, it is not ignored meanwhile.

    Yields an event: it is set once the signal was sent.
    """
    pressed, ended = threading.Event(), threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        while not ended.wait(0.02):
            if _lines(output) >= answers:
                pressed.set()
                _press_ctrl_c()
                return

    thread = threading.Thread(target=press, name="ctrl-c", daemon=True)
    thread.start()
    try:
        yield pressed
    finally:
        ended.set()
        thread.join()
        if before is signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)


def _press_ctrl_c() -> None:
    main_thread = threading.main_thread().ident
    if os.name == "nt" or main_thread is None:
        signal.raise_signal(signal.SIGINT)
    else:  # the main thread may be waiting in a system call
        signal.pthread_kill(main_thread, signal.SIGINT)


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _is_answered(result: Mapping[str, Any]) -> bool:
    response = result["response"]
    return response is not None and response["status_code"] == 200


def _check(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise UnexpectedError(otherwise)


def _title(title: str, *lines: str) -> None:
    console().print(Text(f"\n{title}", style="bold"))
    for line in lines:
        console().print(Text(line))


def _say(*lines: str, is_command: bool = False) -> None:
    """Print lines. Commands and paths are not wrapped, so that they can be copied."""
    output = console()
    output.print()
    for line in lines:
        output.print(Text(line), soft_wrap=is_command or not output.is_terminal)


def _config(url: str) -> str:
    """Return a config of litellm's proxy, as JSON, which is valid YAML."""
    deployments = [
        {
            "model_name": model,
            "litellm_params": {
                "model": f"openai/{model}",
                "api_base": url,
                "api_key": "demo",
                **_PRICES,
            },
        }
        for model in DemoServerSettings().models
    ]
    return json.dumps({"model_list": deployments}, indent=2) + "\n"
