"""Which package a failed call has missed: from what, by which name, and what is said."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import Any

import pytest

from parallel_core.failures.missing_packages import MissingPackage, missing_package


@pytest.fixture(autouse=True)
def _requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    """What litellm requires."""
    required = [
        "mcp<3,>=2.2.0 ; extra == 'mcp'",
        "mcp<2 ; extra == 'older'",
        "Google_Cloud.Speech[x]>=2",
        "google-auth",
        "plain",
    ]
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda name: required if name == "litellm" else None
    )


def requirement_of(module: str) -> str:
    found = missing_package(f"No module named '{module}'", [])
    assert found is not None
    assert found.reason == f"No module named '{module}'"
    return found.requirement


def test_the_requirement_of_litellm() -> None:
    assert requirement_of("mcp") == "mcp<3,>=2.2.0"  # the first
    assert requirement_of("mcp.client.deep") == "mcp<3,>=2.2.0"
    assert requirement_of("google.cloud.speech.v2") == "Google_Cloud.Speech>=2"
    assert requirement_of("google_cloud_SPEECH") == "Google_Cloud.Speech>=2"
    assert requirement_of("google.auth") == "google-auth"
    assert requirement_of("plain") == "plain"


def test_nothing_where_litellm_itself_lacks_something() -> None:
    assert requirement_of("litellm.proxy") == ""
    assert requirement_of("litellm") == ""


def test_a_module_that_nobody_requires(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {
        "folder": importlib.machinery.ModuleSpec("folder", None),
        "package": importlib.machinery.ModuleSpec("package", None, origin="package/__init__.py"),
    }
    asked: list[str] = []

    def find_spec(name: str) -> Any:
        asked.append(name)
        return found.get(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert requirement_of("folder.auth.deep") == "folder-auth"
    assert requirement_of("package.auth") == "package"
    assert requirement_of("nowhere.auth") == "nowhere"
    assert requirement_of("folder") == "folder"
    assert asked == ["folder", "package", "nowhere"]


def test_without_litellm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: None)
    assert requirement_of("mcp") == "mcp"


@pytest.mark.parametrize(
    ("message", "causes", "expected"),
    [
        ("failed", [ValueError("No module named 'a'")], None),
        ("failed", [ImportError("not quoted", name="a")], None),
        ("failed", [ImportError(name="a")], None),
        ("so: quoted", [ImportError("quoted", name="a")], ("a", "quoted")),
        ("so: quoted", [ImportError("other", name="b"), ImportError("quoted")], ("b", "quoted")),
        ("so: quoted", [ImportError("quoted")], ("", "quoted")),
        # The message names the module that was really looked for.
        ("x No module named 'b' y", [ImportError("z", name="a")], ("b", "No module named 'b'")),
        ("cannot import name 'x' from 'b.c' (y)", [], ("b", "cannot import name 'x' from 'b.c'")),
        (
            "so: run pip install 'boto3-x[y]'",
            [ImportError("run pip install 'boto3-x[y]'", name="boto")],
            ("boto3-x", "run pip install 'boto3-x[y]'"),
        ),
        ('so: pip install "b.o"', [ImportError('pip install "b.o"')], ("b.o", 'pip install "b.o"')),
    ],
)
def test_what_says_that_a_package_is_missing(
    message: str, causes: Sequence[BaseException], expected: tuple[str, str] | None
) -> None:
    found = missing_package(message, causes)
    assert found == (None if expected is None else MissingPackage(*expected))


def test_what_is_said() -> None:
    plain = MissingPackage("plain", "why")
    assert plain.kind == "missing_dependency (pip install plain)"
    assert plain.message == "this request needs the package 'plain' (why): pip install plain"
    pinned = MissingPackage("a>=2", "why")
    assert pinned.kind == 'missing_dependency (pip install "a>=2")'
    assert pinned.message == "this request needs the package 'a' (why): pip install \"a>=2\""
    unknown = MissingPackage("", "why")
    assert unknown.kind == "missing_dependency"
    assert unknown.message == "this request needs a package that is not installed: why"
