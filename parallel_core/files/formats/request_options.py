"""Options for what the requests of a file have in common: a system message, parameters, a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from parallel_core.errors import InputFileError
from parallel_core.files.endpoints import CHAT_COMPLETIONS, Endpoint
from parallel_core.files.input_members import ColumnOptions, Members
from parallel_core.files.input_records import LineError

_NAME_THE_MODEL: Final = "name the model with --model or --override-model"
_MAKE_IT: Final = "make it with --template and --system"


class Parameters:
    """Parameters of every request that does not have them itself.

    Raises:
        InputFileError: a value is not JSON.
    """

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        try:
            self._encoded = msgspec.json.encode(dict(given or {}))
        except (TypeError, ValueError) as error:
            raise InputFileError(f"the parameters are not JSON: {error}") from None
        self._any = bool(given)

    def __bool__(self) -> bool:
        return self._any

    def fresh(self) -> dict[str, Any]:
        """Return the parameters. No other request has the same objects: litellm may change them."""
        found: dict[str, Any] = msgspec.json.decode(self._encoded) if self._any else {}
        return found

    def fill(self, body: dict[str, Any]) -> None:
        """Put them into a body that does not have them. Null is the same as absent."""
        for name, value in self.fresh().items():
            if body.get(name) is None:
                body[name] = value

    def check(self, columns: ColumnOptions, endpoint: Endpoint | None) -> None:
        """Check them as the parameters of a body.

        Raises:
            InputFileError: one of them is invalid, or must not be given so.
        """
        given = self.fresh()
        endpoint = endpoint or CHAT_COMPLETIONS
        example = _example_of(endpoint)
        for name in example.keys() & given:
            hint = _NAME_THE_MODEL if name == "model" else _MAKE_IT
            raise InputFileError(f"{name} is not given with --param: {hint}")
        try:
            # The members of a `body` that is not the line itself are all parameters.
            body = {**example, **given}
            Members(columns).sort(0, {}, body, endpoint)
            endpoint.request_of(0, body)
        except LineError as error:
            raise InputFileError(f"--param: {error.message}; {error.hint}") from None

    def meaning(self) -> str:
        """Return them as a text."""
        return self._encoded.decode()


def _example_of(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.of_text is None:
        return {"model": "any", "query": "any", "documents": ["any"]}
    return endpoint.of_text("any", "any").arguments


class RequestOptions(NamedTuple):
    """Options for what the requests of a file have in common.

    Attributes:
        system: template of a system message before each prompt.
        parameters: parameters of the requests that do not have them.
        id_column: column that has the ids.
        override_model: model of every request.
        endpoint: endpoint of the requests without a url; None: their members say it, and texts are
            prompts of chat.
    """

    system: str | None = None
    parameters: Parameters = Parameters()
    id_column: str | None = None
    override_model: str | None = None
    endpoint: Endpoint | None = None

    def meaning(self) -> list[str | None]:
        """Return the options that affect the requests; nothing if none is given."""
        endpoint = None if self.endpoint is None else self.endpoint.name
        words = [self.system, self.id_column, self.override_model, endpoint]
        if not self.parameters and words == [None] * len(words):
            return []
        return [*words, self.parameters.meaning()]
