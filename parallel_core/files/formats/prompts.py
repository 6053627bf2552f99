"""Prompts of tables and texts: templates, and the requests made of them."""

from __future__ import annotations

import re
from typing import Final

from parallel_core.errors import InputFileError
from parallel_core.files.endpoints import Endpoint
from parallel_core.files.input_records import shown
from parallel_core.types import RouterParallelRequest

_PLACEHOLDER: Final = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_MOST_SHOWN: Final = 20  # columns


class Template:
    """A prompt text with column names in it: ``Is this {{kind}}? {{text}}``.

    Values are inserted unchanged: a placeholder in a value is not replaced.

    Raises:
        InputFileError: the template names an unknown column, or none.
    """

    def __init__(self, template: str, columns: list[str]) -> None:
        # With one group, the pieces are text, name, text, name, …, text.
        pieces = _PLACEHOLDER.split(template)
        names = pieces[1::2]
        unknown = sorted({name for name in names if name not in columns})
        existing = listed(columns)
        if unknown:
            raise InputFileError(
                f"the template names {', '.join(f'{{{{{name}}}}}' for name in unknown)}, but the "
                f"columns of the file are: {existing}"
            )
        if not names:
            raise InputFileError(
                "the template has no {{column}}, so all prompts would be the same: the "
                f"columns of the file are: {existing}"
            )
        self._texts = pieces[0::2]
        self._columns = [columns.index(name) for name in names]

    def fill(self, values: list[str]) -> str:
        """Return the prompt of a row."""
        parts = [self._texts[0]]
        for text, column in zip(self._texts[1:], self._columns, strict=True):
            parts += (values[column], text)
        return "".join(parts)


def listed(columns: list[str]) -> str:
    """Return the names of columns, for a message."""
    # If the row of names is missing, these are the values of the first row: shorten them.
    names = ", ".join(map(shown, columns[:_MOST_SHOWN]))
    return names + ", …" if len(columns) > _MOST_SHOWN else names


def prompt_request(endpoint: Endpoint, model: str, text: str) -> RouterParallelRequest:
    """Return the request of one prompt, or of another text."""
    assert endpoint.of_text is not None  # `reader_of` refuses the others
    return endpoint.of_text(model, text)
