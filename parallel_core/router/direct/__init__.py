"""The direct lane: the Router decides, and its attempts are sent without litellm's own code."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

from parallel_core.config import unwrap_router

if TYPE_CHECKING:
    from .lane import DirectLane


def direct_lane(router: object, direct: bool | Literal["verify"]) -> DirectLane | None:
    """Return the lane of a batch with the option ``direct``; None if litellm makes its calls.

    Raises:
        ValueError: the calls are not those of a Router of litellm.
    """
    if not direct:
        return None
    if not hasattr(unwrap_router(router), "model_group_retry_policy"):
        raise ValueError("direct is for a litellm.Router: any other callable sends its own calls")
    from .lane import DirectLane

    return DirectLane(router, verify=direct == "verify")


def off_the_lane(
    call: Callable[[int, Any], Awaitable[Any]],
) -> Callable[[int, Any], Awaitable[Any]]:
    """Keep the calls of a batch without a lane off that of a direct call in which it runs."""
    seam = sys.modules.get(f"{__name__}.seam")
    return call if seam is None else seam.unmarked(call)


__all__ = ["direct_lane", "off_the_lane"]
