"""From a distance to a rate: path loss, line of sight, noise and channel quality of a 5G cell in a street canyon.

3GPP TR 38.901 gives the path loss (table 7.4.1-1, UMi - Street Canyon) and the probability of a line of sight (table 7.4.2-1),
TS 38.214 the spectral efficiency of each channel quality indicator, CQI (tables 5.2.2.1-2 and 5.2.2.1-3). Distances may be numbers
or arrays of any shape; so are results.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from flwr_splitkd.costs.checks import check_choice, check_number
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.errors import ConfigError

__all__ = [
    "CQI_EFFICIENCIES",
    "GOOD",
    "MAX_DISTANCE_M",
    "MIN_DISTANCE_M",
    "NORMAL",
    "POOR",
    "RADIO_PRESETS",
    "SHADOWING_STD_DB",
    "LineOfSight",
    "RadioSettings",
    "RateTable",
    "breakpoint_distance_m",
    "highest_cqi",
    "los_path_loss_db",
    "los_probability",
    "nlos_path_loss_db",
    "noise_power_dbm",
    "rate_bps",
    "snr_db",
    "spectral_efficiency",
]

LineOfSight = Literal["los", "nlos", "probability"]
RateTable = Literal["cqi-1", "cqi-2", "shannon"]

MIN_DISTANCE_M, MAX_DISTANCE_M = 10.0, 5000.0
"""On the ground, where the path loss holds."""

SHADOWING_STD_DB = {"los": 4.0, "nlos": 7.82}
"""Of the logarithm of the path loss around its formula: TR 38.901, table 7.4.1-1, UMi - Street Canyon."""

CQI_EFFICIENCIES: dict[str, tuple[float, ...]] = {
    "cqi-1": (
        *(0.1523, 0.2344, 0.3770, 0.6016, 0.8770, 1.1758, 1.4766, 1.9141),
        *(2.4063, 2.7305, 3.3223, 3.9023, 4.5234, 5.1152, 5.5547),
    ),
    "cqi-2": (
        *(0.1523, 0.3770, 0.8770, 1.4766, 1.9141, 2.4063, 2.7305, 3.3223),
        *(3.9023, 4.5234, 5.1152, 5.5547, 6.2266, 6.9141, 7.4063),
    ),
}
"""Bits a second and hertz of CQI 1 to 15: TS 38.214, table 5.2.2.1-2 (up to 64QAM) and table 5.2.2.1-3 (up to 256QAM)."""

# TR 38.901, table 7.4.1-1, note 1: the environment is 1 m high in UMi, and light is this fast.
_ENVIRONMENT_HEIGHT_M, _LIGHT_MPS = 1.0, 3.0e8


def breakpoint_distance_m(carrier_frequency_hz: float, base_station_height_m: float, device_height_m: float) -> float:
    """Return where the ground's reflection begins to bend the path loss: ``d'BP = 4 h'BS h'UT f / c``, ``h' = h - 1 m``.

    TR 38.901, table 7.4.1-1, note 1.

    Parameters
    ----------
    carrier_frequency_hz
        More than 0.
    base_station_height_m, device_height_m
        Of the antennas, more than 1 m.
    """
    heights = (base_station_height_m - _ENVIRONMENT_HEIGHT_M) * (device_height_m - _ENVIRONMENT_HEIGHT_M)
    return 4 * heights * carrier_frequency_hz / _LIGHT_MPS


def los_path_loss_db(
    distance_m: float | Float,
    *,
    carrier_frequency_hz: float,
    base_station_height_m: float = 10.0,
    device_height_m: float = 1.5,
) -> Float:
    """Path loss with a line of sight.

    TR 38.901, table 7.4.1-1, UMi - Street Canyon LOS; f in GHz, ``d3D^2 = d2D^2 + (hBS - hUT)^2``: up to the breakpoint
    ``32.4 + 21 log10(d3D) + 20 log10(f)``, behind it ``32.4 + 40 log10(d3D) + 20 log10(f) - 9.5 log10(d'BP^2 + (hBS - hUT)^2)``.

    Parameters
    ----------
    distance_m
        On the ground, at most 5 km; below 10 m the value of 10 m is returned.
    carrier_frequency_hz
        0.5 to 100 GHz.
    base_station_height_m, device_height_m
        Of the antennas.

    Raises
    ------
    ConfigError
        If the distance is out of range.
    """
    ground_m = _ground(distance_m)
    rise_m = base_station_height_m - device_height_m
    log_distance = np.log10(np.hypot(ground_m, rise_m))
    log_frequency = np.log10(carrier_frequency_hz / 1e9)
    breakpoint_m = breakpoint_distance_m(carrier_frequency_hz, base_station_height_m, device_height_m)
    near = 32.4 + 21 * log_distance + 20 * log_frequency
    far = 32.4 + 40 * log_distance + 20 * log_frequency - 9.5 * np.log10(breakpoint_m**2 + rise_m**2)
    return np.asarray(np.where(ground_m <= breakpoint_m, near, far), dtype=np.float64)


def nlos_path_loss_db(
    distance_m: float | Float,
    *,
    carrier_frequency_hz: float,
    base_station_height_m: float = 10.0,
    device_height_m: float = 1.5,
) -> Float:
    """Path loss without a line of sight: ``max(LOS, 22.4 + 35.3 log10(d3D) + 21.3 log10(f) - 0.3 (hUT - 1.5))``.

    TR 38.901, table 7.4.1-1, UMi - Street Canyon NLOS. Parameters and errors as in `los_path_loss_db`.
    """
    slant_m = np.hypot(_ground(distance_m), base_station_height_m - device_height_m)
    blocked = (
        22.4 + 35.3 * np.log10(slant_m) + 21.3 * np.log10(carrier_frequency_hz / 1e9) - 0.3 * (device_height_m - 1.5)
    )
    clear = los_path_loss_db(
        distance_m,
        carrier_frequency_hz=carrier_frequency_hz,
        base_station_height_m=base_station_height_m,
        device_height_m=device_height_m,
    )
    return np.asarray(np.maximum(clear, blocked), dtype=np.float64)


def los_probability(distance_m: float | Float) -> Float:
    """Probability of a line of sight: 1 up to 18 m, then ``18/d + exp(-d/36) (1 - 18/d)``.

    TR 38.901, table 7.4.2-1, UMi - Street Canyon, outdoors.

    Parameters
    ----------
    distance_m
        On the ground, at least 0.
    """
    ground_m = np.maximum(np.asarray(distance_m, dtype=np.float64), 18.0)
    return np.asarray(18 / ground_m + np.exp(-ground_m / 36) * (1 - 18 / ground_m), dtype=np.float64)


def noise_power_dbm(noise_dbm_per_hz: float, bandwidth_hz: float, noise_figure_db: float = 0.0) -> float:
    """Noise in a receiver: ``N0 + 10 log10(bandwidth) + noise figure``; N0 is -174 dBm/Hz for thermal noise at 290 K."""
    return float(noise_dbm_per_hz + 10 * np.log10(bandwidth_hz) + noise_figure_db)


def snr_db(
    path_loss_db: float | Float, *, transmit_power_dbm: float, antenna_gain_dbi: float, noise_dbm: float
) -> Float:
    """Signal to noise at the receiver: ``power + gain - path loss - noise``.

    Parameters
    ----------
    path_loss_db
        With shadowing.
    transmit_power_dbm, antenna_gain_dbi
        Of the sender; of both antennas together.
    noise_dbm
        See `noise_power_dbm`.
    """
    return np.asarray(transmit_power_dbm + antenna_gain_dbi - np.asarray(path_loss_db) - noise_dbm, dtype=np.float64)


def highest_cqi(efficiency: float | Float, table: RateTable) -> np.ndarray:
    """Return the largest CQI whose spectral efficiency is at most `efficiency`; 0 if none is.

    Raises
    ------
    ConfigError
        If the table has no CQI.
    """
    check_choice("table", table, CQI_EFFICIENCIES)
    return np.searchsorted(CQI_EFFICIENCIES[table], np.asarray(efficiency, dtype=np.float64), side="right")


def spectral_efficiency(snr_db: float | Float, *, table: RateTable, gap_db: float = 0.0) -> Float:
    """Bits a second and hertz: ``log2(1 + SNR / gap)``, and with a CQI table the largest entry that is not above it.

    Parameters
    ----------
    snr_db
        Signal to noise.
    table
        ``"shannon"`` for the formula itself; below CQI 1 the tables give 0.
    gap_db
        How much more signal a real modem needs than Shannon's bound, at least 0.

    Raises
    ------
    ConfigError
        If there is no such table.
    """
    check_choice("table", table, [*CQI_EFFICIENCIES, "shannon"])
    bound = np.log2(1 + 10 ** ((np.asarray(snr_db, dtype=np.float64) - gap_db) / 10))
    if table == "shannon":
        return np.asarray(bound, dtype=np.float64)
    return np.asarray(np.array([0.0, *CQI_EFFICIENCIES[table]])[highest_cqi(bound, table)], dtype=np.float64)


def rate_bps(snr_db: float | Float, *, bandwidth_hz: float, table: RateTable, gap_db: float = 0.0) -> Float:
    """Bits a second: bandwidth times `spectral_efficiency`; parameters and errors as there."""
    return bandwidth_hz * spectral_efficiency(snr_db, table=table, gap_db=gap_db)


@dataclass(frozen=True, slots=True, kw_only=True)
class RadioSettings:
    """A cell, a device in it, and how a rate is worked out.

    Parameters
    ----------
    carrier_frequency_hz
        0.5 to 100 GHz.
    uplink_bandwidth_hz, downlink_bandwidth_hz
        What the device has for itself. 100 MHz is one of the channel bandwidths above 24 GHz (TS 38.101-2, table 5.3.5-1).
    device_power_dbm, base_station_power_dbm
        Sent, before antenna gain. 23 dBm is the most that a handheld device may radiate (TS 38.101-2, power class 3).
    device_height_m, base_station_height_m
        Of the antennas. The standard's formulas are for 1.5 to 22.5 m and for 10 m.
    device_gain_dbi, base_station_gain_dbi
        Of the antennas along their beams, both in use in both directions: ``element + 10 log10(elements)``. The defaults are
        a panel of 8 x 8 elements of 8 dBi (TR 38.901, table 7.3-1) with 26 dBi, and 4 elements of 5 dBi on the device with
        11 dBi. Without beams a signal at 28 GHz is lost in noise after some tens of metres. The beams are taken to follow each
        other without error; what a real system loses by searching and pointing is to be subtracted here.
    noise_dbm_per_hz, noise_figure_db
        At the receiver. The defaults are thermal noise, and what ITU-R M.2412 gives a device at 30 GHz.
    table
        ``"cqi-1"`` or ``"cqi-2"``, see `CQI_EFFICIENCIES`, or ``"shannon"`` for rates without steps and without an upper end.
    gap_db
        Distance from Shannon's bound. 3 dB is a round figure for coding and channel estimation; 0 is the bound.
    los
        ``"los"`` or ``"nlos"`` everywhere, or ``"probability"``: by place, see `los_probability`.
    shadowing
        Whether path loss varies around its formula.
    """

    carrier_frequency_hz: float = 28e9
    uplink_bandwidth_hz: float = 100e6
    downlink_bandwidth_hz: float = 100e6
    device_power_dbm: float = 23.0
    base_station_power_dbm: float = 35.0
    device_height_m: float = 1.5
    base_station_height_m: float = 10.0
    device_gain_dbi: float = 11.0
    base_station_gain_dbi: float = 26.0
    noise_dbm_per_hz: float = -174.0
    noise_figure_db: float = 10.0
    table: RateTable = "cqi-1"
    gap_db: float = 3.0
    los: LineOfSight = "probability"
    shadowing: bool = True

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises
        ------
        ConfigError
            If one is out of range.
        """
        check_number(
            "carrier_frequency_hz",
            self.carrier_frequency_hz,
            minimum=0.5e9,
            maximum=100e9,
            unit="Hz",
            remedy="TR 38.901 has no path loss for others; use a trace.",
        )
        for name in ("uplink_bandwidth_hz", "downlink_bandwidth_hz"):
            check_number(name, getattr(self, name), above=0, unit="Hz")
        for name in ("device_power_dbm", "base_station_power_dbm", "device_gain_dbi", "base_station_gain_dbi"):
            check_number(name, getattr(self, name), unit="dBm" if name.endswith("dbm") else "dBi")
        check_number("device_height_m", self.device_height_m, minimum=1.5, maximum=22.5, unit="m")
        check_number("base_station_height_m", self.base_station_height_m, above=_ENVIRONMENT_HEIGHT_M, unit="m")
        check_number(
            "noise_dbm_per_hz", self.noise_dbm_per_hz, maximum=0, unit="dBm/Hz", remedy="Did the sign get lost?"
        )
        check_number("noise_figure_db", self.noise_figure_db, minimum=0, unit="dB")
        check_number("gap_db", self.gap_db, minimum=0, unit="dB", remedy="No modem beats Shannon's bound.")
        check_choice("table", self.table, [*CQI_EFFICIENCIES, "shannon"])
        check_choice("los", self.los, ["los", "nlos", "probability"])
        if not isinstance(self.shadowing, bool):
            raise ConfigError(f"`shadowing` is {self.shadowing!r}; expected True or False.")


# Li et al., section V: three noise densities name the channel's quality. They are what the receiver sees, so its noise figure is
# in them: thermal noise and 8, 11 and 14 dB. The paper gives neither bandwidth nor power nor antennas; these are the defaults.
GOOD = RadioSettings(noise_dbm_per_hz=-166.0, noise_figure_db=0.0)
NORMAL = replace(GOOD, noise_dbm_per_hz=-163.0)
POOR = replace(GOOD, noise_dbm_per_hz=-160.0)

RADIO_PRESETS = {"good": GOOD, "normal": NORMAL, "poor": POOR}
"""The channels of Li et al., "Split Knowledge Distillation for Large Models in IoT", section V."""


def _ground(distance_m: float | Float) -> Float:
    ground_m = np.asarray(distance_m, dtype=np.float64)
    if not (np.all(ground_m >= 0) and np.all(ground_m <= MAX_DISTANCE_M)):  # NaN too
        odd = ground_m[~((ground_m >= 0) & (ground_m <= MAX_DISTANCE_M))].flat[0]
        raise ConfigError(
            f"`distance_m` is {odd:g}; expected 0 to {MAX_DISTANCE_M:g} m, where TR 38.901's formulas hold. Move the way points "
            "nearer to the base station, or use a trace."
        )
    return np.maximum(ground_m, MIN_DISTANCE_M)
