"""Reports of runs as tables, an HTML page and pictures.

A report reads the output of a run and the statistics beside it. For results without statistics
(from OpenAI's Batch API or vLLM) it reports what the lines contain.
"""

from .html import BEGINNING
from .model import (
    FailureReport,
    Histogram,
    LimitReport,
    ModelReport,
    Pause,
    Percentiles,
    ReportError,
    RunReport,
    Timeline,
)
from .reports import html_page, summarize, write_pictures

__all__ = [
    "BEGINNING",
    "FailureReport",
    "Histogram",
    "LimitReport",
    "ModelReport",
    "Pause",
    "Percentiles",
    "ReportError",
    "RunReport",
    "Timeline",
    "html_page",
    "summarize",
    "write_pictures",
]
