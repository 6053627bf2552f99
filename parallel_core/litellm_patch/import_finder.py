"""A finder for ``sys.meta_path`` that adds modules to another package and extends existing ones."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any


class ImportFinder(MetaPathFinder):
    """Finds added modules, and runs a hook whenever an existing module has been loaded.

    ``importlib.reload`` asks the finders again, so it works for both.

    Args:
        added: source file of each added module, by the module's full name.
        hooks: function that is called with a module each time the module has been executed, by the
            module's full name.
    """

    def __init__(
        self, added: Mapping[str, Path], hooks: Mapping[str, Callable[[ModuleType], None]]
    ) -> None:
        self._added = added
        self._hooks = hooks
        self.extended_classes: list[type] = []
        """Classes that the hooks have extended. ``uninstall`` reads it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in self._added:
            return spec_from_file_location(fullname, self._added[fullname])
        if fullname in self._hooks:
            for finder in sys.meta_path:
                spec = None if finder is self else finder.find_spec(fullname, path, target)
                if spec is not None and spec.loader is not None:
                    spec.loader = _HookedLoader(spec.loader, self._hooks[fullname])
                    return spec
        return None

    def has_loaded(self, module: ModuleType | None) -> bool:
        """Return True if this finder has loaded the module."""
        spec = getattr(module, "__spec__", None)
        return spec is not None and spec.origin == str(self._added.get(spec.name))


class _HookedLoader(Loader):
    """Loads a module with its own loader, then calls the hook. The module keeps its own loader."""

    def __init__(self, loader: Loader, hook: Callable[[ModuleType], None]) -> None:
        self._loader = loader
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        # Tools that inspect the module's spec call get_code, get_source, get_filename and the like.
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._hook(module)
