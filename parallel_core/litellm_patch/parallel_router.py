"""A Router with the parallel methods, without patching. Imports litellm."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Unpack

from litellm.router import Router

from parallel_core import api, operations
from parallel_core.batch_plans import Requests
from parallel_core.engine import ParallelBatch
from parallel_core.entry import BatchArguments, OperationArguments, StreamArguments
from parallel_core.types import RouterParallelResult, StreamChunk, StreamEnd

MYPY = False  # mypy treats it as True

if TYPE_CHECKING:
    # Type checkers see the constructor, the attributes and the endpoints of a Router.
    class _RouterMembers(Router):
        if MYPY:  # mypy treats the constructor of litellm 1.110, and its result, as Any

            def __init__(self, *args: Any, **kwargs: Any) -> None: ...

else:

    class _RouterMembers:
        """Holder of a Router. Delegates to it what this class and its subclasses do not define.

        litellm 1.110 refuses subclasses of ``Router``, so the Router is an attribute. `isinstance`
        reads ``__class__``, which returns the class of the Router.
        """

        @functools.wraps(Router.__init__)
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.__dict__["_held_router"] = Router(*args, **kwargs)

        @property
        def __class__(self) -> type:
            return type(self._held_router)

        def __getattribute__(self, name: str) -> Any:
            # Delegated methods are read from the Router. So a replacement that was set there is
            # found, and a replacement can call the method that was read, or set it again.
            if _is_delegated(type(self), name):
                members = object.__getattribute__(self, "__dict__")
                if "_held_router" in members and name not in members:
                    return getattr(members["_held_router"], name)
            return super().__getattribute__(name)

        def __getattr__(self, name: str) -> Any:
            # Called for names that are neither in the instance nor in its class.
            if "_held_router" not in self.__dict__:  # not constructed yet, or just being copied
                raise AttributeError(
                    f"{type(self).__name__!r} object has no attribute {name!r}: its Router does "
                    "not exist yet; call super().__init__() first",
                    name=name,
                    obj=self,
                )
            return getattr(self._held_router, name)

        def __setattr__(self, name: str, value: Any) -> None:
            if self._keeps(name):
                super().__setattr__(name, value)
            else:
                setattr(self._held_router, name, value)

        def __delattr__(self, name: str) -> None:
            if self._keeps(name):
                super().__delattr__(name)
            else:
                delattr(self._held_router, name)

        def _keeps(self, name: str) -> bool:
            """Return True if the name belongs to this object and not to the Router.

            These are members of the class and attributes that were set before ``__init__``.
            """
            return (
                "_held_router" not in self.__dict__
                or name in self.__dict__
                or (hasattr(type(self), name) and not _is_delegated(type(self), name))
            )

        def __reduce__(self) -> tuple[Any, ...]:
            # For copy.copy. The default __reduce__ would make an object of __class__, a Router.
            return _with_members, (type(self), dict(self.__dict__))

        def __dir__(self) -> list[str]:
            return sorted({*dir(type(self)), *self.__dict__, *dir(self._held_router)})

    def _is_delegated(cls: type, name: str) -> bool:
        """Return True for a method of ``Router`` that neither a subclass nor a patch replaces."""
        return name in _delegated and getattr(cls, name, None) is _delegated[name]

    def _delegate_method(name: str, method: Callable[..., Any]) -> Any:
        """Make a class member that calls this method of the held Router."""
        if inspect.ismethod(method):
            return classmethod(_delegate_class_method(name, method))
        if _is_static(method):
            return staticmethod(method)
        if inspect.iscoroutinefunction(method):  # mocks check it with iscoroutinefunction

            async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
                return await getattr(self._held_router, name)(*args, **kwargs)
        else:

            def call(self: Any, *args: Any, **kwargs: Any) -> Any:
                return getattr(self._held_router, name)(*args, **kwargs)

        return functools.wraps(method)(call)

    def _is_static(function: Callable[..., Any]) -> bool:
        """Return True if the class that defines the function declares it as a staticmethod."""
        *classes, name = function.__qualname__.split(".")
        owner: Any = functools.reduce(
            lambda owner, part: getattr(owner, part, None),
            classes,
            sys.modules[function.__module__],
        )
        return isinstance(inspect.getattr_static(owner, name, None), staticmethod)

    def _delegate_class_method(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method.__func__)
        def call(cls: type[ParallelRouter], *args: Any, **kwargs: Any) -> Any:
            made = getattr(Router, name)(*args, **kwargs)
            if isinstance(made, Router):
                return _with_members(cls, {"_held_router": made})
            return made

        return call

    def _delegate_attribute(name: str) -> property:
        return property(
            lambda self: getattr(self._held_router, name),
            lambda self, value: setattr(self._held_router, name, value),
            lambda self: delattr(self._held_router, name),
        )

    # The class itself has the public members of Router: super(), mock specs and patches read them
    # from the class.
    _delegated: dict[str, Any] = {}
    for _name in dir(Router):
        if _name.startswith("_"):
            continue
        _member = getattr(Router, _name)
        if inspect.isfunction(_member) or inspect.ismethod(_member):
            setattr(_RouterMembers, _name, _delegate_method(_name, _member))
            _delegated[_name] = getattr(_RouterMembers, _name)
        else:
            setattr(_RouterMembers, _name, _delegate_attribute(_name))


class ParallelRouter(_RouterMembers):
    """``litellm.Router`` with :meth:`parallel_acompletions`, :meth:`iter_parallel_acompletions`,
    :meth:`iter_parallel_streams`, :meth:`parallel_calls` and :meth:`iter_parallel_calls`.

    It is constructed like a Router and can be used in place of one: ``isinstance`` reports an
    instance of ``litellm.Router``, and reading or setting an attribute reads or sets that of the
    Router it holds. No flag is needed.
    """

    async def parallel_acompletions(
        self, requests: Requests, **options: Unpack[BatchArguments]
    ) -> list[RouterParallelResult]:
        """Call :func:`parallel_core.parallel_acompletions` with this Router."""
        return await api.parallel_acompletions(self, requests, **options)

    def iter_parallel_acompletions(
        self, requests: Requests, **options: Unpack[BatchArguments]
    ) -> ParallelBatch[RouterParallelResult]:
        """Call :func:`parallel_core.iter_parallel_acompletions` with this Router."""
        return api.iter_parallel_acompletions(self, requests, **options)

    def iter_parallel_streams(
        self, requests: Requests, **options: Unpack[StreamArguments]
    ) -> ParallelBatch[StreamChunk | StreamEnd]:
        """Call :func:`parallel_core.iter_parallel_streams` with this Router."""
        return api.iter_parallel_streams(self, requests, **options)

    async def parallel_calls(
        self, requests: Requests, **options: Unpack[OperationArguments]
    ) -> list[RouterParallelResult]:
        """Call :func:`parallel_core.parallel_calls` with this Router."""
        return await operations.parallel_calls(self, requests, **options)

    def iter_parallel_calls(
        self, requests: Requests, **options: Unpack[OperationArguments]
    ) -> ParallelBatch[RouterParallelResult]:
        """Call :func:`parallel_core.iter_parallel_calls` with this Router."""
        return operations.iter_parallel_calls(self, requests, **options)


def _with_members(cls: type[ParallelRouter], members: dict[str, Any]) -> ParallelRouter:
    router = cls.__new__(cls)
    router.__dict__.update(members)
    return router
