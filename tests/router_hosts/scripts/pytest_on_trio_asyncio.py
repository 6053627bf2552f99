"""Runs pytest where a Router's host is a loop of trio-asyncio. The arguments are pytest's."""

import gc
import os
import sys

# litellm has imported anyio, whose plugin pytest would rewrite. It holds no assertion of ours.
IMPORTED_BEFORE = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"


def main() -> int:
    # This process is a fork of one that has frozen its objects. hypothesis counts referrers, of
    # which frozen ones are none.
    gc.unfreeze()
    import pytest

    os.environ["PARALLEL_CORE_ROUTER_HOST"] = "trio-asyncio"
    options = ["-q", "-p", "no:cacheprovider", "-W", IMPORTED_BEFORE]
    return pytest.main([*options, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
