"""Path loss, line of sight, noise and CQI, against arithmetic of their own."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs.radio import (
    CQI_EFFICIENCIES,
    RADIO_PRESETS,
    RadioSettings,
    breakpoint_distance_m,
    highest_cqi,
    los_path_loss_db,
    los_probability,
    nlos_path_loss_db,
    noise_power_dbm,
    rate_bps,
    snr_db,
    spectral_efficiency,
)
from flwr_splitkd.errors import ConfigError

# Worked out apart from Python from TR 38.901, table 7.4.1-1, with antennas at 10 and 1.5 m, such as
# 10 m: d3D = 13.1244, 32.4 + 21 * 1.118081 + 28.9432 = 84.8228 and 22.4 + 35.3 * 1.118081 + 30.8245 = 92.6927.
# The breakpoint 4 * 9 * 0.5 * f / 3e8 is at 1680 m with 28 GHz and at 210 m with 3.5 GHz: two rows are behind it.
BY_HAND = [
    # carrier, metres, LOS, NLOS
    (28e9, 10.0, 84.8228, 92.6927),
    (28e9, 50.0, 97.1514, 113.4165),
    (28e9, 100.0, 103.3760, 123.8796),
    (28e9, 200.0, 109.6730, 134.4647),
    (28e9, 1000.0, 124.3435, 159.1250),
    (28e9, 2000.0, 132.1035, 169.7510),
    (3.5e9, 100.0, 85.3142, 104.6438),
    (3.5e9, 300.0, 98.2443, 121.4372),
]


def _paper_and_pencil(carrier_hz: float, metres: float) -> tuple[float, float]:
    """The two formulas once more, with math instead of numpy and without the code under test."""
    slant, ghz = math.sqrt(metres**2 + 8.5**2), carrier_hz / 1e9
    bend = 4 * 9.0 * 0.5 * carrier_hz / 3e8
    los = 32.4 + 20 * math.log10(ghz)
    if metres <= bend:
        los += 21 * math.log10(slant)
    else:
        los += 40 * math.log10(slant) - 9.5 * math.log10(bend**2 + 8.5**2)
    return los, max(los, 22.4 + 35.3 * math.log10(slant) + 21.3 * math.log10(ghz))


@pytest.mark.parametrize(("carrier_hz", "metres", "los_db", "nlos_db"), BY_HAND)
def test_path_loss_is_that_of_the_standard(carrier_hz: float, metres: float, los_db: float, nlos_db: float) -> None:
    assert _paper_and_pencil(carrier_hz, metres) == pytest.approx((los_db, nlos_db), abs=1e-4)
    assert float(los_path_loss_db(metres, carrier_frequency_hz=carrier_hz)) == pytest.approx(los_db, abs=1e-4)
    assert float(nlos_path_loss_db(metres, carrier_frequency_hz=carrier_hz)) == pytest.approx(nlos_db, abs=1e-4)


def test_a_higher_device_has_less_loss_without_a_line_of_sight() -> None:
    low = nlos_path_loss_db(300.0, carrier_frequency_hz=28e9, device_height_m=1.5)
    slant_low, slant_high = math.hypot(300, 8.5), math.hypot(300, 4.5)
    high = nlos_path_loss_db(300.0, carrier_frequency_hz=28e9, device_height_m=5.5)
    assert float(low - high) == pytest.approx(0.3 * 4 + 35.3 * math.log10(slant_low / slant_high))


def test_loss_without_a_line_of_sight_is_at_least_that_with_one() -> None:
    """10 m apart and high up at 500 MHz: 22.4 + 35.3 - 6.4 - 6.3 = 45 dB would be less than 32.4 + 21 - 6 = 47.4 dB."""
    loss = [
        float(path_loss_db(10.0, carrier_frequency_hz=0.5e9, base_station_height_m=22.5, device_height_m=22.5))
        for path_loss_db in (los_path_loss_db, nlos_path_loss_db)
    ]
    assert loss == pytest.approx([32.4 + 21 + 20 * math.log10(0.5)] * 2)


@pytest.mark.parametrize("carrier_hz", [0.5e9, 3.5e9, 28e9, 60e9])
def test_path_loss_has_no_step_at_the_breakpoint(carrier_hz: float) -> None:
    bend = breakpoint_distance_m(carrier_hz, 10.0, 1.5)
    assert bend == pytest.approx(60e-9 * carrier_hz)
    around = np.array([bend * (1 - 1e-9), bend, bend * (1 + 1e-9)])
    loss = los_path_loss_db(around, carrier_frequency_hz=carrier_hz)
    assert np.ptp(loss) < 1e-6
    # But a bend: 21 dB a decade before it, 40 dB behind. The slant distance is a little less than proportional.
    factor = 1.1
    before, at, behind = los_path_loss_db(bend * np.array([1 / factor, 1, factor]), carrier_frequency_hz=carrier_hz)
    slants = np.log10(np.hypot(bend * np.array([1 / factor, 1, factor]), 8.5))
    assert (at - before) / (slants[1] - slants[0]) == pytest.approx(21)
    assert (behind - at) / (slants[2] - slants[1]) == pytest.approx(40)


def test_path_loss_grows_and_is_never_less_without_a_line_of_sight() -> None:
    metres = np.geomspace(10, 5000, 400)
    for carrier_hz in (0.5e9, 2e9, 28e9, 100e9):
        los = los_path_loss_db(metres, carrier_frequency_hz=carrier_hz)
        nlos = nlos_path_loss_db(metres, carrier_frequency_hz=carrier_hz)
        assert (np.diff(los) > 0).all() and (np.diff(nlos) > 0).all()
        assert (nlos >= los).all()


@pytest.mark.parametrize("path_loss_db", [los_path_loss_db, nlos_path_loss_db])
def test_nearer_than_the_standard_goes_counts_as_its_nearest(path_loss_db: Any) -> None:
    assert (
        path_loss_db(np.array([0.0, 3.0, 10.0]), carrier_frequency_hz=28e9).tolist()
        == [float(path_loss_db(10.0, carrier_frequency_hz=28e9))] * 3
    )
    for metres in (5000.1, -1.0, math.nan):
        with pytest.raises(ConfigError, match=re.escape(f"`distance_m` is {metres:g}; expected 0 to 5000 m")):
            path_loss_db(np.array([20.0, metres]), carrier_frequency_hz=28e9)


def test_probability_of_a_line_of_sight() -> None:
    """TR 38.901, table 7.4.2-1: 36 m by hand is 0.5 + exp(-1) / 2."""
    assert los_probability(np.array([0.0, 10.0, 18.0])).tolist() == [1.0] * 3
    assert float(los_probability(36.0)) == pytest.approx(0.5 + 0.36787944 / 2)
    assert float(los_probability(100.0)) == pytest.approx(0.18 + math.exp(-100 / 36) * 0.82)
    assert (np.diff(los_probability(np.linspace(18, 5000, 500))) < 0).all()


def test_noise_and_signal() -> None:
    assert noise_power_dbm(-174, 1e6) == pytest.approx(-114)
    assert noise_power_dbm(-174, 100e6, 10) == pytest.approx(-84)
    assert float(snr_db(100.0, transmit_power_dbm=23, antenna_gain_dbi=30, noise_dbm=-84)) == pytest.approx(37)


# A few entries of TS 38.214 as modulation order x code rate / 1024, which is how the standard derives them.
@pytest.mark.parametrize(
    ("table", "cqi", "bits", "rate"),
    [
        ("cqi-1", 1, 2, 78),
        ("cqi-1", 6, 2, 602),
        ("cqi-1", 7, 4, 378),
        ("cqi-1", 10, 6, 466),
        ("cqi-1", 15, 6, 948),
        ("cqi-2", 1, 2, 78),
        ("cqi-2", 3, 2, 449),
        ("cqi-2", 4, 4, 378),
        ("cqi-2", 11, 6, 873),
        ("cqi-2", 12, 8, 711),
        ("cqi-2", 15, 8, 948),
    ],
)
def test_efficiencies_are_bits_times_code_rate(table: str, cqi: int, bits: int, rate: int) -> None:
    assert CQI_EFFICIENCIES[table][cqi - 1] == pytest.approx(bits * rate / 1024, abs=1e-4)


@pytest.mark.parametrize("table", ["cqi-1", "cqi-2"])
def test_cqi_changes_exactly_at_its_efficiency(table: Any) -> None:
    entries = CQI_EFFICIENCIES[table]
    assert len(entries) == 15
    for cqi, efficiency in enumerate(entries, start=1):
        assert highest_cqi(efficiency, table) == cqi
        assert highest_cqi(np.nextafter(efficiency, 0), table) == cqi - 1
    assert highest_cqi(np.array([0.0, 0.1522, 100.0]), table).tolist() == [0, 0, 15]


@pytest.mark.parametrize("table", ["cqi-1", "cqi-2"])
@pytest.mark.parametrize("gap_db", [0.0, 3.0, 7.4])
def test_signal_that_a_cqi_asks_for(table: Any, gap_db: float) -> None:
    entries = np.array(CQI_EFFICIENCIES[table])
    needed_db = 10 * np.log10(2**entries - 1) + gap_db
    below = spectral_efficiency(needed_db - 1e-9, table=table, gap_db=gap_db)
    above = spectral_efficiency(needed_db + 1e-9, table=table, gap_db=gap_db)
    assert below.tolist() == [0.0, *entries[:-1]]
    assert above.tolist() == entries.tolist()
    assert rate_bps(needed_db + 1e-9, bandwidth_hz=2e6, table=table, gap_db=gap_db).tolist() == (2e6 * entries).tolist()


def test_shannon_has_no_steps_and_no_end() -> None:
    snr = 10 * np.log10(np.array([1.0, 3.0, 1023.0]))
    assert spectral_efficiency(snr, table="shannon") == pytest.approx(np.array([1.0, 2.0, 10.0]))
    assert spectral_efficiency(snr + 3.7, table="shannon", gap_db=3.7) == pytest.approx(np.array([1.0, 2.0, 10.0]))
    every = np.linspace(-30, 50, 200)
    for table in ("cqi-1", "cqi-2"):
        quantised = spectral_efficiency(every, table=table)
        assert (quantised <= spectral_efficiency(every, table="shannon")).all()


@pytest.mark.parametrize("table", ["cqi-1", "cqi-2", "shannon"])
@pytest.mark.parametrize("path_loss_db", [los_path_loss_db, nlos_path_loss_db])
def test_rate_falls_with_distance(table: Any, path_loss_db: Any) -> None:
    loss = path_loss_db(np.geomspace(10, 5000, 300), carrier_frequency_hz=28e9)
    signal = snr_db(loss, transmit_power_dbm=23, antenna_gain_dbi=20, noise_dbm=noise_power_dbm(-163, 100e6))
    rates = rate_bps(signal, bandwidth_hz=100e6, table=table, gap_db=3)
    assert (np.diff(rates) <= 0).all()
    assert rates[0] > 2 * rates[-1]


def test_presets_differ_in_nothing_but_noise() -> None:
    values = [[getattr(preset, field.name) for preset in RADIO_PRESETS.values()] for field in fields(RadioSettings)]
    differing = [field.name for field, row in zip(fields(RadioSettings), values, strict=True) if len(set(row)) > 1]
    assert differing == ["noise_dbm_per_hz"]
    assert {name: preset.noise_dbm_per_hz for name, preset in RADIO_PRESETS.items()} == {
        "good": -166,
        "normal": -163,
        "poor": -160,
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "carrier_frequency_hz",
            28,
            "is 28; expected a finite number of at least 5e+08 and at most 1e+11 Hz. TR 38.901",
        ),
        ("carrier_frequency_hz", "28e9", "is '28e9'; expected a finite number"),
        ("uplink_bandwidth_hz", 0, "is 0; expected a finite number of more than 0 Hz"),
        ("downlink_bandwidth_hz", -1.0, "is -1.0; expected a finite number of more than 0 Hz"),
        ("device_power_dbm", math.nan, "is nan; expected a finite number dBm"),
        ("base_station_power_dbm", True, "is True; expected a finite number dBm"),
        ("device_gain_dbi", math.inf, "is inf; expected a finite number dBi"),
        ("device_height_m", 1.0, "is 1.0; expected a finite number of at least 1.5 and at most 22.5 m"),
        ("base_station_height_m", 1.0, "is 1.0; expected a finite number of more than 1 m"),
        ("noise_dbm_per_hz", 174.0, "is 174.0; expected a finite number of at most 0 dBm/Hz. Did the sign get lost?"),
        ("noise_figure_db", -1, "is -1; expected a finite number of at least 0 dB"),
        ("gap_db", -0.1, "is -0.1; expected a finite number of at least 0 dB. No modem"),
        ("table", "cqi-3", "is 'cqi-3'; expected one of 'cqi-1', 'cqi-2', 'shannon'"),
        ("los", True, "is True; expected one of 'los', 'nlos', 'probability'"),
        ("shadowing", 1, "is 1; expected True or False"),
    ],
)
def test_settings_out_of_range(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"`{field}` {message}")):
        RadioSettings(**{field: value})  # type: ignore[arg-type]


def test_unknown_tables() -> None:
    with pytest.raises(ConfigError, match="`table` is 'lte'; expected one of 'cqi-1', 'cqi-2', 'shannon'"):
        spectral_efficiency(3.0, table="lte")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`table` is 'shannon'; expected one of 'cqi-1', 'cqi-2'"):
        highest_cqi(3.0, "shannon")
