"""How a process makes its Router: for now by a function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

RouterSource: TypeAlias = Callable[[], Any]


class Recipe:
    """Makes a Router in whatever process it is opened in."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @contextlib.contextmanager
    def open(self) -> Generator[Any]:
        """Give a new Router, and undo on leaving what its making has done in this process."""
        with contextlib.ExitStack() as held:
            made = self._make()
            if hasattr(type(made), "__enter__"):
                made = held.enter_context(made)
            elif callable(discard := getattr(made, "discard", None)):
                held.callback(discard)  # litellm knows each Router in its whole process
            yield made if hasattr(made, "acompletion") else getattr(made, "router", made)


def checked_recipe(source: RouterSource) -> Recipe:
    """The recipe of what a user gives; no Router is made.

    Raises:
        TypeError: it is no function.
    """
    given: object = source
    if hasattr(given, "acompletion") and not isinstance(given, type):
        raise TypeError(
            f"a Router ({type(given).__name__}) cannot be sent to another process: give a function "
            "that makes it"
        )
    if not callable(given):
        raise TypeError(
            f"expected a function without arguments that makes a Router, got {type(given).__name__}"
        )
    return Recipe(given)
