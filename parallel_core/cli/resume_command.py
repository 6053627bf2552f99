"""The command that resumes a run."""

from __future__ import annotations

import sys

from parallel_core.config import Redactor
from parallel_core.failures import MAY_PASS
from parallel_core.run import RunSummary

from .run_arguments import RETRY_FAILED
from .terminal import program, shell_line


def resume_command(summary: RunSummary, redactor: Redactor) -> str | None:
    """Return the command that resumes the run, as one line for a shell. None: nothing is left.

    It sends the requests that have no result, or those that failed and may pass. All options are
    kept but ``--force-new``, which would start over.
    """
    may_pass = summary.failures_that_may_pass
    if not (summary.unfinished or may_pass or summary.input_error):
        return None
    given = sys.argv[1:]
    end_of_options = given.index("--") if "--" in given else len(given)
    options = [word for word in given[:end_of_options] if word != "--force-new"]
    # What stopped a model may have failed its first requests, too.
    with_it = summary.ending == "blocked" and any(
        group.kind in MAY_PASS for group in summary.failures
    )
    ended_by_it = not summary.unfinished or summary.ending == "failure" or with_it
    if not (summary.failed or summary.unfinished or summary.input_error):
        # No failure of the kinds that were given is left.
        options = [word for word in options if not word.startswith(f"{RETRY_FAILED}=")]
    is_given = any(word.partition("=")[0] == RETRY_FAILED for word in options)
    if may_pass and ended_by_it and not is_given:
        options.insert(1, RETRY_FAILED)
    # A password may be in an address. A word that only looks like a key is no secret.
    arguments = [
        redactor.redact(word) if "://" in word else word
        for word in (*options, *given[end_of_options:])
    ]
    return shell_line([*program(), *arguments])
