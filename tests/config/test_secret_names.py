"""Names of secrets, which config files, input files, texts and the demo server know alike."""

from __future__ import annotations

import pytest

from parallel_core.config.proxy_values import secrets_in
from parallel_core.config.redaction import Redactor
from parallel_core.files.parameters import is_key_or_address
from parallel_core.secret_names import is_secret_name
from parallel_core.types import CHAT

SECRETS = [
    *("api_key", "apikey", "X-Api-Key", "key", "master_key", "aws_access_key_id", "access-key"),
    *("client_secret", "SECRET", "hf_token", "token", "accesstoken", "password", "passphrase"),
    *("vertex_credentials", "Authorization", "proxy-authorization", "cookie", "set-cookie"),
    *("auth", "basic_auth", "sig", "signature", "X-Amz-Signature", "X-Amz-Security-Token"),
]
ORDINARY = [
    *("model", "messages", "max_tokens", "keyword", "monkey", "author", "oauth", "design"),
    *("top_k", "thinking", "tokenizer", "keys"),
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_name_of_a_secret_is_one_everywhere(name: str) -> None:
    assert is_secret_name(name)
    assert is_key_or_address(name, CHAT)
    assert set(secrets_in({name: "abc123XYZ"})) == {"abc123XYZ"}
    url = f"https://host/?a=1&{name}=abc123XYZ"
    assert set(secrets_in({"api_base": url})) == {"abc123XYZ"}
    assert Redactor().redact(f"GET {url}&b=2") == (f"GET https://host/?a=1&{name}=[redacted]&b=2")


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_name_is_none_anywhere(name: str) -> None:
    assert not is_secret_name(name)
    assert not is_key_or_address(name, CHAT)
    url = f"https://host/?a=1&{name}=abc123XYZ"
    assert not set(secrets_in({name: "abc123XYZ", "api_base": url}))
    assert Redactor().redact(url) == url
