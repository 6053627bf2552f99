"""A Router from a proxy YAML, a model name or the demo; and functions that read from a Router."""

from .endpoints import Endpoint, endpoint_of
from .identity import RequestsDigest, read_older_fields
from .provider_keys import is_key_variable, secrets_sent
from .proxy_values import RouterConfigError, is_set, nearest, secrets_in
from .quiet import quiet_litellm, silence_libraries
from .redaction import REDACTED, Redactor
from .router_members import (
    LAYERS,
    aliases,
    check_operation,
    deployments,
    deployments_for,
    retire,
    setting,
    unwrap_router,
)
from .stand_in import RouterStandIn

__all__ = [
    "LAYERS",
    "REDACTED",
    "Endpoint",
    "Redactor",
    "RequestsDigest",
    "RouterConfigError",
    "RouterStandIn",
    "aliases",
    "check_operation",
    "deployments",
    "deployments_for",
    "endpoint_of",
    "is_key_variable",
    "is_set",
    "nearest",
    "quiet_litellm",
    "read_older_fields",
    "retire",
    "secrets_in",
    "secrets_sent",
    "setting",
    "silence_libraries",
    "unwrap_router",
]
