from __future__ import annotations

import pytest

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers import DeviceView, EqualShares, FixedShares, SharePolicy


def _views(*names: str) -> list[DeviceView]:
    return [
        DeviceView(node_id=i, name=name, server_round=1, turn=i, num_blocks=4, num_examples=8, num_batches=2)
        for i, name in enumerate(names)
    ]


def test_shares_by_name() -> None:
    assert EqualShares().share(_views("a", "b")) == [1.0, 1.0]
    assert FixedShares({"b": 3.0}, default=0.5).share(_views("a", "b")) == [0.5, 3.0]
    assert isinstance(EqualShares(), SharePolicy) and isinstance(FixedShares({}), SharePolicy)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_share_is_above_zero(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"The weight of 'a' is .*; expected a finite number above 0"):
        FixedShares({"a": weight})
    with pytest.raises(ConfigError, match="The weight of 'default'"):
        FixedShares({}, default=weight)
