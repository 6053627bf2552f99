"""The API of the original proposal on ``litellm.Router``.

:func:`install` loads ``experimental_flags`` and ``parallel_acompletion`` under litellm's names,
with the finder in ``import_finder``. They are not imported as modules of this package. The module
``parallel_router`` imports litellm.
"""

from .patch import install, uninstall

__all__ = ["install", "uninstall"]
