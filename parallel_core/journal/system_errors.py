"""Short descriptions of system errors."""

from __future__ import annotations

import errno


def reason(error: BaseException) -> str:
    """Describe an error without its path: ``No space left on device (ENOSPC)``."""
    if isinstance(error, OSError) and error.strerror:
        name = errno.errorcode.get(error.errno or 0, "")
        return f"{error.strerror} ({name})" if name else error.strerror
    return str(error) or type(error).__qualname__
