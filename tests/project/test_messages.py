"""Each error that the package makes was met in a test, and its text was read."""

from __future__ import annotations

from helpers.messages import catalogue, templates


def test_each_error_is_in_the_catalogue() -> None:
    known = catalogue()
    missing = [
        f"{template.file}:{template.line}: {template.kind}: {template.pattern}"
        for template in templates()
        if not any(template.fits(met) for met in known)
    ]
    assert not missing, "\n".join(["no test meets these (run `make messages`):", *missing])


def test_the_catalogue_has_no_error_of_the_past() -> None:
    made = list(templates())
    past = [met for met in catalogue() if not any(template.fits(met) for template in made)]
    assert not past, past
