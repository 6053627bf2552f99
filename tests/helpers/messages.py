"""The texts of the package's errors, in its source and in the catalogue of those that were met."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from messages_hook.sitecustomize import is_error_call

from .snippets import REPOSITORY

PACKAGE = REPOSITORY / "parallel_core"
# Errors that are caught where they are made, or that only a bug can cause: no user reads them.
INTERNAL = {"NotAlikeError", "NotJsonError", "_RecordedError", "CutOffError", "AssertionError"}
# Errors that no test meets, by file, with the reason.
UNMET = {
    ("files/formats/json_array.py", "there is no array in the file"): "a file without a bracket is "
    "read as another format",
    ("files/formats/json_lines.py", "was a request when the file was checked"): "the digest of the "
    "file is compared first",
    ("files/endpoints/bodies.py", "InvalidRequestError"): "the check of the line is first",
    ("files/endpoints/responses.py", "InvalidRequestError"): "the check of the line is first",
    ("journal/journal.py", "cannot be sorted"): "a file that is replaced while the run ends",
    ("journal/lock.py", "cannot be opened"): "Windows",
    ("journal/path_checks.py", "cannot be used"): "names that Python 3.11 cannot resolve",
    ("ray_engine/worker.py", "the worker crashed"): "an exit in the loop of a worker",
    ("report/reading.py", "cannot be read"): "a disk that cannot be read; the tests are root",
}
CATALOGUE = REPOSITORY / "tests" / "project" / "messages.txt"


@dataclass(frozen=True)
class Met:
    """An error that was met in a test: the file that made it, its class, its text."""

    file: str
    kind: str
    text: str


@dataclass(frozen=True)
class Template:
    """An error as the source has it. The pattern is None where the class makes the text."""

    file: str
    line: int
    kind: str
    pattern: str | None

    @property
    def reason_unmet(self) -> str | None:
        """Why no test meets it, if it is among those."""
        for (file, text), reason in UNMET.items():
            if file == self.file and (text == self.kind or re.escape(text) in (self.pattern or "")):
                return reason
        return None

    def fits(self, met: Met) -> bool:
        if (met.file, met.kind) != (self.file, self.kind):
            return False
        return self.pattern is None or re.search(self.pattern, met.text, re.DOTALL) is not None


@functools.cache
def templates() -> list[Template]:
    """Every error that the source makes and a user may read."""
    return list(_templates())


def _templates() -> Iterator[Template]:
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        names = _Names(tree)
        for node in ast.walk(tree):
            if is_error_call(node):
                assert isinstance(node, ast.Call)
                kind = ast.unparse(node.func).rpartition(".")[2]
                if kind in INTERNAL:
                    continue
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
                patterns = [_pattern(names.value_of(value)) for value in values]
                yield Template(
                    path.relative_to(PACKAGE).as_posix(),
                    node.lineno,
                    kind,
                    max(filter(None, patterns), key=len, default=None),
                )


class _Names:
    """What the names of a module stand for: the assignment before their use."""

    def __init__(self, tree: ast.Module) -> None:
        self._assigned: dict[str, list[tuple[int, ast.expr]]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                targets, value = node.targets, node.value
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                targets, value = [node.target], node.value
            else:
                continue
            for target in targets:
                if isinstance(target, ast.Name):
                    self._assigned.setdefault(target.id, []).append((node.lineno, value))

    def value_of(self, value: ast.expr) -> ast.expr:
        """The expression that a name stands for; other expressions as they are."""
        if isinstance(value, ast.List) and len(value.elts) == 1:
            value = value.elts[0]
        if not isinstance(value, ast.Name):
            return value
        before = [one for one in self._assigned.get(value.id, []) if one[0] < value.lineno]
        return max(before, key=lambda one: one[0])[1] if before else value


def _pattern(value: ast.expr) -> str | None:
    """A regular expression for the text of an expression; None if it has no text of its own."""
    match value:
        case ast.Constant(value=str(text)):
            return None if re.fullmatch("[a-z_]+", text) else re.escape(text)  # None: a code
        case ast.JoinedStr(values=parts):
            return "".join(_pattern(part) or ".*" for part in parts)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return f"{_pattern(left) or '.*'}{_pattern(right) or '.*'}"
        case ast.IfExp(body=body, orelse=other):
            one, two = _pattern(body), _pattern(other)
            return f"(?:{one or '.*'}|{two or '.*'})" if one or two else None
    return None


def catalogue() -> list[Met]:
    """The errors that were met, as ``make messages`` has written them."""
    found: list[Met] = []
    file = ""
    for block in re.split(r"\n(?=\S)", CATALOGUE.read_text().rstrip("\n")):
        if block.startswith("# "):
            continue
        if block.startswith("== "):
            file = block.removeprefix("== ").strip()
            continue
        kind, _, text = block.partition("\n")
        lines = [line.removeprefix("    ") for line in text.rstrip("\n").split("\n")]
        found.append(Met(file, kind.strip(), "\n".join(lines)))
    return found


def write_catalogue(met: list[Met]) -> None:
    """Write the catalogue, file by file."""
    lines = [
        "# One example of each error that the package can raise, met in its tests: make messages.",
        "# A reader must see what is wrong, where, and what to do.",
    ]
    for file in sorted({one.file for one in met}):
        lines += ["", f"== {file}"]
        for one in sorted((one for one in met if one.file == file), key=lambda one: one.text):
            indented = "\n".join(f"    {line}" for line in one.text.split("\n"))
            lines += [one.kind, indented]
    # A text may hold half of a character: a file name that is no UTF-8.
    CATALOGUE.write_text("\n".join(lines) + "\n", errors="backslashreplace")
