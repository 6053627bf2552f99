"""litellm's own proxy, in a process and an environment of its own, in front of a demo server."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

REPOSITORY: Final = Path(__file__).resolve().parent.parent.parent
START_TIMEOUT: Final = 180.0  # seconds: it imports for half a minute on a busy machine


class Proxy(NamedTuple):
    """A running proxy: the address of its API, and the only key that it accepts."""

    url: str
    key: str


def python_of_the_proxy() -> Path:
    """Return the Python that has the proxy's packages.

    Raises:
        FileNotFoundError: it was not made.
    """
    named = os.environ.get("PARALLEL_CORE_PROXY_PYTHON")
    python = Path(named) if named else REPOSITORY / ".venv-proxy" / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(
            f"{python} is not there: litellm's proxy needs an environment of its own. "
            "`make .venv-proxy/installed` makes it; PARALLEL_CORE_PROXY_PYTHON names another one"
        )
    return python


@contextlib.contextmanager
def litellm_proxy(
    deployments: Mapping[str, Mapping[str, Any]], folder: Path, **settings: Any
) -> Iterator[Proxy]:
    """Run a proxy.

    Args:
        deployments: the parameters of the deployment of each of its models.
        folder: an empty one, for its configuration and its log.
        settings: of its Router.
    """
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": dict(parameters)}
            for name, parameters in deployments.items()
        ],
        "router_settings": settings,
    }
    path, log = folder / "config.yaml", folder / "proxy.log"
    path.write_text(json.dumps(config))  # JSON is YAML
    key = f"sk-{secrets.token_hex(16)}"
    environment = {
        **os.environ,
        "CONFIG_FILE_PATH": str(path),
        "LITELLM_MASTER_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    environment.pop("PYTHONPATH", None)
    with socket.socket() as listener, log.open("w") as output:
        # It is ours, so no other process gets the port; connections wait until the proxy is there.
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        process = subprocess.Popen(
            [
                *(python_of_the_proxy(), "-m", "uvicorn", "litellm.proxy.proxy_server:app"),
                *("--fd", str(listener.fileno()), "--log-level", "warning"),
            ],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[listener.fileno()],
        )
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            listener.close()  # if the process dies, the connections are refused
            _wait(f"{url}/health/liveliness", log)
            yield Proxy(f"{url}/v1", key)
        finally:
            process.kill()  # it would wait for requests that are never answered
            process.wait()


def _wait(url: str, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=START_TIMEOUT) as answer:
            answer.read()
    except OSError as error:
        end = log.read_text()[-3000:]
        raise RuntimeError(f"litellm's proxy does not start ({error}):\n{end}") from error
