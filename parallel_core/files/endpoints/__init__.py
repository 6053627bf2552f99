"""Endpoints of providers that a line of a file may ask for: a module for each."""

from .chat_completions import CHAT_COMPLETIONS
from .choice import (
    ENDPOINTS,
    endpoint_named,
    endpoint_of_line,
    endpoint_of_operation,
    endpoint_of_url,
)
from .endpoint import Endpoint, EndpointName

__all__ = [
    "CHAT_COMPLETIONS",
    "ENDPOINTS",
    "Endpoint",
    "EndpointName",
    "endpoint_named",
    "endpoint_of_line",
    "endpoint_of_operation",
    "endpoint_of_url",
]
