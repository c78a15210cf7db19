"""How commands write: units, tables, colours, progress."""

from __future__ import annotations

import io

import pytest

from pooling._console import Paint, Screen, duration, left, marked, table, times, verdict_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.platform", "linux")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 µs"), (0.000_42, "420 µs"), (0.000_999_6, "1 ms"), (0.0463, "46.3 ms"), (0.9994, "999 ms"),
        (0.9996, "1 s"), (1.234, "1.23 s"), (119.94, "120 s"), (120, "2 min"), (5400, "90 min"), (59_969, "999 min"),
        (59_971, "17 h"), (7_200_000, "2,000 h"),
    ],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_times() -> None:
    assert [times(number) for number in (0, 1, 2, 1234)] == ["0 times", "once", "2 times", "1,234 times"]


@pytest.mark.parametrize(
    ("done", "passed", "text"),
    [(0, 5, ""), (1, 2, "18 s left"), (5, 50, "50 s left"), (1, 100, "15 min left"), (1, 3600, "9.0 h left"),
     (12, 60, "0 s left")],
)  # fmt: skip
def test_estimate(done: float, passed: float, text: str) -> None:
    assert left(done, 10, passed) == text


def test_texts_are_on_the_left_and_numbers_on_the_right() -> None:
    assert table([("pool", "in use"), ("a", "12"), ("longer", "1,234,567")]) == [
        "pool       in use", "a              12", "longer  1,234,567",
    ]  # fmt: skip
    assert table([("a", "x", "1"), ("bb", "", "22")], texts=2) == ["a   x   1", "bb     22"]


def test_long_text_goes_on_below_its_beginning() -> None:
    lines = marked("note  ", "word " * 30, indent=2, width=40).split("\n")
    assert lines[0] == "  note  word word word word word word" and lines[1].startswith(" " * 8 + "word")
    assert max(map(len, lines)) <= 40


@pytest.mark.parametrize(("good", "begin"), [(True, "ok   "), (False, "BAD  "), (None, "--   ")])
def test_line_of_a_verdict(good: bool | None, begin: str) -> None:
    assert verdict_line(good, "name", "text", 8, Paint(io.StringIO())) == f"{begin}name     text"


def test_terminal_has_colours() -> None:
    paint = Paint(Terminal())
    assert paint("good", "up") == "\x1b[32mup\x1b[0m"
    assert paint.words("a\n  BREAKS  it BREAKS", {"BREAKS": "bad"}) == "a\n  \x1b[1;31mBREAKS\x1b[0m  it BREAKS"
    assert verdict_line(False, "n", "t", 2, paint, indent=2) == "  \x1b[1;31mBAD\x1b[0m  n  t"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    assert Paint(Terminal())("good", "up") == "up"


def test_empty_no_color_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert Paint(Terminal()).on


def test_no_colours_without_a_terminal() -> None:
    assert not Paint(io.StringIO()).on


def test_progress_of_a_terminal_stays_on_one_line() -> None:
    out = Terminal()
    screen = Screen(out)
    screen.progress("1 of 2")
    screen.progress("2 of 2")
    screen.say("done")
    assert out.getvalue() == "1 of 2\r      \r2 of 2\r      \rdone\n"


def test_progress_elsewhere_is_a_line_now_and_then() -> None:
    out = io.StringIO()
    screen = Screen(out, seconds_a_line=60.0)
    screen.progress("1 of 2")
    screen.progress("2 of 2")
    screen.close("end")
    screen.say("too late")
    screen.progress("too late")
    assert out.getvalue() == "1 of 2\nend\n"
