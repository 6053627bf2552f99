"""A call that lacks a package says which one, and is no connection error."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.hosts import ASYNCIO_HOSTS
from helpers.routers import run_with_routers
from parallel_core.failures.missing_packages import missing_package
from parallel_core.files.line_failures import error_name, failure_of
from parallel_core.journal.run_statistics import CallStatistics, read_statistics
from parallel_core.run import RunSummary, run_file


class APIConnectionError(Exception):
    """As litellm's: with a status and no answer."""

    status_code = 500


REQUIREMENTS = ["mcp<3,>=2.2.0 ; extra == 'mcp'", "google-cloud-speech[x]>=2", "plain"]


@pytest.mark.parametrize(
    ("module", "pip"),
    [
        ("mcp", 'pip install "mcp<3,>=2.2.0"'),
        ("mcp.types", 'pip install "mcp<3,>=2.2.0"'),
        ("google.cloud.speech", 'pip install "google-cloud-speech>=2"'),
        ("plain", "pip install plain"),
        ("nowhere", "pip install nowhere"),
        ("nowhere.deeper", "pip install nowhere"),
        ("json.deeper", "pip install json"),
        ("a_folder.auth", "pip install a_folder-auth"),
    ],
)
def test_what_pip_has_to_install(
    module: str, pip: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a_folder").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("importlib.metadata.requires", lambda _: REQUIREMENTS)
    error = APIConnectionError(f"APIConnectionError: OpenAIException - No module named '{module}'")
    failure = failure_of(error)
    assert (failure.status_code, failure.code) == (None, "missing_dependency")
    assert failure.message.endswith(f": {pip}")
    assert f"No module named '{module}'" in failure.message
    assert error_name(error) == f"missing_dependency ({pip})"


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "requirement"),
    [
        (ModuleNotFoundError("No module named 'a'", name="a"), "a"),
        (ImportError("Missing boto3 to call it. Run 'pip install boto3'."), "boto3"),
        (ImportError("cannot import name 'b' from 'c'", name="c"), "c"),
        (ImportError("it is not there"), ""),
        (APIConnectionError("cannot import name 'b' from 'litellm.c' (c.py)"), ""),
        (
            caused_by(
                APIConnectionError("APIConnectionError: cannot import name 'b' from 'c'"),
                ImportError("cannot import name 'b' from 'c'", name="c"),
            ),
            "c",
        ),
        # The package was done without: the call has failed for another reason.
        (caused_by(APIConnectionError("refused"), ImportError("No module named 'a'")), None),
        (caused_by(APIConnectionError("refused"), ImportError()), None),
        (ConnectionResetError("reset"), None),
    ],
    ids=lambda value: None if isinstance(value, str | None) else str(value),
)
def test_which_package_is_missing(error: Exception, requirement: str | None) -> None:
    found = missing_package(str(error), [error, *filter(None, [error.__context__])])
    assert (None if found is None else found.requirement) == requirement
    code = failure_of(error).code
    assert (code == "missing_dependency") is (requirement is not None)
    assert bool(failure_of(error).message)


def test_an_answer_of_a_provider_is_no_missing_package() -> None:
    error = APIConnectionError("No module named 'a'")
    error.body = {"message": "No module named 'a'"}  # type: ignore[attr-defined]
    assert (failure_of(error).status_code, failure_of(error).code) == (500, None)
    assert error_name(error) == "APIConnectionError"


class Without:
    """A finder that finds nothing of a package."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == self._package or name.startswith(f"{self._package}."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def test_a_run_names_the_package_that_litellm_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the lines, the statistics (which the report reads) and the counts of the terminal."""
    from litellm.router import Router

    for name in [name for name in sys.modules if name.startswith("google.auth")]:
        monkeypatch.delitem(sys.modules, name)
    if importlib.util.find_spec("google") is None:  # then litellm would miss that first
        google = ModuleType("google")
        google.__path__ = []
        google.__spec__ = importlib.machinery.ModuleSpec("google", None, is_package=True)
        monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setattr(sys, "meta_path", [Without("google.auth"), *sys.meta_path])
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    (tmp_path / "in.jsonl").write_text(json.dumps({"custom_id": "a", "body": body}) + "\n")
    parameters: Any = {
        "model": "vertex_ai/gemini-2.0-flash",
        "vertex_project": "project",
        "vertex_location": "us-central1",
    }
    summaries: list[RunSummary] = []

    async def main() -> None:
        router = Router(
            model_list=[{"model_name": "m", "litellm_params": parameters}], num_retries=0
        )
        summaries.append(await run_file(router, tmp_path / "in.jsonl", tmp_path / "out.jsonl"))

    run_with_routers(ASYNCIO_HOSTS[0], main)
    (summary,) = summaries
    pip = "missing_dependency (pip install google-auth)"
    (group,) = summary.failures
    assert (group.kind, group.count) == ("unknown", 1)
    assert group.message.endswith("pip install google-auth")
    line = json.loads((tmp_path / "out.jsonl").read_text())
    assert line["response"] is None
    assert line["error"] == {
        "code": "missing_dependency",
        "message": "this request needs the package 'google-auth' "
        "(No module named 'google.auth'): pip install google-auth",
    }
    assert summary.paths.statistics is not None
    records = read_statistics(summary.paths.statistics)
    assert [record.error for record in records if isinstance(record, CallStatistics)] == [pip]
