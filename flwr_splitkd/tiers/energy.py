"""Measured joules: who measures them, and how they travel."""

from __future__ import annotations

from flwr_splitkd.errors import ConfigError, ProtocolError
from flwr_splitkd.telemetry.sensors import Energy
from flwr_splitkd.wire.handshake import clean_name
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["check_measure_energy", "energy_from_wire", "energy_to_wire"]

_MOST_W = 1e5
"""No machine that takes turns draws more: a rack full of GPUs does."""
_MOST_PARTS = 64


def check_measure_energy(choice: object) -> None:
    """Check what a user chose.

    Raises
    ------
    ConfigError
        If it is neither True, False nor "auto".
    """
    if not isinstance(choice, bool) and choice != "auto":
        raise ConfigError(f"`measure_energy` is {choice!r}; expected True, False or 'auto'.")


def energy_to_wire(energy: Energy | None) -> pb.MeasuredEnergy | None:
    """Make the message; None if nothing is known."""
    if energy is None or energy.joules is None:
        return None
    return pb.MeasuredEnergy(joules=energy.joules, parts=energy.parts)


def energy_from_wire(times: pb.DeviceTimes, *, duration_s: float, peer: str) -> Energy | None:
    """A device's joules; None if it has measured none.

    Parameters
    ----------
    duration_s
        Of the whole turn.
    peer
        Who says so.

    Raises
    ------
    ProtocolError
        If they are beyond what a machine can draw in that time, or of nothing.
    """
    if not times.HasField("energy"):
        return None
    joules, parts = times.energy.joules, times.energy.parts
    if not 0 <= joules <= _MOST_W * duration_s:
        raise ProtocolError(
            f"{peer} reports {joules} J; expected 0 to {_MOST_W * duration_s:.0f}, which are {_MOST_W:g} W for the turn's "
            f"{duration_s:.3f} s. Check its sensors with `flwr-splitkd doctor`, or set `measure_energy=False` of its SplitKDClient."
        )
    if not 0 < len(parts) <= _MOST_PARTS:
        raise ProtocolError(f"{peer} reports joules of {len(parts)} parts; expected 1 to {_MOST_PARTS}.")
    return Energy(joules=joules, parts=tuple(clean_name(part) for part in parts))
