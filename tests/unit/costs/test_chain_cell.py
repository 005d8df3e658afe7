from __future__ import annotations

import numpy as np
import pytest

from flwr_splitkd.costs import ChainCell, ModelledCell
from flwr_splitkd.costs.radio import los_path_loss_db, nlos_path_loss_db
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
        ({"named_distance_m": {"a": 6000.0}}, r"`named_distance_m\['a'\]` is 6000.0"),
        ({"named_gain_db": {"a": 1.0}}, r"`named_gain_db\['a'\]` is 1.0"),
        ({"named_power_dbm": {"a": 101.0}}, r"`named_power_dbm\['a'\]` is 101.0"),
        ({"num_subcarriers": 0}, "`num_subcarriers` is 0"),
        ({"cloud_bps": -1.0}, "`cloud_bps` is -1.0"),
        ({"seed": -1}, "`seed` is -1"),
    ],
)
def test_what_is_out_of_range(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ModelledCell(**changes)  # type: ignore[arg-type]


def test_devices_whose_place_and_power_are_named() -> None:
    """A distance stays in sight or out of it, a gain is taken as it is, and nobody else meets another channel for it."""
    named = ModelledCell(
        named_distance_m={"0": 30.0, "1": 150.0}, named_gain_db={"2": -90.0}, named_power_dbm={"0": 13.0}, seed=5
    )
    devices = [named.device(name) for name in ("0", "1", "2")]
    assert [device.los for device in devices] == [True, False, None]
    assert [device.distance_m for device in devices] == [30.0, 150.0, None]
    assert devices[0].gain_db == pytest.approx(25 - float(los_path_loss_db(30, carrier_frequency_hz=3.5e9)))
    assert devices[1].gain_db == pytest.approx(25 - float(nlos_path_loss_db(150, carrier_frequency_hz=3.5e9)))
    draws = named.draws(NAMES[:10], 200)
    shadowing_db = 10 * np.log10(draws.channel_gain[:, :3]) - [device.gain_db for device in devices]
    np.testing.assert_allclose(shadowing_db.std(axis=0), [4.0, 7.82, 4.0], rtol=0.15)
    assert np.abs(shadowing_db.mean(axis=0)).max() < 1.5
    np.testing.assert_allclose(draws.device_power_w[7, :2], [10**-1.7, 10**-0.7])
    drawn = ModelledCell(seed=5).draws(NAMES[:10], 200)
    assert draws.device_flops.tolist() == drawn.device_flops.tolist()
    assert draws.channel_gain[:, 3:].tolist() == drawn.channel_gain[:, 3:].tolist()


def test_draws_are_the_first_rounds_epochs() -> None:
    cell = ModelledCell(seed=6)
    draws = cell.draws(NAMES[:4], 3)
    for epoch in range(1, 4):
        one = cell.resources(NAMES[:4], server_round=1, epoch=epoch)
        assert draws.draw(epoch - 1).device_flops.tolist() == one.device_flops.tolist()
        assert draws.draw(epoch - 1).channel_gain.tolist() == one.channel_gain.tolist()


def test_without_variation_and_shadowing_every_epoch_is_typical() -> None:
    names = NAMES[:5]
    cell = ModelledCell(variation=0.0, shadowing=False, named_distance_m=dict.fromkeys(names, 90.0), seed=7)
    typical = cell.typical(names)
    draws = cell.draws(names, 3)
    np.testing.assert_allclose(draws.device_flops, np.tile(typical.device_flops, (3, 1)))
    np.testing.assert_allclose(draws.channel_gain, np.tile(typical.channel_gain, (3, 1)))
    # Whose distance is drawn may be in sight in one epoch and not in the next.
    crowd = ModelledCell(shadowing=False, seed=7).draws(NAMES[:50], 20).channel_gain
    assert {len(np.unique(column)) for column in crowd.T} == {1, 2}
