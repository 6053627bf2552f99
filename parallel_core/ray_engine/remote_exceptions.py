"""An exception and all that it leads to (causes, contexts, members of groups), as bytes.

It is a list of exceptions that refer to each other by number; the first one is the packed one. What
is not a number or a text is pickled for itself, so that the list can always be loaded.
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

_MOST_EXCEPTIONS = 64  # of one packed exception: its causes, and the members of groups
_MOST_FRAMES = 32
_NOTE = "in worker process "
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: set of all classes that are not built in
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
    """What an exception is made of, where it is not made as its class offers."""

    packed_class: bytes | None
    arguments: list[_Part]
    group_text: str | None  # of an exception group
    members: list[int]  # of an exception group
    fields: dict[str, _Part]  # in slots, and what built-in classes keep outside of __dict__
    attributes: dict[str, _Part]


class _PackedException(NamedTuple):
    type_name: str
    text: str
    whole: bytes | None  # pickled as its class offers
    anatomy: _Anatomy | None
    cause: int | None
    context: int | None
    suppress_context: bool


def pack_tree(exception: BaseException) -> bytes:
    tree = _Tree()
    tree.number_of(exception)  # 0
    packed = [_packed(known, tree) for known in tree.exceptions]  # which grow meanwhile
    return pickle.dumps((packed, _trace(exception)), PROTOCOL)


class _Tree:
    """The exceptions that an exception leads to, in the order in which they are found."""

    def __init__(self) -> None:
        self.exceptions: list[BaseException] = []
        self._numbers: dict[int, int] = {}  # by id
        self._parts: dict[int, tuple[Any, _Part]] = {}  # by the id of the value, which is kept

    def number_of(self, exception: BaseException | None) -> int | None:
        """Its number; None where there is none, or there are too many."""
        if exception is None:
            return None
        number = self._numbers.get(id(exception))
        if number is None and len(self.exceptions) < _MOST_EXCEPTIONS:
            number = self._numbers[id(exception)] = len(self.exceptions)
            self.exceptions.append(exception)
        return number

    def part(self, value: Any) -> _Part:
        """A value that belongs to an exception.

        Causes often have the same ones, a response of HTTP for instance: such a value is pickled
        once, and is one and the same for them where it arrives, too.
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
    whole = _whole(exception, text) if _has_a_way_of_its_own(type(exception)) else None
    anatomy = _anatomy(exception, tree) if whole is None else None
    cause, context = tree.number_of(exception.__cause__), tree.number_of(exception.__context__)
    suppress_context = exception.__suppress_context__
    return _PackedException(
        full_name(exception), text, whole, anatomy, cause, context, suppress_context
    )


def _has_a_way_of_its_own(kind: type[BaseException]) -> bool:
    """Whether its class says how it is pickled. BaseException's way is to call the constructor with
    ``args``, which fits few of those that have a constructor."""
    if issubclass(kind, BaseExceptionGroup):
        return False  # whose members would go without their causes
    return (
        kind.__reduce__ is not BaseException.__reduce__
        or kind.__reduce_ex__ is not BaseException.__reduce_ex__
        or kind.__setstate__ is not BaseException.__setstate__
    )


def _whole(exception: Any, text: str) -> bytes | None:
    """As its class offers it; None where what comes of that is not the same."""
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
    except Exception:  # noqa: BLE001 - whatever a class defined on the spot holds on to
        packed_class = None
    return _Anatomy(packed_class, arguments, group_text, members, fields, attributes)


def _arguments(exception: BaseException) -> tuple[Any, ...]:
    # Those of a group are its text and its members.
    return () if isinstance(exception, BaseExceptionGroup) else exception.args


def _parts(values: Mapping[str, Any], tree: _Tree) -> dict[str, _Part]:
    parts = {name: tree.part(value) for name, value in values.items()}
    return {name: part for name, part in parts.items() if not isinstance(part, _LeftOut)}


def _fields(exception: BaseException) -> Iterator[tuple[str, Any]]:
    for name in _field_names(cast("Any", type(exception))):
        try:
            value = getattr(exception, name)
        except Exception:  # noqa: BLE001, S112 - it has not been set
            continue
        if value is not None:
            yield name, value


@functools.lru_cache(maxsize=256)
def _field_names(of: type) -> tuple[str, ...]:
    """Slots, and what built-in classes keep outside of ``__dict__``, as OSError does its errno."""
    return tuple(
        name
        for base in of.__mro__
        if base not in (BaseException, BaseExceptionGroup)
        for name, kept in vars(base).items()
        if isinstance(kept, types.MemberDescriptorType | types.GetSetDescriptorType)
        and not name.startswith("__")
        # Any object of the application, which Python itself does not pickle either.
        and not (base is AttributeError and name == "obj")
    )


def _trace(exception: BaseException) -> str | None:
    """Where it comes from; None where it tells that already. Lines of code, and no values."""
    notes: Any = getattr(exception, "__notes__", ())
    if isinstance(notes, list | tuple) and any(
        str(note).startswith(_NOTE) for note in cast("list[object]", notes)
    ):
        return None
    # Not by the module traceback: it parses each line for the marks under it.
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
    """Also of one that refuses it: a frozen dataclass, for instance."""
    object.__setattr__(exception, name, value)


class _Rebuilding:
    """Makes exceptions of what they have been packed as.

    Attributes:
        exceptions: by number.
        broken: numbers of those that are not usable without what has been left out of them.
    """

    def __init__(self, packed: list[_PackedException], given_up: frozenset[int]) -> None:
        self._packed = packed
        self._given_up = given_up
        self._made: dict[int, BaseException] = {}
        self._beginning: set[int] = set()
        self._stand_ins: set[int] = set()
        self._loaded: dict[int, Any] = {}  # by the id of the bytes: equal ones are not the same
        for number in range(len(packed)):
            self._make(number)
        self.exceptions = [self._made[number] for number in range(len(packed))]
        for number, parts in enumerate(packed):
            self._fill(number, parts)
        self.broken = frozenset(
            number for number, parts in enumerate(packed) if self._is_broken(number, parts)
        )

    def _make(self, number: int) -> BaseException | None:
        """The exception of a number, without what it refers to, but with a group's members."""
        if number in self._made or number in self._beginning:
            return self._made.get(number)
        self._beginning.add(number)
        parts = self._packed[number]
        exception: Any = None
        if number not in self._given_up:
            try:
                exception = self._made_as_packed(parts)
            except Exception:  # noqa: BLE001 - its class is not here, or does not allow it
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
            # Without the class's own constructor, which may want what nobody knows any more.
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
            # It keeps its own, and tells the others.
            exception.__dict__ |= attributes | exception.__dict__
            return
        if anatomy.group_text is None:
            _set(exception, "args", tuple(self._argument(part) for part in anatomy.arguments))
        exception.__dict__.update(attributes)
        for name, value in self._values(anatomy.fields):
            try:
                _set(exception, name, value)
            except Exception:  # noqa: BLE001, S112 - it cannot be set
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
            # Something among its arguments has been left out.
            _set(exception, "args", (parts.text,))
            return False
        try:
            str(exception)
        except Exception:  # noqa: BLE001 - whatever the exception's own code raises
            return True
        return False
