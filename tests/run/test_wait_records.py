"""The waits of a run in its statistics."""

from __future__ import annotations

from parallel_core.control import Waiting
from parallel_core.journal import WaitStatistics
from parallel_core.run.wait_records import WaitRecords


def waiting(model: str, since: float, reason: str = "503 key-1") -> Waiting:
    return Waiting(model, "http://127.0.0.1:1", reason, since, None)


def test_a_wait_has_a_line_at_its_beginning_and_one_at_its_end() -> None:
    written: list[WaitStatistics] = []
    waits = WaitRecords(written.append, lambda text: text.replace("key-1", "[redacted]"))
    waits.note((), 100.0)
    assert written == []
    waits.note((waiting("a", 2.0),), 110.0)
    begun = WaitStatistics(at=108.0, model="a", reason="503 [redacted]")
    assert written == [begun]
    waits.note((waiting("a", 7.1), waiting("b", 1.0, "429")), 115.0)  # it lasts
    other = WaitStatistics(at=114.0, model="b", reason="429")
    assert written == [begun, other]
    # A single try is in flight: it seems to have ended, and has not.
    waits.note((waiting("b", 3.0),), 117.0)
    waits.note((waiting("b", 4.0), waiting("a", 10.0)), 118.0)
    waits.note((waiting("b", 6.0),), 120.0)
    of_a = [one for one in written if one.model == "a"]
    assert [(one.at, one.seconds) for one in of_a] == [
        (108.0, None),
        (108.0, 9.0),
        (108.0, None),
        (108.0, 12.0),
    ]
    # Something got through between two looks, and the next wait began.
    waits.note((waiting("b", 1.0),), 130.0)
    waits.note((), 131.0)
    of_b = [one for one in written if one.model == "b"]
    assert [(one.at, one.seconds) for one in of_b] == [
        (114.0, None),
        (114.0, 15.0),
        (129.0, None),
        (129.0, 2.0),
    ]
