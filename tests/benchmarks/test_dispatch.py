"""The dispatch benchmark: how gaps are made of the lines of a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the benchmark needs it")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from dispatch import gaps_between


def turn(server_round: int, started_s: float) -> dict[str, Any]:
    times = {"started_s": started_s, "first_forward_s": 0.25, "duration_s": 8.0}
    return {"server_round": server_round, "handover_downlink_bytes": 5, **times}


def test_a_gap_lasts_from_a_turn_s_end_to_the_next_one_s_first_smashed_data() -> None:
    within, between = gaps_between([turn(1, 10.0), turn(1, 18.5), turn(2, 30.0)])
    assert (within.seconds, within.dispatch_s, within.device_s) == pytest.approx((0.75, 0.5, 0.25))
    assert (between.seconds, between.dispatch_s, between.device_s) == pytest.approx((3.75, 3.5, 0.25))
    assert (within.boundary, between.boundary) == (False, True)
    assert within.handover_bytes == 5


def test_next_to_a_turn_that_failed_there_is_no_gap() -> None:
    failed = {"server_round": 1, "error": "it left"}
    assert len(gaps_between([turn(1, 0.0), failed, turn(1, 20.0), turn(1, 28.0)])) == 1
