"""Each error that the package makes was met in a test, and its text was read."""

from __future__ import annotations

from helpers.messages import UNMET, catalogue, templates


def test_each_error_is_in_the_catalogue() -> None:
    known = catalogue()
    missing = [
        f"{template.file}:{template.line}: {template.kind}: {template.pattern}"
        for template in templates()
        if template.reason_unmet is None and not any(template.fits(met) for met in known)
    ]
    how = "these are not in the catalogue: make messages MESSAGES_OPTIONS=FILE_OF_THEIR_TEST"
    assert not missing, "\n".join([how, *missing])


def test_the_errors_that_no_test_meets_are_still_there() -> None:
    reasons = [template.reason_unmet for template in templates()]
    assert {*filter(None, reasons)} == {*UNMET.values()}


def test_the_catalogue_has_no_error_of_the_past() -> None:
    past = [met for met in catalogue() if not any(one.fits(met) for one in templates())]
    assert not past, past
