"""The direct lane: the Router decides, and its attempts are sent without litellm's own code."""

from .lane import DirectLane
from .seam import marked

__all__ = ["DirectLane", "marked"]
