"""Output of commands: text without control characters, in any encoding, and JSON lines."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import msgspec
from rich.console import Console

_PROGRAM: Final = "parallel-core"


def json_line(**fields: Any) -> str:
    """Return an object as a line of JSON in ASCII, which is safe in every encoding and terminal."""
    return json.dumps(msgspec.to_builtins(fields), separators=(",", ":"))


def survive_any_encoding() -> None:
    """Escape characters that standard output and standard error cannot encode.

    So such characters do not end a run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


class _Console(Console):
    """A console whose reader may go away. rich's own console would end the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # Otherwise writing the rest of the buffer would fail again when Python exits.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text unchanged: without markup and automatic colours."""
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False)


@contextlib.contextmanager
def ignore_output_errors() -> Generator[None]:
    """Ignore errors of output: a closed terminal or pipe must not end a run."""
    # A closed stream raises ValueError.
    with contextlib.suppress(OSError, ValueError):
        yield


# --- commands that can be pasted ---


def program() -> list[str]:
    """Return the words that start this program, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.partition(".")[0] == "parallel_core":
        return [_shortest(sys.executable), "-m", spec.name.removesuffix(".__main__")]
    script = sys.argv[0]
    return [_shortest(script) if Path(script).stem == _PROGRAM else _PROGRAM]


def _shortest(program: str) -> str:
    """Return the name of a program if the shell finds it by its name, else its path."""
    name = Path(program).name
    found = shutil.which(name)
    # Links are not resolved: the Python of a virtual environment is a link to another Python.
    is_found = found is not None and Path(found).absolute() == Path(program).absolute()
    return name if is_found else program


def _is_encoded_by(stream: TextIO | None, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shell_line(words: Sequence[str]) -> str:
    """Return a command as one line for a shell."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if word.isprintable() and _is_encoded_by(sys.stdout, word):
        return shlex.quote(word)
    # A name may contain line feeds, control characters, and bytes that are not text.
    letters = (
        chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\{byte:03o}"
        for byte in os.fsencode(word)
    )
    return f"$'{''.join(letters)}'"
