"""The paper's mechanisms by their names (SCCT, section V.A)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.chain.algorithm1 import Algorithm1
from flwr_splitkd.schedulers.chain.allocation import ExactAllocation
from flwr_splitkd.schedulers.chain.alns import AlnsSplitPoints
from flwr_splitkd.schedulers.chain.equal import EqualAllocation
from flwr_splitkd.schedulers.chain.fixed import FixedSplitPoints
from flwr_splitkd.schedulers.chain.policy import AllocationPolicy, SplitPointPolicy
from flwr_splitkd.schedulers.chain.split_points import OptimalSplitPoints

__all__ = ["MECHANISMS", "Mechanism", "mechanism"]

Mechanism = Literal["SCCTT", "SCCTL", "SCCTS"]
MECHANISMS: tuple[Mechanism, ...] = ("SCCTT", "SCCTL", "SCCTS")


def mechanism(
    name: Mechanism, *, split_point: int = 1, literal: bool = False, seed: int = 0
) -> tuple[SplitPointPolicy, AllocationPolicy]:
    """Return who decides on the large and on the small timescale.

    Parameters
    ----------
    name
        ``"SCCTT"`` optimises both, ``"SCCTL"`` the split points alone (the edge is divided equally), ``"SCCTS"`` shares and
        subcarriers alone (the split points are all `split_point`, and stay).
    split_point
        Of SCCTS.
    literal
        The paper's Algorithms 1 and 2 in place of ours; needs the ``alns`` extra.

    seed
        Of Algorithm 2.

    Raises
    ------
    ConfigError
        If there is no such mechanism, or the ``alns`` library is not installed.
    """
    if name not in MECHANISMS:
        raise ConfigError(f"The mechanism is {name!r}; expected one of {', '.join(MECHANISMS)}.")
    allocation: AllocationPolicy = Algorithm1() if literal else ExactAllocation()
    if name == "SCCTS":
        return FixedSplitPoints(split_point), allocation
    if name == "SCCTL":
        allocation = EqualAllocation()
    if literal:
        return AlnsSplitPoints(np.random.default_rng(seed), allocation=allocation), allocation
    # Without a policy it is the exact one, all draws and sets of split points at once.
    return OptimalSplitPoints(None if name == "SCCTT" else allocation), allocation
