"""The tables that a run ends with: modelled costs where there are any."""

from __future__ import annotations

from recorded_runs import turns, with_costs

from flwr_splitkd.strategies.result import SplitKDResult
from flwr_splitkd.strategies.summary import summarize


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]


def test_modelled_costs_have_a_table_of_their_own() -> None:
    made = with_costs(turns(1, ["0", "1", "2"], failing="1"), "modelled", waited_s=2.0)
    text = summarize(SplitKDResult(turns=made))
    turned, costs = text.split("Modelled costs")
    assert "left out" in turned
    assert rows(costs) == [
        ["1", "1", "0", "2", "1.50", "13.0", "26.0", "7.0", ""],
        ["1", "3", "2", "1", "1.50", "12.0", "24.5", "5.5", "late"],
    ]


def test_no_table_without_modelled_costs() -> None:
    for made in (turns(1, ["0"]), with_costs(turns(1, ["0"]), "planned"), []):
        assert "odelled" not in summarize(SplitKDResult(turns=made))
