"""Note every error that the package makes, in each process that has this folder on its path.

An import hook: the modules of the package are compiled with a call around each construction of an
error. The file that ``PARALLEL_CORE_MESSAGES`` names gets a JSON line for each.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PACKAGE = "parallel_core"
NOTE = "__note_error__"
MOST_OF_ONE_PLACE = 20  # for each place and process


def is_error_call(node: ast.AST) -> bool:
    """True if a node makes an error: a call of a class whose name says so.

    AttributeError is Python's own protocol.
    """
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func).rpartition(".")[2].lstrip("_")
    is_error = name.endswith(("Error", "BadParameter", "InputProblem"))
    return is_error and name[:1].isupper() and name != "AttributeError"


def text_of(error: Any) -> str:
    """The text that a user reads."""
    parts = [getattr(error, name, None) for name in ("message", "hint")]
    texts = [part for part in parts if isinstance(part, str)]
    return "; ".join(texts) if texts else str(error)


class Noting(ast.NodeTransformer):
    """Puts a call around each construction of an error."""

    def __init__(self, file: str) -> None:
        self._file = file

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not is_error_call(node):
            return node
        place = ast.Constant(self._file), ast.Constant(node.lineno)
        arguments: list[ast.expr] = [node, *place]
        noted = ast.Call(ast.Name(NOTE, ast.Load()), arguments, [])
        return ast.fix_missing_locations(ast.copy_location(noted, node))


class Loader(SourceFileLoader):
    """Compiles a module of the package anew, whatever bytecode there is."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        file = path.partition(f"{os.sep}{PACKAGE}{os.sep}")[2] or Path(path).name
        tree = Noting(file).visit(ast.parse(Path(path).read_bytes()))
        code: CodeType = compile(tree, path, "exec")
        return code


class Finder:
    """Finds the modules of the package, for :class:`Loader`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] != PACKAGE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


def install(notes: str) -> None:
    """Note the errors of this process in a file."""
    known: dict[tuple[str, int], set[str]] = {}

    def note(error: Any, file: str, line_number: int) -> Any:
        texts = known.setdefault((file, line_number), set())
        if len(texts) < MOST_OF_ONE_PLACE:
            text = text_of(error)
            if text not in texts:
                texts.add(text)
                line = json.dumps([file, type(error).__name__, text]) + "\n"
                with suppress(OSError):  # a test that forbids this process to write
                    descriptor = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                    try:
                        os.write(descriptor, line.encode())
                    finally:
                        os.close(descriptor)
        return error

    setattr(builtins, NOTE, note)
    sys.meta_path.insert(0, Finder)


if "PARALLEL_CORE_MESSAGES" in os.environ:
    install(os.environ["PARALLEL_CORE_MESSAGES"])
