from __future__ import annotations

import numpy as np
import pytest

from flwr_splitkd.costs import ChainCell, ModelledCell
from flwr_splitkd.errors import ConfigError

NAMES = [str(number) for number in range(200)]


def test_resources_depend_on_name_epoch_and_seed_alone() -> None:
    """Whoever decides otherwise, or calls fewer devices, meets the same resources."""
    cell = ModelledCell(seed=3)
    assert isinstance(cell, ChainCell)
    all_of_them = cell.resources(NAMES, server_round=2, epoch=1)
    some = ModelledCell(seed=3).resources([NAMES[7], NAMES[3]], server_round=2, epoch=1)
    assert some.device_flops.tolist() == all_of_them.device_flops[[7, 3]].tolist()
    assert some.channel_gain.tolist() == all_of_them.channel_gain[[7, 3]].tolist()
    for other in (
        cell.resources(NAMES, server_round=3, epoch=1),
        cell.resources(NAMES, server_round=2, epoch=2),
        ModelledCell(seed=4).resources(NAMES, server_round=2, epoch=1),
    ):
        assert not np.isin(other.device_flops, all_of_them.device_flops).any()
        assert not np.isin(other.channel_gain, all_of_them.channel_gain).any()


def test_speeds_stay_around_each_devices_mean() -> None:
    cell = ModelledCell(device_flops=(1e12, 4e12), variation=0.2, named_flops={"0": 9e12})
    speeds = np.stack([cell.resources(NAMES, server_round=r, epoch=1).device_flops for r in range(1, 60)])
    means = speeds.mean(axis=0)
    assert (np.abs(speeds / means - 1) < 0.3).all() and (np.ptp(speeds, axis=0) / means > 0.3).all()
    assert 8.4e12 < means[0] < 9.6e12
    assert 0.9e12 < means[1:].min() < 1.2e12 and 3.4e12 < means[1:].max() < 4.3e12
    # The logarithm is drawn evenly: as many below the geometric mean as above.
    assert 75 < int((means[1:] < 2e12).sum()) < 125


def test_nearer_devices_have_better_channels() -> None:
    near = ModelledCell(distance_m=(20.0, 30.0)).resources(NAMES, server_round=1, epoch=1).channel_gain
    far = ModelledCell(distance_m=(190.0, 200.0)).resources(NAMES, server_round=1, epoch=1).channel_gain
    assert np.median(10 * np.log10(near)) > np.median(10 * np.log10(far)) + 15
    louder = ModelledCell(device_gain_dbi=15.0).resources(NAMES, server_round=1, epoch=1).channel_gain
    plain = ModelledCell(device_gain_dbi=5.0).resources(NAMES, server_round=1, epoch=1).channel_gain
    np.testing.assert_allclose(louder / plain, 10.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"device_flops": (2e12, 1e12)},
            "`device_flops` is .*; expected two finite numbers above 0, the smaller one first",
        ),
        ({"distance_m": (0.0, 10.0)}, "`distance_m` is .*; expected two finite numbers above 0"),
        ({"variation": 1.0}, "`variation` is 1.0"),
        ({"named_flops": {"a": 0.0}}, r"`named_flops\['a'\]` is 0.0"),
        ({"num_subcarriers": 0}, "`num_subcarriers` is 0"),
        ({"cloud_bps": -1.0}, "`cloud_bps` is -1.0"),
        ({"seed": -1}, "`seed` is -1"),
    ],
)
def test_what_is_out_of_range(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelledCell(**changes)  # type: ignore[arg-type]
