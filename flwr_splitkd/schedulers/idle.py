"""The server's clock between turns."""

from __future__ import annotations

import math

from flwr_splitkd.costs import ServerProfile
from flwr_splitkd.errors import ConfigError

__all__ = ["idle_frequency"]


def idle_frequency(server: ServerProfile, idle_s: float, switch_s: float, *, held_hz: float | None = None) -> float:
    """Choose the clock to wait at: the idle clock if that saves energy over the pause, else the one that is held.

    While it waits the server draws ``P(f) = idle_activity * power_coefficient * f^3`` besides its static power, which a pause
    of given length takes in either case. To go down and up again takes ``2 switch_s``, at the power of the higher clock::

        hold:    P(held) * idle_s
        switch:  P(held) * 2 switch_s + P(idle) * (idle_s - 2 switch_s)

    so that switching saves ``(P(held) - P(idle)) * (idle_s - 2 switch_s)``. It is done if it fits into the pause and this is
    more than 0. A server whose clocks are gated (``idle_activity = 0``) saves nothing, and holds.

    Parameters
    ----------
    server
        What it draws.
    idle_s
        Seconds of the pause, at least 0; may be infinite.
    switch_s
        Seconds that one change of the clock takes, at least 0.
    held_hz
        Clock at which the server is; its nominal one when not given.

    Returns
    -------
    float
        ``server.idle_frequency_hz`` or `held_hz`.

    Raises
    ------
    ConfigError
        If a time or the clock is out of range.
    """
    for name, value in (("idle_s", idle_s), ("switch_s", switch_s)):
        if not value >= 0:
            raise ConfigError(f"`{name}` is {value}; expected at least 0 seconds.")
    held = server.nominal_frequency_hz if held_hz is None else held_hz
    if not (math.isfinite(held) and held > 0):
        raise ConfigError(f"`held_hz` is {held}; expected a finite number of more than 0 Hz.")
    saved_w = server.idle_activity * server.power_coefficient * (held**3 - server.idle_frequency_hz**3)
    return server.idle_frequency_hz if saved_w > 0 and idle_s > 2 * switch_s else held
