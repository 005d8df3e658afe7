"""The tables that a run ends with: modelled costs and measured joules where there are any."""

from __future__ import annotations

from recorded_runs import turns, with_costs, with_joules

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


def test_measured_joules_have_a_table_of_their_own() -> None:
    text = summarize(SplitKDResult(turns=with_joules(turns(1, ["0", "1", "2"], failing="1"))))
    _, measured = text.split("Measured energy")
    assert rows(measured) == [
        ["1", "1", "0", "4", "8.0", "2.000", "20.0", "5.000"],
        ["1", "3", "2", "4", "8.0", "2.000", "-", "-"],
    ]
    assert "In the joules of the device: VDD_IN.\n" in measured
    assert "In the joules of the edge: NVIDIA H200 0, package-0.\n" in measured


def test_no_table_without_measured_joules() -> None:
    assert "Measured energy" not in summarize(SplitKDResult(turns=turns(1, ["0"])))


def test_lines_have_joules_where_they_were_measured_and_no_keys_elsewhere() -> None:
    plain, (measured, other) = turns(1, ["0", "1"]), with_joules(turns(1, ["0", "1"]))
    keys = {name for name in measured.to_json() if name.startswith("measured_")}
    assert {name: measured.to_json()[name] for name in keys} == {
        "measured_device_j": 8.0,
        "measured_device_j_per_step": 2.0,
        "measured_device_parts": ["VDD_IN"],
        "measured_edge_j": 20.0,
        "measured_edge_j_per_step": 5.0,
        "measured_edge_parts": ["NVIDIA H200 0", "package-0"],
    }
    assert "measured_edge_j" not in other.to_json() and other.to_json()["measured_device_j"] == 8.0
    assert not [name for name in plain[0].to_json() if name.startswith("measured_")]
