"""Prompts of tables, texts and rows of data: templates, and the requests made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from parallel_core.errors import InputFileError
from parallel_core.files.endpoints import CHAT_COMPLETIONS
from parallel_core.files.input_records import InputProblem, shown
from parallel_core.types import RouterParallelRequest

from .request_options import RequestOptions

_PLACEHOLDER: Final = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_MOST_SHOWN: Final = 20  # columns


class Template:
    """A text with column names in it: ``Is this {{kind}}? {{text}}``.

    Values are inserted unchanged: a placeholder in a value is not replaced.

    Attributes:
        names: the names of its columns, in order.
    """

    def __init__(self, template: str) -> None:
        # With one group, the pieces are text, name, text, name, …, text.
        pieces = _PLACEHOLDER.split(template)
        self._texts = pieces[0::2]
        self.names = pieces[1::2]

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text of a row."""
        parts = [self._texts[0]]
        for text, name in zip(self._texts[1:], self.names, strict=True):
            parts += (values[name], text)
        return "".join(parts)


class Prompts:
    """Makes the requests of rows.

    Args:
        model: model of all requests.
        template: template of the prompts.
        options: what the requests have in common.

    Attributes:
        names: names of the columns that the messages are made of.
        has_columns: True if the prompt has a column, so that the prompts differ.
    """

    def __init__(self, model: str, template: str, options: RequestOptions) -> None:
        self._model = options.override_model or model
        self._prompt = Template(template)
        self._system = None if options.system is None else Template(options.system)
        self._parameters = options.parameters
        endpoint = options.endpoint or CHAT_COMPLETIONS
        assert endpoint.of_text is not None  # `reader_of` refuses the others
        self._of_text = endpoint.of_text
        system = self._system.names if self._system else []
        self.names = frozenset((*self._prompt.names, *system))
        self.has_columns = bool(self._prompt.names)

    def check_columns(self, columns: list[str]) -> None:
        """Check that a table has the columns of the templates.

        Raises:
            InputFileError: a template names an unknown column, or that of the prompt none.
        """
        existing = listed(columns)
        unknown = sorted(self.names.difference(columns))
        if unknown:
            raise InputFileError(
                f"the template names {', '.join(f'{{{{{name}}}}}' for name in unknown)}, but the "
                f"columns of the file are: {existing}"
            )
        if not self.has_columns:
            raise InputFileError(
                "the template has no {{column}}, so all prompts would be the same: the "
                f"columns of the file are: {existing}"
            )

    def request(self, values: Mapping[str, str]) -> RouterParallelRequest | None:
        """Return the request of a row; None if its prompt is empty."""
        prompt = self._prompt.fill(values)
        if not prompt.strip():
            return None
        made = self._of_text(self._model, prompt)
        messages = made.messages
        if self._system is not None:
            messages = [{"role": "system", "content": self._system.fill(values)}, *messages]
        kwargs = {**(made.kwargs or {}), **self._parameters.fresh()}
        timeout = kwargs.pop("timeout", None)
        return RouterParallelRequest(self._model, messages, kwargs or None, timeout, made.operation)


def empty_prompt(line: int, custom_id: str) -> InputProblem:
    """Return the problem of a row without a prompt."""
    return InputProblem(
        line,
        "missing_required_parameter",
        "the prompt is empty",
        "fill the columns that the template names",
        custom_id,
    )


def listed(columns: list[str]) -> str:
    """Return the names of columns, for a message."""
    # If the row of names is missing, these are the values of the first row: shorten them.
    names = ", ".join(map(shown, columns[:_MOST_SHOWN]))
    return names + ", …" if len(columns) > _MOST_SHOWN else names
