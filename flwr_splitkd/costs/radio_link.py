"""The radio link of a device that moves through a cell.

Along the way there are three random fields, each a stationary Gaussian process of standard deviation 1 whose correlation over a
distance is ``exp(-distance / d_corr)`` (Gudmundson, "Correlation model for shadow fading in mobile radio systems", 1991; TR 38.901,
section 7.4.4):

- shadowing with and without a line of sight, ``d_corr`` 10 and 13 m (TR 38.901, table 7.5-6, UMi), times 4 and 7.82 dB;
- the line of sight itself, ``d_corr`` 50 m (TR 38.901, table 7.6.3.1-2, UMi): a place has one where the field's probability
  integral ``Phi(z)`` is below the place's probability of a line of sight, so that both the share of places and its persistence
  are the standard's.

The fields belong to places, as buildings do: who comes back finds what was there. They are drawn when the link is made, so that
rates depend on the time alone and not on when somebody has asked; two schedules can be compared on the same channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.costs.links import LinkState
from flwr_splitkd.costs.mobility import Trajectory
from flwr_splitkd.costs.radio import (
    MAX_DISTANCE_M,
    SHADOWING_STD_DB,
    RadioSettings,
    highest_cqi,
    los_path_loss_db,
    los_probability,
    nlos_path_loss_db,
    noise_power_dbm,
    rate_bps,
    snr_db,
    spectral_efficiency,
)
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.errors import ConfigError

__all__ = ["CORRELATION_DISTANCE_M", "RadioLink", "RadioState", "correlated_field"]

CORRELATION_DISTANCE_M = {"los": 10.0, "nlos": 13.0, "line of sight": 50.0}
"""Of shadowing with and without a line of sight, and of the line of sight."""

# The fields are constant over so much of the way: a tenth of the shortest correlation distance.
_CELL_M = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RadioState:
    """What the radio was like at one moment, for logs.

    Parameters
    ----------
    time_s
        The moment.
    distance_m
        From the base station, on the ground.
    los
        Whether there is a line of sight.
    shadowing_db
        Part of the path loss that is due to the place; negative where the signal is better than usual.
    path_loss_db
        With shadowing.
    uplink_snr_db, downlink_snr_db
        Signal to noise at the base station and at the device.
    uplink_cqi, downlink_cqi
        0 to 15; None with Shannon's formula.
    link
        The rates.
    """

    time_s: float
    distance_m: float
    los: bool
    shadowing_db: float
    path_loss_db: float
    uplink_snr_db: float
    downlink_snr_db: float
    uplink_cqi: int | None
    downlink_cqi: int | None
    link: LinkState


class RadioLink:
    """Rates of a device on its way through a cell.

    Parameters
    ----------
    settings
        The cell and the radio.
    trajectory
        The device's way; the base station is at the origin.
    rng
        Where the fields are drawn from, all of them here. Links with the same way and generators of the same seed share a street:
        the same shadows in the same places.

    Raises
    ------
    ConfigError
        If the way leads out of the distances that the path loss is for.
    """

    def __init__(self, settings: RadioSettings, trajectory: Trajectory, rng: np.random.Generator) -> None:
        if trajectory.farthest_m > MAX_DISTANCE_M:
            raise ConfigError(
                f"`way_points` reach {trajectory.farthest_m:g} m from the base station; expected at most {MAX_DISTANCE_M:g} m. "
                "Move them nearer, or use a trace."
            )
        self.settings, self.trajectory = settings, trajectory
        # All of them, whatever the settings use: switching one effect off leaves the others as they were.
        self._fields = {
            name: correlated_field(trajectory.length_m, correlation_m, rng, closed=trajectory.closed, cell_m=_CELL_M)
            for name, correlation_m in CORRELATION_DISTANCE_M.items()
        }
        self._state: RadioState | None = None

    @property
    def state(self) -> RadioState | None:
        """The last state that was asked for; None before."""
        return self._state

    @property
    def snr_db(self) -> float | None:
        """The uplink's signal to noise in the last state; None before."""
        return None if self._state is None else self._state.uplink_snr_db

    @property
    def cqi(self) -> int | None:
        """The uplink's CQI in the last state; None before, and with Shannon's formula."""
        return None if self._state is None else self._state.uplink_cqi

    def at(self, time_s: float) -> LinkState:
        """Return the rates at a time; the same time gives the same state.

        Raises
        ------
        ConfigError
            If the time is before the last one.
        """
        last_s = 0.0 if self._state is None else self._state.time_s
        check_number("time_s", time_s, minimum=last_s, unit="s", remedy="Times do not run backwards; make a new link.")
        if self._state is None or time_s > last_s:
            self._state = self._at(time_s)
        return self._state.link

    def _at(self, time_s: float) -> RadioState:
        settings = self.settings
        distance_m = self.trajectory.distance_m(time_s)
        los = self._has_line_of_sight(time_s, distance_m)
        path_loss_db = (los_path_loss_db if los else nlos_path_loss_db)(
            distance_m,
            carrier_frequency_hz=settings.carrier_frequency_hz,
            base_station_height_m=settings.base_station_height_m,
            device_height_m=settings.device_height_m,
        )
        kind = "los" if los else "nlos"
        shadowing_db = SHADOWING_STD_DB[kind] * self._field(kind, time_s) if settings.shadowing else 0.0
        loss_db = float(path_loss_db) + shadowing_db
        up_db, up_cqi, up_bps = self._direction(loss_db, settings.device_power_dbm, settings.uplink_bandwidth_hz)
        down_db, down_cqi, down_bps = self._direction(
            loss_db, settings.base_station_power_dbm, settings.downlink_bandwidth_hz
        )
        return RadioState(
            time_s=time_s,
            distance_m=distance_m,
            los=los,
            shadowing_db=shadowing_db,
            path_loss_db=loss_db,
            uplink_snr_db=up_db,
            downlink_snr_db=down_db,
            uplink_cqi=up_cqi,
            downlink_cqi=down_cqi,
            link=LinkState(uplink_bps=up_bps, downlink_bps=down_bps),
        )

    def _has_line_of_sight(self, time_s: float, distance_m: float) -> bool:
        if self.settings.los != "probability":
            return self.settings.los == "los"
        rank = 0.5 * (1 + math.erf(self._field("line of sight", time_s) / math.sqrt(2)))
        return rank < float(los_probability(distance_m))

    def _field(self, name: str, time_s: float) -> float:
        values, length_m = self._fields[name], self.trajectory.length_m
        if length_m == 0:
            return float(values[0])
        cell = int(self.trajectory.along_m(time_s) / length_m * len(values))
        return float(values[min(cell, len(values) - 1)])

    def _direction(self, loss_db: float, power_dbm: float, bandwidth_hz: float) -> tuple[float, int | None, float]:
        """Signal to noise, CQI and rate."""
        settings = self.settings
        signal_db = snr_db(
            loss_db,
            transmit_power_dbm=power_dbm,
            antenna_gain_dbi=settings.device_gain_dbi + settings.base_station_gain_dbi,
            noise_dbm=noise_power_dbm(settings.noise_dbm_per_hz, bandwidth_hz, settings.noise_figure_db),
        )
        rate = rate_bps(signal_db, bandwidth_hz=bandwidth_hz, table=settings.table, gap_db=settings.gap_db)
        cqi = None
        if settings.table != "shannon":
            bound = spectral_efficiency(signal_db, table="shannon", gap_db=settings.gap_db)
            cqi = int(highest_cqi(bound, settings.table))
        return float(signal_db), cqi, float(rate)


def correlated_field(
    length_m: float,
    correlation_m: float,
    rng: np.random.Generator,
    *,
    closed: bool = False,
    cell_m: float = _CELL_M,
) -> Float:
    """Draw a Gaussian field along a way: mean 0, standard deviation 1, correlation ``exp(-distance / correlation_m)``.

    Distances are along the way; on a closed one the shorter way round. Exact on a circle, where the correlation matrix is
    circulant: its root is applied with two Fourier transforms. An open way is one half of a circle of twice its length.

    Parameters
    ----------
    length_m
        Of the way; 0 for a place.
    correlation_m
        More than 0.
    rng
        Where the field is drawn from.
    closed
        Whether the way's end is its beginning.
    cell_m
        Largest size of a cell; the field has one value for each.

    Returns
    -------
    Float
        From the way's beginning. Shape ``[max(ceil(length_m / cell_m), 1)]``.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """
    check_number("length_m", length_m, minimum=0, unit="m")
    check_number("correlation_m", correlation_m, above=0, unit="m")
    check_number("cell_m", cell_m, above=0, unit="m")
    cells = max(math.ceil(length_m / cell_m), 1)
    circle = cells if closed else 2 * cells
    steps = np.minimum(np.arange(circle), circle - np.arange(circle))
    spectrum = np.fft.fft(np.exp(-steps * (length_m / cells) / correlation_m)).real
    # Convex and falling in the distance, so no part of the spectrum is negative but by rounding.
    root = np.sqrt(np.maximum(spectrum, 0.0))
    field = np.fft.ifft(root * np.fft.fft(rng.standard_normal(circle))).real
    return np.asarray(field[:cells], dtype=np.float64)
