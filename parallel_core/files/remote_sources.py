"""Inputs with an address (``s3://…``, ``hf://…``, ``https://…``), opened through fsspec."""

from __future__ import annotations

import importlib
import re
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final, cast

from parallel_core.errors import InputFileError

_ADDRESS: Final = re.compile(r"(?:[A-Za-z][\w+.-]+::)*[A-Za-z][\w+.-]+://")
_QUERY: Final = re.compile(r"""\?[^\s'")]+""")  # of an address in a text; it may hold keys
# What to install for an address. fsspec names the package for all others.
_PACKAGES: Final = {
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
}
_LONGEST_SILENCE: Final = 60  # seconds, of a server that sends a file


def is_address(path: str) -> bool:
    """Return True if the name of an input is an address and not a path."""
    return _ADDRESS.match(path) is not None


def name_of(address: str) -> str:
    """Return an address for messages: without its query and user, which may hold keys."""
    address = address.partition("?")[0].partition("#")[0]
    scheme, mark, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def ending_of(address: str) -> PurePosixPath:
    """Return the path of an address, for its ending."""
    return PurePosixPath(name_of(address))


def open_address(address: str) -> BinaryIO:
    """Open a file at an address, for reading once.

    Raises:
        InputFileError: it cannot be opened; the message says why.
    """
    scheme = re.split("://|::", address, maxsplit=1)[0].lower()
    package = _PACKAGES.get(scheme)
    try:
        fsspec = importlib.import_module("fsspec")
    except ImportError:
        needed = "fsspec" if package is None else f"fsspec {package}"
        raise InputFileError(
            f"a package is needed to read {scheme}:// addresses: pip install {needed}"
        ) from None
    try:
        return cast("BinaryIO", fsspec.open(address, "rb", **_options(scheme)).open())
    except Exception as error:  # noqa: BLE001 - the file systems have errors of many packages
        raise _not_opened(error, address, scheme, package) from None


def not_read(error: Exception, address: str) -> InputFileError:
    """Return the error of an address whose bytes did not all arrive."""
    return InputFileError(f"cannot be read: {_reason(error, address)}")


def _options(scheme: str) -> dict[str, Any]:
    if scheme not in ("http", "https"):
        return {}
    aiohttp = importlib.import_module("aiohttp")
    # By default, a file that takes more than 5 minutes is given up. Block size 0 asks for the file
    # once, as a whole: it may change between several requests for parts.
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_LONGEST_SILENCE, sock_read=_LONGEST_SILENCE
    )
    return {"block_size": 0, "client_kwargs": {"timeout": timeout}}


def _not_opened(error: Exception, address: str, scheme: str, package: str | None) -> InputFileError:
    if isinstance(error, ImportError):
        how = f"pip install {package}" if package else str(error)
        return InputFileError(f"a package is needed to read {scheme}:// addresses: {how}")
    if isinstance(error, ValueError) and "rotocol not known" in str(error):
        return InputFileError(
            f"cannot be read: there is no driver for {scheme}:// addresses; pip install the "
            "package that brings it to fsspec, or copy the file to this machine"
        )
    return InputFileError(f"cannot be read: {_reason(error, address)}")


def _reason(error: Exception, address: str) -> str:
    # Of every refusal of an HTTP server, fsspec says that there is no file; its cause knows more.
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    status = getattr(error, "status", None)
    if isinstance(error, PermissionError) or status in (401, 403):
        return "permission denied: check the keys, and that they may read it"
    if isinstance(error, FileNotFoundError) or status == 404:
        return "there is no such file"
    text = _QUERY.sub("", " ".join(str(error).replace(address, name_of(address)).split()))
    return f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__
