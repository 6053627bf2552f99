"""The recording of the demo, and how its picture is made."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks.recording import Screen, svg
from helpers.snippets import REPOSITORY

SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_of_the_documentation_is_small_and_shows_the_demo() -> None:
    picture = (REPOSITORY / "docs" / "images" / "run.svg").read_text(encoding="utf-8")
    assert len(picture) < 150_000
    shown = "".join(ElementTree.fromstring(picture).itertext())
    for text in (
        "$ parallel-core demo",
        "no connection to the server",
        "Ctrl-C again cancels them",
        "150 times for 150 answers",
        "calls cancelled, the last one",
        "report.html",
    ):
        assert text in shown
    assert "Unexpected" not in shown


def test_a_line_that_several_screens_have_is_in_the_picture_once() -> None:
    first = Screen.of("same\n\x1b[1m\x1b[38;5;28mok <1>\nstill green", 1.0)
    second = Screen.of("same\n\x1b[2mdim", 3.0)
    picture = ElementTree.fromstring(svg([first, second]))
    texts = picture.findall(f".//{SVG}text")
    assert [text.text for text in texts] == ["same", "ok <1>", "still green", "dim"]
    assert [text.get("class") for text in texts] == [None, "b", "b", "d"]
    assert [text.get("style") for text in texts] == [None, *["fill:#008700"] * 2, None]
    uses = picture.findall(f".//{SVG}use")
    height = int(picture.attrib["height"])
    assert [(use.get("href"), use.get("y")) for use in uses] == [
        ("#l0", "0"),
        ("#l1", "18"),
        ("#l2", "36"),
        ("#l0", str(height)),
        ("#l3", str(height + 18)),
    ]
    style = picture.findtext(f"{SVG}style") or ""
    assert f"25.00%{{transform:translateY(-{height}px)}}" in style
