"""Pack an exception and its linked exceptions (causes, contexts, members of groups) into bytes.

The bytes hold a list of exceptions that refer to each other by number; the first is the packed
exception. Each value that is not a number or a text is pickled separately, so the list can always
be loaded.
"""

from __future__ import annotations

import functools
import linecache
import os
import pickle
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

from parallel_core.errors import RemoteCallError, full_name, text_of

from .pickling import PROTOCOL, LeftOut, dumps, dumps_with_gaps, loads

_MOST_EXCEPTIONS = 64  # in one packed exception: its causes and the members of groups
_MOST_FRAMES = 32
_NOTE = "in worker process "
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: set on all classes that are not built in
_PLAIN = frozenset((str, int, float, bool, type(None), bytes))


class _Plain(NamedTuple):
    value: Any


class _Pickled(NamedTuple):
    packed: bytes


class _Other(NamedTuple):
    number: int


class _LeftOut(NamedTuple):
    shown: str


_Part: TypeAlias = _Plain | _Pickled | _Other | _LeftOut


class _Anatomy(NamedTuple):
    """Parts of an exception that is not pickled in its class's own way."""

    packed_class: bytes | None
    arguments: list[_Part]
    group_text: str | None  # of an exception group
    members: list[int]  # of an exception group
    fields: dict[str, _Part]  # values in slots and in other descriptors outside __dict__
    attributes: dict[str, _Part]


class _PackedException(NamedTuple):
    type_name: str
    text: str
    whole: bytes | None  # pickled in its class's own way
    anatomy: _Anatomy | None
    cause: int | None
    context: int | None
    suppress_context: bool


def pack_tree(exception: BaseException) -> bytes:
    tree = _Tree()
    tree.number_of(exception)  # 0
    packed = [_packed(known, tree) for known in tree.exceptions]  # the list grows in the loop
    return pickle.dumps((packed, _trace(exception)), PROTOCOL)


class _Tree:
    """An exception and its linked exceptions, in the order in which they are found."""

    def __init__(self) -> None:
        self.exceptions: list[BaseException] = []
        self._numbers: dict[int, int] = {}  # by id
        self._parts: dict[int, tuple[Any, _Part]] = {}  # by the id of the value, which is kept

    def number_of(self, exception: BaseException | None) -> int | None:
        """Return the number of an exception; None for None, or if there are too many."""
        if exception is None:
            return None
        number = self._numbers.get(id(exception))
        if number is None and len(self.exceptions) < _MOST_EXCEPTIONS:
            number = self._numbers[id(exception)] = len(self.exceptions)
            self.exceptions.append(exception)
        return number

    def part(self, value: Any) -> _Part:
        """Return the packed form of a value that belongs to an exception.

        Several causes often share a value, such as an HTTP response. A shared value is pickled
        once, and the unpacked exceptions share it again.
        """
        if type(value) in _PLAIN:
            return _Plain(value)
        if isinstance(value, BaseException):
            number = self.number_of(value)
            return _LeftOut(object.__repr__(value)) if number is None else _Other(number)
        known = self._parts.get(id(value))
        if known is None:
            known = self._parts[id(value)] = value, _pickled_part(value)
        return known[1]


def _pickled_part(value: Any) -> _Part:
    for pickled in (dumps, dumps_with_gaps):
        try:
            return _Pickled(pickled(value))
        except Exception:  # noqa: BLE001, S112 - whatever the value's own code raises
            continue
    return _LeftOut(object.__repr__(value))


def _packed(exception: BaseException, tree: _Tree) -> _PackedException:
    text = text_of(exception)
    whole = _whole(exception, text) if _has_custom_pickling(type(exception)) else None
    anatomy = _anatomy(exception, tree) if whole is None else None
    cause, context = tree.number_of(exception.__cause__), tree.number_of(exception.__context__)
    suppress_context = exception.__suppress_context__
    return _PackedException(
        full_name(exception), text, whole, anatomy, cause, context, suppress_context
    )


def _has_custom_pickling(kind: type[BaseException]) -> bool:
    """Return True if an exception class defines how it is pickled.

    The default of BaseException calls the constructor with ``args``. That fails for most classes
    with their own constructor.
    """
    if issubclass(kind, BaseExceptionGroup):
        return False  # it would pickle its members without their causes
    return (
        kind.__reduce__ is not BaseException.__reduce__
        or kind.__reduce_ex__ is not BaseException.__reduce_ex__
        or kind.__setstate__ is not BaseException.__setstate__
    )


def _whole(exception: Any, text: str) -> bytes | None:
    """Pickle an exception in its class's own way; None if it does not load as an equal one."""
    try:
        packed = dumps(exception)
        loaded = loads(packed)
        same = (
            type(loaded) is type(exception)
            and text_of(loaded) == text
            and loaded.__dict__ == exception.__dict__
            and dict(_fields(loaded)) == dict(_fields(exception))
        )
    except Exception:  # noqa: BLE001 - whatever the exception's own code raises
        return None
    return packed if same else None


def _anatomy(exception: BaseException, tree: _Tree) -> _Anatomy:
    kind: type[BaseException] = type(exception)
    attributes = _parts(exception.__dict__, tree)
    fields = _parts(dict(_fields(exception)), tree)
    arguments = [tree.part(value) for value in _arguments(exception)]
    group_text: str | None = None
    members: list[int] = []
    if isinstance(exception, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", exception)
        group_text = group.message
        numbers = [tree.number_of(member) for member in group.exceptions]
        members = [number for number in numbers if number is not None]
    try:
        packed_class: bytes | None = dumps(kind)
    except Exception:  # noqa: BLE001 - whatever a locally defined class refers to
        packed_class = None
    return _Anatomy(packed_class, arguments, group_text, members, fields, attributes)


def _arguments(exception: BaseException) -> tuple[Any, ...]:
    # The arguments of a group are its text and its members, which are packed separately.
    return () if isinstance(exception, BaseExceptionGroup) else exception.args


def _parts(values: Mapping[str, Any], tree: _Tree) -> dict[str, _Part]:
    parts = {name: tree.part(value) for name, value in values.items()}
    return {name: part for name, part in parts.items() if not isinstance(part, _LeftOut)}


def _fields(exception: BaseException) -> Iterator[tuple[str, Any]]:
    for name in _field_names(cast("Any", type(exception))):
        try:
            value = getattr(exception, name)
        except Exception:  # noqa: BLE001, S112 - the field is not set
            continue
        if value is not None:
            yield name, value


@functools.lru_cache(maxsize=256)
def _field_names(of: type) -> tuple[str, ...]:
    """Return the names of a class's fields outside ``__dict__``: slots, and OSError's errno."""
    return tuple(
        name
        for base in of.__mro__
        if base not in (BaseException, BaseExceptionGroup)
        for name, kept in vars(base).items()
        if isinstance(kept, types.MemberDescriptorType | types.GetSetDescriptorType)
        and not name.startswith("__")
        # `AttributeError.obj` can be any object. Python itself does not pickle it either.
        and not (base is AttributeError and name == "obj")
    )


def _trace(exception: BaseException) -> str | None:
    """Return the traceback as text, without values; None if the exception has it as a note."""
    notes: Any = getattr(exception, "__notes__", ())
    if isinstance(notes, list | tuple) and any(
        str(note).startswith(_NOTE) for note in cast("list[object]", notes)
    ):
        return None
    # The module traceback is too slow: it parses each line to place the marks under it.
    lines: list[str] = []
    reached = exception.__traceback__
    while reached is not None:
        code = reached.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {reached.tb_lineno}, in {code.co_name}')
        source = linecache.getline(code.co_filename, reached.tb_lineno, reached.tb_frame.f_globals)
        if source.strip():
            lines.append(f"    {source.strip()}")
        reached = reached.tb_next
    if not lines:
        return None
    shown = lines[-2 * _MOST_FRAMES :]
    return "\n".join((f"{_NOTE}{os.getpid()}:", "Traceback (most recent call last):", *shown))


def unpack_tree(content: memoryview) -> Exception:
    packed, trace = cast("tuple[list[_PackedException], str | None]", loads(content))
    rebuilding = _Rebuilding(packed, frozenset())
    if rebuilding.broken:
        rebuilding = _Rebuilding(packed, rebuilding.broken)
    exception = rebuilding.exceptions[0]
    if not isinstance(exception, Exception):
        exception = _stand_in(packed[0])
    if trace is not None:
        _set(exception, "__notes__", [*getattr(exception, "__notes__", ()), trace])
    return exception


def _stand_in(packed: _PackedException) -> RemoteCallError:
    return RemoteCallError.standing_for_type(packed.type_name, packed.text)


def _set(exception: BaseException, name: str, value: object) -> None:
    """Set an attribute of an exception, even of one that refuses it (a frozen dataclass)."""
    object.__setattr__(exception, name, value)


class _Rebuilding:
    """Rebuild packed exceptions.

    Attributes:
        exceptions: the exceptions, by number.
        broken: numbers of the exceptions that are unusable without their left-out parts.
    """

    def __init__(self, packed: list[_PackedException], given_up: frozenset[int]) -> None:
        self._packed = packed
        self._given_up = given_up
        self._made: dict[int, BaseException] = {}
        self._beginning: set[int] = set()
        self._stand_ins: set[int] = set()
        self._loaded: dict[int, Any] = {}  # by the id of the bytes: equal bytes may be two values
        for number in range(len(packed)):
            self._make(number)
        self.exceptions = [self._made[number] for number in range(len(packed))]
        for number, parts in enumerate(packed):
            self._fill(number, parts)
        self.broken = frozenset(
            number for number, parts in enumerate(packed) if self._is_broken(number, parts)
        )

    def _make(self, number: int) -> BaseException | None:
        """Make the exception of a number. Only the members of a group are filled in yet."""
        if number in self._made or number in self._beginning:
            return self._made.get(number)
        self._beginning.add(number)
        parts = self._packed[number]
        exception: Any = None
        if number not in self._given_up:
            try:
                exception = self._made_as_packed(parts)
            except Exception:  # noqa: BLE001 - its class is missing here, or refuses it
                exception = None
        if not isinstance(exception, BaseException):
            exception = _stand_in(parts)
            self._stand_ins.add(number)
        made = self._made[number] = cast("BaseException", exception)
        return made

    def _made_as_packed(self, parts: _PackedException) -> Any:
        if parts.whole is not None:
            return loads(parts.whole)
        anatomy = parts.anatomy
        if anatomy is None or anatomy.packed_class is None:
            return None
        kind: Any = loads(anatomy.packed_class)
        built_in: Any = next(base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE)
        if anatomy.group_text is None:
            # This skips the class's own constructor, whose arguments are not known.
            return built_in.__new__(kind)
        members = [self._make(member) for member in anatomy.members]
        present = [member for member in members if member is not None]
        return built_in.__new__(kind, anatomy.group_text, present)

    def _fill(self, number: int, parts: _PackedException) -> None:
        exception = self._made[number]
        if parts.anatomy is not None:
            self._fill_anatomy(number, parts.anatomy)
        if parts.cause is not None:
            _set(exception, "__cause__", self._made[parts.cause])
        if parts.context is not None:
            _set(exception, "__context__", self._made[parts.context])
        _set(exception, "__suppress_context__", parts.suppress_context)

    def _fill_anatomy(self, number: int, anatomy: _Anatomy) -> None:
        exception = self._made[number]
        attributes = dict(self._values(anatomy.attributes))
        if number in self._stand_ins:
            # The stand-in keeps its own attributes and gets the others.
            exception.__dict__ |= attributes | exception.__dict__
            return
        if anatomy.group_text is None:
            _set(exception, "args", tuple(self._argument(part) for part in anatomy.arguments))
        exception.__dict__.update(attributes)
        for name, value in self._values(anatomy.fields):
            try:
                _set(exception, name, value)
            except Exception:  # noqa: BLE001, S112 - the field cannot be set
                continue

    def _values(self, parts: Mapping[str, _Part]) -> Iterator[tuple[str, Any]]:
        for name, part in parts.items():
            value = self._argument(part)
            if not isinstance(value, LeftOut):
                yield name, value

    def _argument(self, part: _Part) -> Any:
        match part:
            case _Plain(value):
                return value
            case _Other(number):
                return self._made[number]
            case _LeftOut(shown):
                return LeftOut(shown)
            case _Pickled(packed):
                if id(packed) not in self._loaded:
                    self._loaded[id(packed)] = self._load(packed)
                return self._loaded[id(packed)]

    @staticmethod
    def _load(packed: bytes) -> Any:
        try:
            return loads(packed)
        except Exception as error:  # noqa: BLE001 - whatever the value's own code raises
            return LeftOut(f"<a value whose loading raises a {full_name(error)}>")

    def _is_broken(self, number: int, parts: _PackedException) -> bool:
        exception = self._made[number]
        if number in self._stand_ins or text_of(exception) == parts.text:
            return False
        if type(exception).__str__ is BaseException.__str__:
            # An argument was left out. The text replaces the arguments.
            _set(exception, "args", (parts.text,))
            return False
        try:
            str(exception)
        except Exception:  # noqa: BLE001 - whatever the exception's own code raises
            return True
        return False
