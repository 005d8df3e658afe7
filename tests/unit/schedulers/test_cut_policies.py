"""Cut policies: what they choose, and what they refuse."""

from __future__ import annotations

import re

import numpy as np
import pytest

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers import CutCycle, CutTable, DeviceView, FixedCut, RandomCut


def _device(node_id: int = 7, name: str = "0") -> DeviceView:
    return DeviceView(node_id=node_id, name=name, server_round=1, turn=0, num_blocks=8, num_examples=10, num_batches=5)


def test_fixed() -> None:
    assert [FixedCut(3).choose(_device(node)) for node in range(4)] == [3] * 4


def test_table_by_name_with_and_without_default() -> None:
    table = CutTable({"0": 2, "jetson": 4}, default=1)
    assert [table.choose(_device(name=name)) for name in ("0", "jetson", "other")] == [2, 4, 1]
    with pytest.raises(ConfigError, match="no device 'other'; expected one of \\['0', 'jetson'\\]"):
        CutTable({"0": 2, "jetson": 4}).choose(_device(name="other"))


def test_cycle_deals_out_and_remembers() -> None:
    policy = CutCycle([1, 2, 4])
    assert [policy.choose(_device(node)) for node in (9, 8, 7, 6)] == [1, 2, 4, 1]
    assert [policy.choose(_device(node)) for node in (6, 7, 8, 9)] == [1, 4, 2, 1]
    with pytest.raises(ConfigError, match="`cuts` is empty"):
        CutCycle([])


def test_random_stays_within_its_inclusive_bounds_and_reaches_them() -> None:
    policy = RandomCut(2, 5, np.random.default_rng(0))
    drawn = [policy.choose(_device()) for _ in range(400)]
    assert set(drawn) == {2, 3, 4, 5}
    assert all(type(cut) is int for cut in drawn)
    assert min(drawn.count(cut) for cut in (2, 3, 4, 5)) > 60  # evenly: 100 expected


def test_random_repeats_with_its_generator() -> None:
    first, second = (RandomCut(1, 9, np.random.default_rng(5)) for _ in range(2))
    draws = [first.choose(_device()) for _ in range(50)]
    assert draws == [second.choose(_device()) for _ in range(50)]
    other = RandomCut(1, 9, np.random.default_rng(6))
    assert draws != [other.choose(_device()) for _ in range(50)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedCut(0), "`cut` is 0; expected at least 1"),
        (lambda: FixedCut(-2), "`cut` is -2; expected at least 1"),
        (lambda: CutTable({"a": 0}), "`cuts['a']` is 0; expected at least 1"),
        (lambda: CutTable({}, default=0), "`default` is 0; expected at least 1"),
        (lambda: CutCycle([1, 0]), "`cuts` is 0; expected at least 1"),
        (lambda: RandomCut(0, 3, np.random.default_rng(0)), "`low` is 0; expected at least 1"),
        (lambda: RandomCut(4, 3, np.random.default_rng(0)), "`high` is 3; expected at least `low`, which is 4"),
    ],
)
def test_out_of_range(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()
