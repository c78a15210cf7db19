"""The arithmetic and the tables of the benchmark. Nothing here is timed."""

from __future__ import annotations

import json
import math
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.performance import figures
from tests.performance.goals import Goal
from tests.performance.plot import Bars, draw, written
from tests.performance.table import Column, Table, Target, to_json


class TestFigures:
    @pytest.mark.parametrize(
        ("by", "order"), [(0, "abc"), (1, "bca"), (2, "cab"), (3, "abc"), (7, "bca")]
    )
    def test_each_round_begins_with_another_contender(self, by: int, order: str) -> None:
        assert figures.rotated("abc", by) == list(order)

    def test_rotation_without_contenders(self) -> None:
        assert figures.rotated([], 3) == []

    def test_ratio_is_taken_within_each_round(self) -> None:
        # The machine was ten times slower in the second round, for both.
        ours, base = [2.0, 20.0, 2.0], [1.0, 10.0, 4.0]
        assert figures.per_round(ours, base) == [2.0, 2.0, 0.5]
        assert figures.ratio(ours, base) == 2.0

    def test_ratio_is_not_that_of_the_medians(self) -> None:
        ours, base = [1.0, 2.0, 9.0], [1.0, 4.0, 3.0]
        assert figures.ratio(ours, base) == 1.0
        assert figures.median(ours) / figures.median(base) != 1.0

    def test_ratio_to_zero_is_infinite(self) -> None:
        assert figures.per_round([1.0, 1.0], [0.0, 2.0]) == [math.inf, 0.5]

    def test_only_the_same_rounds_can_be_compared(self) -> None:
        with pytest.raises(ValueError, match="2 rounds against 3"):
            figures.per_round([1.0, 2.0], [1.0, 2.0, 3.0])

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([5.0], 0.0),
            ([3.0, 3.0, 3.0], 0.0),
            ([1.0, 2.0, 3.0, 4.0, 5.0], 2 / 3),
            ([0.0, 0.0, 0.0], math.inf),
        ],
    )
    def test_spread_is_between_the_quartiles(self, values: list[float], expected: float) -> None:
        assert figures.spread(values) == pytest.approx(expected)

    def test_one_outlier_moves_neither_median_nor_spread_much(self) -> None:
        values = [10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 1000.0]
        assert figures.median(values) == 10.0
        assert figures.spread(values) == 0.0

    @pytest.mark.parametrize(
        ("counts", "expected"),
        [
            ([10, 10, 10], 0),
            ([1000, 1000, 1, 0], 2),
            ([991, 1000, 100, 1009], 0),  # few, but not next to nothing
            ([0, 0, 0], 3),  # the average is zero too: no thread was served
        ],
    )
    def test_starved(self, counts: list[int], expected: int) -> None:
        assert figures.starved(counts) == expected

    @pytest.mark.parametrize(
        ("counts", "expected"), [([7, 7], 1.0), ([10, 5, 8], 2.0), ([3, 0], math.inf)]
    )
    def test_fairness(self, counts: list[int], expected: float) -> None:
        assert figures.fairness(counts) == expected


class TestTarget:
    @pytest.mark.parametrize(
        ("value", "sense", "met"),
        [
            (1.3, "<=", True),
            (1.31, "<=", False),
            (1.3, ">=", True),
            (1.29, ">=", False),
            (math.inf, "<=", False),
            (None, "<=", None),
        ],
    )
    def test_met(self, value: float | None, sense: str, met: bool | None) -> None:
        target = Target("ours", value, "<=" if sense == "<=" else ">=", 1.3)
        assert target.met is met

    def test_row_shows_value_limit_and_mark(self) -> None:
        target = Target("ours / base", 1.234, "<=", 1.3, " x")
        assert target.cells() == ("ours / base", "<= 1.30 x", "1.23 x", "met")

    def test_missed_target_is_marked(self) -> None:
        assert Target("wait", 7.0, "<=", 5, " ms", ".1f").cells()[-1] == "NOT MET"

    def test_target_without_its_peer_is_neither_met_nor_missed(self) -> None:
        assert Target("peer / ours", None, ">=", 5).cells()[2:] == ("-", "not measured")


def table(**changes: object) -> Table:
    parts: dict[str, object] = {
        "name": "race",
        "title": "who is first",
        "columns": (Column("name", "pool"), Column("ns", "ns", ",.0f")),
        "rows": [{"name": "ours", "ns": 1234.5}, {"name": "another", "ns": None}],
    }
    return Table(**{**parts, **changes})  # type: ignore[arg-type]


class TestTable:
    def test_render(self) -> None:
        text = table(
            targets=[Target("ours", 1.0, "<=", 2.0)],
            notes=["a note"],
            failures=["another: lent twice"],
        ).render()
        assert text.splitlines() == [
            "race: who is first",
            "  pool         ns",
            "  ours      1,234",
            "  another       -",
            "  target  ours   <= 2.00   1.00   met",
            "  note    a note",
            "  WRONG   another: lent twice",
        ]

    def test_no_rows_no_targets(self) -> None:
        assert table(rows=[]).render().splitlines() == ["race: who is first", "  pool   ns"]

    def test_a_column_without_a_value_is_a_dash(self) -> None:
        assert Column("ratio", "x", ".2f").write({"name": "ours"}) == "-"

    def test_json_holds_rows_targets_and_verdicts(self) -> None:
        measured = table(targets=[Target("ours", 3.0, "<=", 2.0, " x")], notes=["a note"])
        document = json.loads(to_json({"python": "3", "cores": 2}, [measured]))
        assert document["python"] == "3"
        assert document["cores"] == 2
        assert document["benchmarks"] == [
            {
                "name": "race",
                "title": "who is first",
                "rows": [{"name": "ours", "ns": 1234.5}, {"name": "another", "ns": None}],
                "targets": [
                    {
                        "what": "ours",
                        "value": 3.0,
                        "sense": "<=",
                        "limit": 2.0,
                        "unit": "x",
                        "met": False,
                    }
                ],
                "notes": ["a note"],
                "failures": [],
            }
        ]

    def test_json_knows_no_infinity(self) -> None:
        starved = table(rows=[{"name": "ours", "fairness": math.inf, "part": math.nan}])
        row = json.loads(to_json({}, [starved]))["benchmarks"][0]["rows"][0]
        assert row == {"name": "ours", "fairness": None, "part": None}


class TestGoal:
    def goal(self, **changes: Any) -> Goal:
        parts: dict[str, Any] = {
            "figure": "inserts", "unit": "leases/s", "peer": "theirs", "sense": ">=", "wanted": 0.8,
            "values": {"pooling": [3.0, 30.0, 1.0], "theirs": [4.0, 40.0, 1.0], "others": [1.0, 1.0, 1.0]},
        }  # fmt: skip
        return Goal(**{**parts, **changes})

    def test_ratio_to_the_peer_is_compared_with_what_is_wanted(self) -> None:
        row = self.goal().row()
        assert (row["ours"], row["theirs"], row["ratio"]) == (3.0, 4.0, 0.75)
        assert (row["wanted"], row["mark"]) == (">= 0.8 x", "NOT MET")
        assert self.goal(wanted=0.75).row()["mark"] == "met"

    def test_limit_may_be_of_the_value_itself(self) -> None:
        row = self.goal(unit="ms", sense="<=", wanted=5, absolute=True).row()
        assert (row["ratio"], row["wanted"], row["mark"]) == (0.75, "<= 5 ms", "met")

    def test_without_its_peer_it_is_not_measured(self) -> None:
        row = self.goal(values={"pooling": [3.0]}).row()
        assert (row["theirs"], row["ratio"], row["mark"]) == (None, None, "not measured")

    def test_the_picture_has_all_contenders(self) -> None:
        assert self.goal().bars() == Bars("inserts", "leases/s", True, {"pooling": 3.0, "theirs": 4.0, "others": 1.0})


class TestPicture:
    figures = (
        Bars("inserts <fast>", "leases/s", True, {"pooling": 50.0, "pooling, trust": 100.0, "theirs": 25.0}),
        Bars("p99", "ms", False, {"pooling": 1.5, "theirs": math.inf}),
        Bars("nothing", "ms", False, {"pooling": 0.0}),
    )

    def picture(self) -> ElementTree.Element:
        return ElementTree.fromstring(draw(self.figures, "pooling & peers", ["a note"]))

    def bars(self) -> list[ElementTree.Element]:
        return [one for one in self.picture().iter() if one.tag.endswith("rect")]

    def test_bars_are_as_long_as_their_values(self) -> None:
        widths = [float(bar.attrib["width"]) for bar in self.bars()]
        assert widths[0] == pytest.approx(widths[1] / 2, abs=0.1)
        assert widths[2] == pytest.approx(widths[1] / 4, abs=0.1)
        assert widths[4] == widths[1]  # infinity is as long as the longest
        assert widths[5] == 1.0

    def test_ours_stands_out(self) -> None:
        assert [bar.attrib["class"].strip() for bar in self.bars()[:3]] == ["bar ours", "bar further", "bar"]

    def test_it_says_everything_in_words_and_needs_no_other_file(self) -> None:
        texts = [one.text for one in self.picture().iter() if one.tag.endswith("text")]
        assert texts[:2] == ["pooling & peers", "a note"]
        for text in ("inserts <fast>", "leases/s, more is better", "ms, less is better", "pooling, trust", "100", "∞"):
            assert text in texts
        whole = draw(self.figures, "t")
        assert whole.count("http") == 1  # the namespace
        assert "prefers-color-scheme: dark" in whole

    def test_nothing_lies_outside(self) -> None:
        root = self.picture()
        width, height = (float(root.attrib[name]) for name in ("width", "height"))
        for bar in self.bars():
            assert float(bar.attrib["x"]) + float(bar.attrib["width"]) < width
            assert float(bar.attrib["y"]) + float(bar.attrib["height"]) < height

    @pytest.mark.parametrize(
        ("value", "text"), [(12345.6, "12,346"), (99.96, "100"), (12.34, "12.3"), (0.02714, "0.0271"), (0.0, "0")]
    )
    def test_values_have_three_digits_that_count(self, value: float, text: str) -> None:
        assert written(value) == text
