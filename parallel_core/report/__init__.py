"""What a run has done, as tables, as a page and as pictures.

A report reads the statistics that lie beside the output of a run, and the output itself. Of results
without statistics (of OpenAI's Batch API, or of vLLM) it reports what their lines say.
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
