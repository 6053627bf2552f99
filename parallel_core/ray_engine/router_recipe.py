"""Recipes of Routers: the user's source of a Router, in a form that can be sent to workers.

The import of this module imports neither litellm nor Ray. Making a Router or packing a recipe does.
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
"""Source of a worker's Router.

It is one of these:

- a function without arguments that makes a ``litellm.Router``, an object with the same
  ``acompletion``, an async callable ``(model=, messages=, **kwargs)``, or a context manager that
  yields one of these, such as a :class:`parallel_core.config.run_router.RunRouter`;
- the arguments of ``litellm.Router`` as a mapping;
- the path of a config file of litellm's proxy.
"""


class Recipe:
    """Recipe that makes a Router in the process that opens it.

    It can be pickled, and is small unless the user's function refers to large objects. It may hold
    keys; its ``repr`` shows none.
    """

    def __init__(self, what: str, packed: bytes, make: Callable[[], Any] | None = None) -> None:
        self._what = what
        self._packed = packed
        self._make = make  # set only in the process that made it, which need not unpack it

    @contextlib.contextmanager
    def open(self) -> Generator[Any]:
        """Yield a new Router. On leaving, undo the effects of its creation on this process.

        The Router has ``acompletion``, or is an async callable.

        Raises:
            RouterConfigError: litellm cannot make the Router here; for instance, an environment
                variable is not set.
            ImportError: the function that makes it, or an import of it, fails here.
            TypeError: the function does not return a Router.
            Exception: any exception that the function raises.
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
            # The bytes come from the driver.
            return cast("Callable[[], Any]", pickle.loads(self._packed))  # noqa: S301
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"{self._what} cannot be loaded in this process: {error}; its modules must be "
                "installed wherever workers run (a runtime_env of Ray can do that)",
                name=getattr(error, "name", None),
            ) from error

    def __reduce__(self) -> tuple[type[Recipe], tuple[str, bytes]]:
        return Recipe, (self._what, self._packed)

    def __repr__(self) -> str:
        return f"<Recipe of {self._what}>"


def checked_recipe(source: RouterSource) -> Recipe:
    """Return the recipe of a user's source. No Router is made.

    A config file is read here, so the machines of the workers need not have it. Each
    ``os.environ/NAME`` in a config file or a mapping is looked up in the process that makes the
    Router.

    Raises:
        TypeError: the source has another type, or cannot be sent to another process.
        ValueError: a mapping has no ``model_list``.
        RouterConfigError: a config file is missing or invalid. (It is a ValueError, too.)
        ModuleNotFoundError: Ray, which packs the recipe, is not installed.
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
            f"{what} cannot be sent to another process ({type(error).__name__}: {error}): create "
            "the objects that it refers to, such as a Router or a connection, inside a function"
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
    except (TypeError, ValueError):  # some functions written in C have no signature
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
            "the function that makes the Router gave an asynchronous context manager: it must "
            "return a Router or an ordinary context manager"
        )


def _check_is_router(router: object) -> None:
    # Only a call can show for certain whether a callable is async.
    may_be = hasattr(router, "acompletion") or callable(router)
    if may_be and not isinstance(router, type):
        return
    raise TypeError(
        "the function that makes the Router must return a litellm.Router (anything with an "
        "acompletion coroutine method) or an async callable (model=, messages=, **kwargs), and "
        f"gave {type(router).__name__}"
    )


def _is_router(given: object) -> bool:
    return hasattr(given, "acompletion") or hasattr(getattr(given, "router", None), "acompletion")


def _is_context_manager(made: object) -> bool:
    return hasattr(type(made), "__enter__") and hasattr(type(made), "__exit__")
