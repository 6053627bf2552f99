"""How the processes of workers get their Routers: what a user gives, as it can be sent to them.

Importing this imports neither litellm nor Ray: what makes a Router, or packs a recipe, does.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

from parallel_core.config import retire, secrets_in
from parallel_core.config.proxy_config import read_proxy_config
from parallel_core.config.run_router import RunRouterRecipe, make_router, router_of_config

from .installed import require_ray

RouterSource: TypeAlias = Callable[[], Any] | Mapping[str, Any] | str | os.PathLike[str]
"""How a worker gets its Router.

A function without arguments that makes one: a ``litellm.Router`` or what has an ``acompletion``
like it, an async callable ``(model=, messages=, **kwargs)``, or a context manager that gives one of
these, such as a :class:`parallel_core.config.run_router.RunRouter`. Or the arguments of
``litellm.Router`` as a mapping. Or the path of a config file of litellm's proxy.
"""


class Recipe:
    """Makes a Router in whatever process it is opened in.

    It can be pickled, and is small unless the user's function holds much. It may hold keys; its
    ``repr`` shows none.
    """

    def __init__(self, what: str, packed: bytes, make: Callable[[], Any] | None = None) -> None:
        self._what = what
        self._packed = packed
        self._make = make  # in the process that it comes from, there is no need to unpack it

    @contextlib.contextmanager
    def open(self) -> Generator[Any]:
        """Give a new Router, and undo on leaving what its making has done in this process.

        It has ``acompletion``, or is an async callable.

        Raises:
            RouterConfigError: litellm cannot make a Router of it here; an environment variable is
                not set, for instance.
            ImportError: the function that makes it, or what that needs, cannot be imported here.
            TypeError: what the function gives is no Router.
            Exception: what the function raises.
        """
        make = self._unpacked() if self._make is None else self._make
        with contextlib.ExitStack() as held:
            made = make()
            _check_is_synchronous(made)
            is_ours = not _is_context_manager(made)
            if not is_ours:
                made = held.enter_context(made)
            router = made if hasattr(made, "acompletion") else getattr(made, "router", made)
            _check_is_router(router)
            if is_ours:
                held.callback(retire, router)
            yield router

    def _unpacked(self) -> Callable[[], Any]:
        try:
            # It comes from our own driver.
            return cast("Callable[[], Any]", pickle.loads(self._packed))  # noqa: S301
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"{self._what} cannot be loaded in this process: {error}; what it needs must be "
                "installed wherever workers run (a runtime_env of Ray can do that)",
                name=getattr(error, "name", None),
            ) from error

    def __reduce__(self) -> tuple[type[Recipe], tuple[str, bytes]]:
        return Recipe, (self._what, self._packed)

    def __repr__(self) -> str:
        return f"<Recipe of {self._what}>"


def checked_recipe(source: RouterSource) -> Recipe:
    """The recipe of what a user gives; no Router is made.

    A config file is read here, so that the machines of the workers need not have it. Each
    ``os.environ/NAME`` in it, and in a mapping, is looked up where a Router is made.

    Raises:
        TypeError: it is of no such kind, or cannot be sent to another process.
        ValueError: a mapping without ``model_list``.
        RouterConfigError: a ValueError, too: a file is missing, or something in it is wrong.
        ModuleNotFoundError: Ray, which packs it, is not installed.
    """
    given: object = source
    if isinstance(given, (str, os.PathLike)):
        path = Path(cast("str | os.PathLike[str]", given))
        recipe = RunRouterRecipe(router_of_config, read_proxy_config(path))
        return Recipe(f"the config file {path}", _packed(recipe, "the config file"))
    if isinstance(given, Mapping):
        arguments = _checked_arguments(cast("Mapping[str, Any]", given))
        return Recipe("the Router's arguments", _packed(arguments, "the Router's arguments"))
    if not isinstance(given, type) and _is_router(given):
        raise TypeError(
            f"a Router ({type(given).__name__}) cannot be sent to another process: give a function "
            "that makes it, the arguments of litellm.Router as a mapping, or the path of a config "
            "file"
        )
    if not callable(given):
        raise TypeError(
            "expected a function without arguments that makes a Router, the arguments of "
            "litellm.Router as a mapping, or the path of a config file, got "
            f"{type(given).__name__}"
        )
    _check_is_called_without_arguments(given)
    what = "the function that makes the Router"
    name = getattr(given, "__qualname__", type(given).__name__)
    return Recipe(f"{what} ({name})", _packed(given, what), given)


class _RouterArguments:
    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._arguments = dict(arguments)

    def __call__(self) -> Any:
        settings = dict(self._arguments)
        secrets = frozenset(secrets_in(settings))
        return make_router("the Router's arguments", secrets, settings.pop("model_list"), settings)


def _checked_arguments(arguments: Mapping[str, Any]) -> _RouterArguments:
    model_list: object = arguments.get("model_list")
    if not isinstance(model_list, (list, tuple)) or not model_list:
        raise ValueError(
            "the mapping has no model_list: it must have the arguments of litellm.Router, "
            "{'model_list': [{'model_name': …, 'litellm_params': {…}}], …}"
        )
    return _RouterArguments({**arguments, "model_list": list(cast("list[Any]", model_list))})


def _packed(made: object, what: str) -> bytes:
    require_ray()
    from ray import cloudpickle  # pyright: ignore[reportPrivateImportUsage]

    try:
        return cast("bytes", cast("Any", cloudpickle).dumps(made))
    except Exception as error:
        raise TypeError(
            f"{what} cannot be sent to another process ({type(error).__name__}: {error}): what it "
            "refers to, a Router or a connection for instance, has to be made inside of a function"
        ) from error


def _check_is_called_without_arguments(function: Callable[..., Any]) -> None:
    call = function if isinstance(function, type) else type(function).__call__
    if any(
        inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one)
        for one in (function, call)
    ):
        raise TypeError(
            "the function that makes the Router must not be async; to call an async function "
            "instead of a Router, give a function that returns it: lambda: my_async_function"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some that are written in C
        return
    try:
        signature.bind()
    except TypeError as error:
        raise TypeError(
            f"the function that makes the Router is called without arguments: {error}"
        ) from None


def _check_is_synchronous(made: object) -> None:
    if inspect.iscoroutine(made):
        made.close()
        raise TypeError("the function that makes the Router gave a coroutine: it must not be async")
    if hasattr(made, "__aenter__") and not hasattr(made, "acompletion"):
        raise TypeError(
            "the function that makes the Router gave an asynchronous context manager: it must give "
            "a Router, or an ordinary context manager"
        )


def _check_is_router(router: object) -> None:
    # Of a callable, it cannot always be told without a call whether it is async.
    may_be = hasattr(router, "acompletion") or callable(router)
    if may_be and not isinstance(router, type):
        return
    raise TypeError(
        "the function that makes the Router must give a litellm.Router (anything with an "
        "acompletion coroutine method) or an async callable (model=, messages=, **kwargs), and "
        f"gave {type(router).__name__}"
    )


def _is_router(given: object) -> bool:
    return hasattr(given, "acompletion") or hasattr(getattr(given, "router", None), "acompletion")


def _is_context_manager(made: object) -> bool:
    return hasattr(type(made), "__enter__") and hasattr(type(made), "__exit__")
