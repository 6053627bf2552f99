"""The demo server in another process. This module does not import the server itself."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, Final

from .recording import RecordedRequest
from .settings import DemoServerSettings
from .stats import DemoServerStats
from .trouble import Trouble

_STOP_TIMEOUT: Final = 5.0  # seconds for a process to stop before it is killed
# The server needs nothing else of the package, which takes a second to import.
_PROGRAM: Final = """
import sys, types
package = sys.modules["parallel_core"] = types.ModuleType("parallel_core")
package.__path__ = [sys.argv.pop(1)]
from parallel_core.demo_server.command import main
main()
"""


class DemoServerProcess:
    """A demo server in another process, made by :func:`demo_server_process`.

    The methods use HTTP. While the server is away, every method raises ``OSError``.

    Attributes:
        url: address for clients, ``http://127.0.0.1:<port>/v1``.
        pid: the id of the process.
    """

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid

    def stats(self) -> DemoServerStats:
        """Return the current counts."""
        return self._ask("stats", "GET")

    def requests(self) -> list[RecordedRequest]:
        """Return :attr:`DemoServer.requests`. Raises ``OSError`` if none are kept."""
        return RecordedRequest.all_from_json(self._ask_json("requests", "GET"))

    def reset_stats(self) -> None:
        """Call :meth:`DemoServer.reset_stats`."""
        self._ask("stats/reset", "POST")

    def set_capacity(self, capacity: int | None) -> None:
        """Call :meth:`DemoServer.set_capacity`."""
        self._ask("capacity", "POST", json.dumps({"capacity": capacity}).encode())

    def set_trouble(self, trouble: Iterable[Trouble]) -> None:
        """Call :meth:`DemoServer.set_trouble`. An unknown model raises ``OSError``."""
        body = {"trouble": [one.to_json() for one in trouble]}
        self._ask("trouble", "POST", json.dumps(body).encode())

    def go_away(self, seconds: float) -> None:
        """Call :meth:`DemoServer.go_away`, for ``seconds`` above 0."""
        Trouble("away", seconds=seconds)
        self._ask("away", "POST", json.dumps({"seconds": seconds}).encode())

    def hold(self) -> None:
        """Call :meth:`DemoServer.hold`."""
        self._ask("hold", "POST")

    def release(self) -> None:
        """Call :meth:`DemoServer.release`."""
        self._ask("release", "POST")

    def _ask(self, path: str, method: str, body: bytes | None = None) -> DemoServerStats:
        return DemoServerStats.from_json(self._ask_json(path, method, body))

    def _ask_json(self, path: str, method: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.url.removesuffix('v1')}{path}", data=body, method=method
        )
        # The environment may name a proxy, which cannot reach this host's loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as response:
            return json.load(response)


@contextlib.contextmanager
def demo_server_process(
    settings: DemoServerSettings | None = None,
    *,
    port: int = 0,
    meanwhile: Callable[[], object] | None = None,
) -> Generator[DemoServerProcess, None, None]:
    """Run a demo server in another process, for the time of the ``with`` block.

    It ends when this process ends, in whatever way. Ctrl-C does not end it: the signals of a
    terminal do not reach it, so that requests in flight still get their answers.

    Args:
        settings: settings of the server; ``None``: the defaults.
        port: the TCP port to listen on; 0: any free port.
        meanwhile: called while the server starts.
    """
    options = [
        "--until-stdin-closes",
        f"--port={port}",
        *(settings or DemoServerSettings()).to_arguments(),
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(Path(__file__).resolve().parents[1]), *options],
        # Nothing is written to this pipe. It closes when this process ends, even by SIGKILL.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A terminal sends its signals to all processes of a session, or of a console.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    with process:  # at its end, this closes the pipe and waits for the process
        try:
            if meanwhile is not None:
                meanwhile()
            assert process.stdout is not None
            first_line = process.stdout.readline()
            if not first_line:
                raise RuntimeError(f"the demo server did not start: exit code {process.wait()}")
            yield DemoServerProcess(json.loads(first_line)["url"], process.pid)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
