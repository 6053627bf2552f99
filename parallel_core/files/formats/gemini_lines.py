"""Lines of Gemini's Batch API, as chat completion requests.

Names may be written as ``maxOutputTokens`` or as ``max_output_tokens``: Gemini takes both. litellm
has such a translation for its own ``generateContent``. It drops what it does not know (``topK``,
``seed``, the second part of a system instruction), so it is not used here.
"""

from __future__ import annotations

import re
from typing import Any, Final, cast

from parallel_core.files.input_records import LineError

from .translation import Source, as_text, inexpressible, plain_if_alone, typed

_UNDERSCORE: Final = re.compile(r"_([a-z])")
_MODEL: Final = "models/"
# Members of generationConfig. litellm sends the last two to Gemini as they are.
CONFIG: Final = {
    "temperature": "temperature",
    "topP": "top_p",
    "topK": "top_k",
    "maxOutputTokens": "max_tokens",
    "stopSequences": "stop",
    "candidateCount": "n",
    "seed": "seed",
    "presencePenalty": "presence_penalty",
    "frequencyPenalty": "frequency_penalty",
    "responseLogprobs": "logprobs",
    "logprobs": "top_logprobs",
    "thinkingConfig": "thinkingConfig",
    "mediaResolution": "mediaResolution",
}
# Members of the request that litellm sends to Gemini, under names of its own.
OF_GEMINI: Final = {"safetySettings": "safety_settings", "cachedContent": "cached_content"}
_MODES: Final = {"AUTO": "auto", "ANY": "required", "NONE": "none"}
_DEEPEST: Final = 100  # levels of a schema
_TOO_DEEP: Final = "nested too deeply"
_JSON: Final = "application/json"
_AUDIO: Final = {"audio/wav": "wav", "audio/mp3": "mp3"}
# Members of a schema that have schemas in them.
_SCHEMAS: Final = ("items", "additionalProperties")
_LISTS_OF_SCHEMAS: Final = ("anyOf", "prefixItems")
_NAMED_SCHEMAS: Final = ("properties", "$defs")
_COUNTS: Final = frozenset((
    *("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"),
))  # fmt: skip


def chat_of_gemini(request: object, model: object) -> dict[str, Any]:
    """Return the body of a chat completion request that says the same as ``request``.

    Args:
        request: the member ``request`` of the line.
        model: its member ``model``; None if it has none.

    Raises:
        LineError: ``request`` is invalid, or chat completions cannot express a part of it.
    """
    source = _source("request", request)
    body: dict[str, Any] = {}
    own_model = source.take("model")
    if own_model is not None and model is not None and own_model != model:
        problem = "the line has two models: beside request, and in it"
        raise LineError("invalid_request", problem, "leave one of them out")
    body["model"] = own_model if model is None else model
    if type(body["model"]) is str:
        body["model"] = body["model"].removeprefix(_MODEL)
    messages: list[dict[str, Any]] = []
    system = source.take("systemInstruction")
    if system is not None:
        content = _source(source.at("systemInstruction"), system)
        content.take("role")
        parts = [_text(part) for part in _parts_of(content)]
        messages.append({"role": "system", "content": plain_if_alone(parts)})
    calls = _Calls()
    for number, content in enumerate(source.require("contents", list[Any])):
        messages += _messages(_source(f"request.contents[{number}]", content), calls)
    body["messages"] = messages
    _move_config(source, body)
    _move_tools(source, body)
    source.move(OF_GEMINI, body)
    source.finish()
    return body


def _source(place: str, value: object) -> Source:
    """Return an object with its names written as ``maxOutputTokens``.

    Raises:
        LineError: it is no object, or has a member in both spellings.
    """
    members = typed(place, value, dict[str, Any])
    if not any("_" in name for name in members):
        return Source(place, members)
    written = {_UNDERSCORE.sub(_upper, name) if "_" in name else name: name for name in members}
    if len(written) < len(members):
        problem = f"{place} has a member in two spellings, as in topP and top_p"
        raise LineError("invalid_request", problem, "leave one of them out")
    return Source(place, {name: members[written[name]] for name in written}, written)


def _upper(found: re.Match[str]) -> str:
    return found[1].upper()


class _Calls:
    """The calls of functions in a conversation: Gemini's may have no ids, chat completions' must.

    An answer without an id belongs to the first call of its function that has no answer yet.
    """

    def __init__(self) -> None:
        self._made = 0
        self._open: list[tuple[str, str]] = []  # id and name

    def add(self, name: str, given: str | None) -> str:
        """Return the id of a call."""
        self._made += 1
        call = given or f"call_{self._made}"
        self._open.append((call, name))
        return call

    def answer(self, place: str, name: str, given: str | None) -> str:
        """Return the id of the call that an answer belongs to."""
        for number, (call, called) in enumerate(self._open):
            if called == name and given in (None, call):
                del self._open[number]
                return call
        problem = f"{place} answers no call before it"
        raise LineError("invalid_request", problem, "give it the name of a functionCall")


def _messages(source: Source, calls: _Calls) -> list[dict[str, Any]]:
    """Return the messages that say the same as one content."""
    role = source.take("role")
    parts = _parts_of(source)
    if role == "model":
        return [_model_message(parts, calls)]
    if role not in (None, "user", "function"):
        raise source.refused("role", str(role))
    messages: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for part in parts:
        response = part.take("functionResponse")
        if response is None:
            others.append(_part(part))
        elif others:
            problem = f"{part.place} answers a function after other parts"
            raise LineError("invalid_request", problem, "put the answers of functions first")
        else:
            messages.append(_function_response(part, response, calls))
    if others:
        messages.append({"role": "user", "content": plain_if_alone(others)})
    return messages


def _function_response(part: Source, response: object, calls: _Calls) -> dict[str, Any]:
    source = _source(part.at("functionResponse"), response)
    name, given = source.require("name", str), source.take_typed("id", str)
    content = as_text(source.require("response", dict[str, Any]))
    source.finish()
    part.finish()
    call = calls.answer(source.place, name, given)
    return {"role": "tool", "tool_call_id": call, "content": content}


def _model_message(parts: list[Source], calls: _Calls) -> dict[str, Any]:
    texts: list[dict[str, Any]] = []
    made: list[dict[str, Any]] = []
    for part in parts:
        call = part.take("functionCall")
        if call is not None:
            made.append(_tool_call(part, call, calls))
        elif made:
            problem = f"{part.place} has a text after the call of a function"
            raise LineError("invalid_request", problem, "put the calls of functions last")
        else:
            texts.append(_text(part))
    message: dict[str, Any] = {"role": "assistant", "content": plain_if_alone(texts) or None}
    if made:
        _refuse_equal_calls(parts[0].place, made)
        message["tool_calls"] = made
    return message


def _tool_call(part: Source, call: object, calls: _Calls) -> dict[str, Any]:
    source = _source(part.at("functionCall"), call)
    name, given = source.require("name", str), source.take_typed("id", str)
    function = {"name": name, "arguments": as_text(source.take_typed("args", dict[str, Any]) or {})}
    source.finish()
    part.finish()
    return {"id": calls.add(name, given), "type": "function", "function": function}


def _refuse_equal_calls(place: str, made: list[dict[str, Any]]) -> None:
    """Refuse a content that calls a function twice with the same arguments.

    litellm would send Gemini one call, and two answers to it.
    """
    functions = [call["function"] for call in made]
    if any(function in functions[:number] for number, function in enumerate(functions)):
        raise LineError(
            "invalid_request",
            f"{place} has two equal calls of a function, of which litellm would send one",
            "leave one of them out, with its answer",
        )


def _parts_of(content: Source) -> list[Source]:
    parts = content.require("parts", list[Any])
    content.finish()
    return [_source(f"{content.at('parts')}[{n}]", part) for n, part in enumerate(parts)]


def _text(part: Source) -> dict[str, Any]:
    text = part.take_typed("text", str)
    part.finish()
    if text is None:
        raise LineError("missing_required_parameter", f"{part.place} has no text", "give it one")
    return {"type": "text", "text": text}


def _part(part: Source) -> dict[str, Any]:
    """Return the content part that says the same as a part of the user."""
    data, file = part.take("inlineData"), part.take("fileData")
    if data is None and file is None:
        return _text(part)
    part.finish()  # a second kind of data, too, is left over
    if data is None:
        source = _source(part.at("fileData"), file)
        reference: dict[str, Any] = {"file_id": source.require("fileUri", str)}
        source.move({"mimeType": "format"}, reference)
        source.finish()
        return {"type": "file", "file": reference}
    if file is not None:
        raise inexpressible(f"{part.place} with both inlineData and fileData")
    source = _source(part.at("inlineData"), data)
    kind, content = source.require("mimeType", str), source.require("data", str)
    source.finish()
    if kind in _AUDIO:
        return {"type": "input_audio", "input_audio": {"data": content, "format": _AUDIO[kind]}}
    url = f"data:{kind};base64,{content}"
    if kind.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    # OpenAI wants a name, which Gemini's part does not have.
    return {"type": "file", "file": {"filename": "document", "file_data": url}}


def _move_config(request: Source, body: dict[str, Any]) -> None:
    given = request.take("generationConfig")
    if given is None:
        return
    source = _source(request.at("generationConfig"), given)
    source.move(CONFIG, body)
    modalities = source.take_typed("responseModalities", list[Any])
    if modalities is not None:
        body["modalities"] = [
            typed(source.at("responseModalities"), name, str).lower() for name in modalities
        ]
    kind = source.take("responseMimeType")
    openapi, schema = source.take("responseSchema"), source.take("responseJsonSchema")
    if openapi is not None and schema is not None:
        raise source.refused("responseSchema", "beside responseJsonSchema")
    if openapi is not None:
        schema = _json_schema(source.at("responseSchema"), openapi)
    if kind == _JSON and schema is None:
        body["response_format"] = {"type": "json_object"}
    elif kind == _JSON:
        named = {"name": "response", "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    elif kind not in (None, "text/plain"):
        raise source.refused("responseMimeType", str(kind))
    elif schema is not None:
        problem = f"{source.place} has a schema without responseMimeType"
        raise LineError("invalid_request", problem, f'add "responseMimeType": "{_JSON}"')
    source.finish()


def _move_tools(request: Source, body: dict[str, Any]) -> None:
    tools: list[dict[str, Any]] = []
    for number, given in enumerate(request.take_typed("tools", list[Any]) or ()):
        tool = _source(f"request.tools[{number}]", given)
        declared = tool.require("functionDeclarations", list[Any]) if _has_functions(given) else []
        tool.finish()
        place = tool.at("functionDeclarations")
        tools += [_tool(_source(f"{place}[{n}]", one)) for n, one in enumerate(declared)]
    if tools:
        body["tools"] = tools
    config = request.take("toolConfig")
    if config is None:
        return
    outer = _source(request.at("toolConfig"), config)
    source = _source(
        outer.at("functionCallingConfig"), outer.require("functionCallingConfig", dict[str, Any])
    )
    outer.finish()
    mode = source.take_typed("mode", str) or "AUTO"
    names: list[Any] = source.take_typed("allowedFunctionNames", list[Any]) or []
    source.finish()
    if mode not in _MODES:
        raise source.refused("mode", mode)
    if not names:
        body["tool_choice"] = _MODES[mode]
    elif len(names) == 1 and mode == "ANY":
        body["tool_choice"] = {"type": "function", "function": {"name": names[0]}}
    else:
        raise source.refused("allowedFunctionNames")


def _has_functions(tool: dict[str, Any]) -> bool:
    return "functionDeclarations" in tool or "function_declarations" in tool


def _tool(source: Source) -> dict[str, Any]:
    function: dict[str, Any] = {"name": source.require("name", str)}
    source.move({"description": "description"}, function)
    openapi, schema = source.take("parameters"), source.take("parametersJsonSchema")
    if openapi is not None and schema is not None:
        raise source.refused("parameters", "beside parametersJsonSchema")
    if openapi is not None:
        schema = _json_schema(source.at("parameters"), openapi)
    if schema is not None:
        function["parameters"] = schema
    source.finish()
    return {"type": "function", "function": function}


def _json_schema(place: str, value: object, depth: int = 0) -> dict[str, Any]:
    """Return a schema of Gemini as JSON Schema: types in lower case, null as a type.

    Raises:
        LineError: it orders properties in another way than they are written, or is too deep.
    """
    if depth > _DEEPEST:
        raise LineError("invalid_request", f"a schema is {_TOO_DEEP}", "simplify it")
    depth += 1
    given = typed(place, value, dict[str, Any])
    schema: dict[str, Any] = {}
    for name, member in given.items():
        keyword = _UNDERSCORE.sub(_upper, name)
        here = f"{place}.{name}"
        if keyword == "propertyOrdering":
            # The order of the properties says the same.
            if member != list(given.get("properties") or ()):
                raise inexpressible(f"{here} that is not the order of the properties")
        elif keyword == "type" and type(member) is str:
            schema[keyword] = member.lower()
        elif keyword in _COUNTS and type(member) is str and member.isdecimal():
            schema[keyword] = int(member)  # Gemini takes these as texts, too
        elif keyword in _SCHEMAS and type(member) is dict:
            schema[keyword] = _json_schema(here, cast("object", member), depth)
        elif keyword in _LISTS_OF_SCHEMAS and type(member) is list:
            items = enumerate(cast("list[object]", member))
            schema[keyword] = [_json_schema(f"{here}[{n}]", one, depth) for n, one in items]
        elif keyword in _NAMED_SCHEMAS and type(member) is dict:
            named = cast("dict[str, object]", member)
            schema[keyword] = {
                key: _json_schema(f"{here}.{key}", one, depth) for key, one in named.items()
            }
        elif keyword != "nullable":
            schema[keyword] = member
    if given.get("nullable") is True:
        if type(schema.get("type")) is not str:
            raise inexpressible(f"{place}.nullable without a type")
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    return schema
