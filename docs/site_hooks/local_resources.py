"""A check that the pages load nothing from the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

# What a browser loads by itself. Links that a reader clicks on may lead elsewhere.
LOADED = (
    re.compile(
        r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)"
    ),
    re.compile(r"<link\b[^>]*\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)"),
    re.compile(r"@import\s+(?:url\()?[\"']?((?:https?:)?//[^\"'\s)]+)"),
    re.compile(r"url\(\s*[\"']?((?:https?:)?//[^\"'\s)]+)"),
)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that loads a script, a font, a style or a picture from the network."""
    found = list(remote_resources(Path(config.site_dir)))
    if found:
        raise PluginError("the site needs the network:\n" + "\n".join(found))


def remote_resources(site: Path) -> Iterator[str]:
    """Yield each address that a page or a style of the site loads, and where it stands."""
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        text = path.read_text(encoding="utf-8")
        for pattern in LOADED:
            for address in pattern.findall(text):
                yield f"{path.relative_to(site)}: {address}"
