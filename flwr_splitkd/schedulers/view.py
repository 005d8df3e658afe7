"""What a policy may know when it decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr_splitkd.costs import CutTerms, DeviceProfile, LinkState, ServerProfile

__all__ = ["Candidate", "DeviceView", "Forecast", "Outlook"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What the planner knows of a device's next turn: as profiles say, corrected by what was measured.

    Parameters
    ----------
    device, server
        The machines.
    link
        Last known rates between them.
    battery_j
        What is left in the device's battery; None on mains.
    terms
        ``terms(local_epochs, codecs)`` gives the costs of a turn for every cut and codec.
    codec
        Of turns whose policy does not choose one.
    clock_is_ours
        Whether the server's clock will be what was decided. Otherwise it stays at its largest.
    """

    device: DeviceProfile
    server: ServerProfile
    link: LinkState
    battery_j: float | None
    terms: Callable[[int, Sequence[str]], CutTerms]
    clock_is_ours: bool
    codec: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a candidate's next turn would take, with the cut that would be chosen for it now.

    Parameters
    ----------
    device, link, battery_j
        As in `Outlook`.
    num_examples
        Samples in the device's data set; 0 if not known yet.
    duration_s
        Seconds of its turn; infinite if no cut is feasible.
    device_j, total_j
        Joules that the device spends, and both sides together; infinite if no cut is feasible.
    infeasible
        Why no cut is feasible, and what would help; empty otherwise.
    """

    device: DeviceProfile
    link: LinkState
    battery_j: float | None
    num_examples: int
    duration_s: float
    device_j: float
    total_j: float
    infeasible: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A node that could take a turn, before it is called.

    Parameters
    ----------
    node_id
        Flower's identifier.
    turns
        Turns that it has completed in this run.
    name
        The device's own name, as in `DeviceView`; empty while it is not known.
    forecast
        What its turn would take; None while the device is not known, and for policies without ``needs_forecast = True``. (With
        ``needs_names = True`` a policy has the names alone.)
    """

    node_id: int
    turns: int = 0
    name: str = ""
    forecast: Forecast | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """A device that is connected and about to begin its turn.

    Parameters
    ----------
    node_id
        Flower's identifier.
    name
        The device's own name: its partition id unless the node config has a ``device-name``.
    server_round
        From 1.
    turn
        Turns begun in this run before this one.
    num_blocks
        Blocks of the student; a cut is in ``1 .. num_blocks - 1``.
    num_examples, num_batches
        Samples and batches in the device's data set.
    local_epochs
        Passes over its data in this turn; 1 for the policy that chooses them.
    outlook
        What its turn will take; None if the strategy has no planner.
    """

    node_id: int
    name: str
    server_round: int
    turn: int
    num_blocks: int
    num_examples: int
    num_batches: int
    local_epochs: int = 1
    outlook: Outlook | None = None
