"""File formats: read requests, and read and write result lines."""

from .answer_bodies import answer_body, hidden_parameters
from .batch_input import InputFile
from .batch_output import (
    call_statistics,
    failure_in,
    parse_output_line,
    problem_line,
    result_line,
    unwritable_line,
)
from .data_frames import to_pandas, to_polars
from .endpoints import EndpointName, endpoint_of_operation
from .file_results import FileResult, read_results
from .formats import InputFormat
from .input_members import describe_columns
from .input_records import InputProblem, InputRequest, InputSummary
from .line_failures import LineFailure
from .line_limits import LONGEST_LINE
from .result_export import ExportSummary, export_results
from .result_tables import ResultTable

__all__ = [
    "LONGEST_LINE",
    "EndpointName",
    "ExportSummary",
    "FileResult",
    "InputFile",
    "InputFormat",
    "InputProblem",
    "InputRequest",
    "InputSummary",
    "LineFailure",
    "ResultTable",
    "answer_body",
    "call_statistics",
    "describe_columns",
    "endpoint_of_operation",
    "export_results",
    "failure_in",
    "hidden_parameters",
    "parse_output_line",
    "problem_line",
    "read_results",
    "result_line",
    "to_pandas",
    "to_polars",
    "unwritable_line",
]
