"""What commands write: texts that no terminal obeys, in whatever encoding, and JSON lines."""

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
from typing import IO, Any, Final, TextIO

import msgspec
from rich.console import Console

_PROGRAM: Final = "parallel-core"
_HARMLESS: Final = "\n\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}"


def printable(text: str) -> str:
    """Escape what a terminal would obey: control characters, and those that turn the writing round.

    Line feeds stay. Names of models, ids, file names and errors of providers come from elsewhere.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in _HARMLESS else _escaped(letter)
        for letter in text
    )


def printable_name(name: object) -> str:
    """:func:`printable` in one line: the name of a file."""
    return printable(str(name)).replace("\n", "\\n")


def _escaped(letter: str) -> str:
    if letter <= "\x7f":
        return repr(letter)[1:-1]
    return letter.encode("ascii", "backslashreplace").decode()


def json_line(**fields: Any) -> str:
    """An object as a line of JSON in ASCII, which every encoding has and no terminal obeys."""
    return json.dumps(msgspec.to_builtins(fields), separators=(",", ":"))


def survive_any_encoding() -> None:
    """Have characters escaped that standard output cannot encode: a run does not end for those."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def is_live(stream: IO[str]) -> bool:
    """Whether a stream is a terminal on which lines can be drawn again."""
    with contextlib.suppress(ValueError):  # it is closed
        return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return False


class _Console(Console):
    """A console whose reader may go away: rich would end the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What is in its buffer would fail once more when Python ends.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)


def console(*, stderr: bool = False) -> Console:
    """A console that prints what it is given: no markup, and no colours of its own choice."""
    return _Console(stderr=stderr, highlight=False, markup=False, emoji=False)


@contextlib.contextmanager
def as_far_as_it_is_seen() -> Generator[None]:
    """A terminal that has gone, or a pipe that nobody reads, is no reason to end a run."""
    # ValueError: the stream is closed.
    with contextlib.suppress(OSError, ValueError):
        yield


# --- commands that can be pasted ---


def program() -> list[str]:
    """How this program was started: the words before its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.partition(".")[0] == "parallel_core":
        return [_shortest(sys.executable), "-m", spec.name.removesuffix(".__main__")]
    script = sys.argv[0]
    return [_shortest(script) if Path(script).stem == _PROGRAM else _PROGRAM]


def _shortest(program: str) -> str:
    """The name of a program where the shell finds that one by its name, else its path."""
    name = Path(program).name
    found = shutil.which(name)
    # Not what links point to: the Python of a virtual environment is a link to another one.
    is_found = found is not None and Path(found).absolute() == Path(program).absolute()
    return name if is_found else program


def _is_encoded_by(stream: TextIO | None, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shell_line(words: Sequence[str]) -> str:
    """A command as one line for a shell."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if word.isprintable() and _is_encoded_by(sys.stdout, word):
        return shlex.quote(word)
    # A name may hold line feeds, control characters, and bytes that are no text.
    letters = (
        chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\{byte:03o}"
        for byte in os.fsencode(word)
    )
    return f"$'{''.join(letters)}'"
