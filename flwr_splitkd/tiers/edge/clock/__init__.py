"""The clock of the edge's GPU: who sets it, when, and how it comes back whatever becomes of the process.

============  ====================================================================================================
``setter``    the protocol of whoever sets a clock, and which of the clocks that a GPU has is taken
``nvml``      NVIDIA GPUs, through NVML: locked clocks, for which root is needed
``zeusd``     the same for who is not root, through Zeus's daemon
``devfreq``   the GPU of a Jetson, through the kernel's files
``find``      the setter for a torch device
``journal``   the file by which the next process undoes what a killed one has left
``leaving``   a last call before a process ends
``server``    the server's clock in turns, between them, and after the last
============  ====================================================================================================
"""

from __future__ import annotations

from flwr_splitkd.tiers.edge.clock.find import find_setter, setter_of
from flwr_splitkd.tiers.edge.clock.journal import ClockJournal, clocks_folder, restore_left
from flwr_splitkd.tiers.edge.clock.server import ServerClock, TurnClock
from flwr_splitkd.tiers.edge.clock.setter import ClockSetter, at_or_above

__all__ = [
    "ClockJournal",
    "ClockSetter",
    "ServerClock",
    "TurnClock",
    "at_or_above",
    "clocks_folder",
    "find_setter",
    "restore_left",
    "setter_of",
]
