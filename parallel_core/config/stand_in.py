"""The base of objects that take the place of a Router: its host in trio, and its workers."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from .router_members import async_method


class RouterStandIn:
    """An object with the public async methods of a Router, which it calls in its own way.

    Attributes:
        router: the Router.
    """

    router: Any

    async def _call(self, operation: str, /, **arguments: Any) -> Any:
        """Call a method of the Router."""
        raise NotImplementedError

    if not TYPE_CHECKING:  # type checkers are to find misspelled attributes

        def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
            # There is no Router yet in an object that is being made or copied.
            router = self.__dict__.get("router")
            if router is None or async_method(router, name) is None:
                raise AttributeError(
                    f"{type(self).__name__!r} object has no attribute {name!r}",
                    name=name,
                    obj=self,
                )
            return functools.partial(self._call, name)
