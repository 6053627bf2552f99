"""A Router with the parallel methods, for those who dislike patching. Imports litellm."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Unpack

from litellm.router import Router

from . import dispatch
from ._handle import ParallelBatch
from ._plan import Requests
from .control.options import Concurrency, Controls
from .trio_router import RouterHost, RouterHostName
from .types import RouterParallelResult, StreamChunk, StreamEnd

MYPY = False  # mypy takes it for True

if TYPE_CHECKING:
    # Type checkers see the constructor, the attributes and the endpoints of a Router.
    class _RouterMembers(Router):
        if MYPY:  # it takes the constructor of litellm 1.110, and what that makes, for Any

            def __init__(self, *args: Any, **kwargs: Any) -> None: ...

else:

    class _RouterMembers:
        """Hold a Router, and pass on to it whatever this class and its subclasses do not define.

        litellm 1.110 refuses subclasses of ``Router``, so the Router is an attribute. `isinstance`
        asks ``__class__``, which names the class of the Router.
        """

        @functools.wraps(Router.__init__)
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.__dict__["_held_router"] = Router(*args, **kwargs)

        @property
        def __class__(self) -> type:
            return type(self._held_router)

        @property
        def acompletion(self) -> Any:
            """``Router.acompletion``, a member of this class so that subclasses can extend it."""
            return self._held_router.acompletion

        @acompletion.setter
        def acompletion(self, value: Any) -> None:
            self._held_router.acompletion = value

        @acompletion.deleter
        def acompletion(self) -> None:
            del self._held_router.acompletion

        def __getattr__(self, name: str) -> Any:
            # Called for what is neither in the instance nor in its class.
            if "_held_router" not in self.__dict__:  # not constructed yet, or just being copied
                raise AttributeError(
                    f"{type(self).__name__!r} object has no attribute {name!r}: its Router does "
                    "not exist before super().__init__() has been called",
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
            """Return True for members of the class, and for what was set before ``__init__``."""
            return (
                "_held_router" not in self.__dict__
                or name in self.__dict__
                or hasattr(type(self), name)
            )

        def __reduce__(self) -> tuple[Any, ...]:
            # For copy.copy. The default one takes __class__ for the class to be made.
            return _with_members, (type(self), dict(self.__dict__))

        def __dir__(self) -> list[str]:
            return sorted({*dir(type(self)), *self.__dict__, *dir(self._held_router)})


class ParallelRouter(_RouterMembers):
    """``litellm.Router`` with :meth:`parallel_acompletions`, :meth:`iter_parallel_acompletions` and
    :meth:`iter_parallel_streams`.

    Made like a Router, and usable wherever one is: it is an instance of ``litellm.Router`` for
    ``isinstance``, and reading or setting an attribute reads or sets that of the Router it holds.
    No flag is needed.
    """

    async def parallel_acompletions(
        self,
        requests: Requests,
        *,
        concurrency: Concurrency = 8,
        return_exceptions: bool = True,
        preserve_order: bool = False,
        router_host: RouterHost | RouterHostName | None = None,
        **controls: Unpack[Controls],
    ) -> list[RouterParallelResult]:
        """:func:`parallel_core.parallel_acompletions` with this Router."""
        return await dispatch.parallel_acompletions(
            self,
            requests,
            concurrency=concurrency,
            return_exceptions=return_exceptions,
            preserve_order=preserve_order,
            router_host=router_host,
            **controls,
        )

    def iter_parallel_acompletions(
        self,
        requests: Requests,
        *,
        concurrency: Concurrency = 8,
        return_exceptions: bool = True,
        preserve_order: bool = False,
        router_host: RouterHost | RouterHostName | None = None,
        **controls: Unpack[Controls],
    ) -> ParallelBatch[RouterParallelResult]:
        """:func:`parallel_core.iter_parallel_acompletions` with this Router."""
        return dispatch.iter_parallel_acompletions(
            self,
            requests,
            concurrency=concurrency,
            return_exceptions=return_exceptions,
            preserve_order=preserve_order,
            router_host=router_host,
            **controls,
        )

    def iter_parallel_streams(
        self,
        requests: Requests,
        *,
        concurrency: Concurrency = 8,
        return_exceptions: bool = True,
        router_host: RouterHost | RouterHostName | None = None,
        **controls: Unpack[Controls],
    ) -> ParallelBatch[StreamChunk | StreamEnd]:
        """:func:`parallel_core.iter_parallel_streams` with this Router."""
        return dispatch.iter_parallel_streams(
            self,
            requests,
            concurrency=concurrency,
            return_exceptions=return_exceptions,
            router_host=router_host,
            **controls,
        )


def _with_members(cls: type[ParallelRouter], members: dict[str, Any]) -> ParallelRouter:
    router = cls.__new__(cls)
    router.__dict__.update(members)
    return router
