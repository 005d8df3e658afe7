"""The server's clock between turns."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from flwr_splitkd.costs import ServerProfile
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers import idle_frequency

SERVER = ServerProfile(
    name="server",
    min_frequency_hz=0.5e9,
    max_frequency_hz=2e9,
    nominal_frequency_hz=1.5e9,
    cores=100,
    power_coefficient=1e-26,
    idle_activity=0.3,
)


@pytest.mark.parametrize(
    ("idle_s", "switch_s", "clock"),
    [
        *((10.0, 1.0, 0.5e9), (2.1, 1.0, 0.5e9), (math.inf, 1.0, 0.5e9), (0.1, 0.0, 0.5e9)),
        *((2.0, 1.0, 1.5e9), (1.9, 1.0, 1.5e9), (0.0, 0.0, 1.5e9), (10.0, math.inf, 1.5e9)),
    ],
)
def test_the_idle_clock_if_the_pause_outlasts_two_switches(idle_s: float, switch_s: float, clock: float) -> None:
    assert idle_frequency(SERVER, idle_s, switch_s) == clock


@pytest.mark.parametrize(
    "server",
    [
        replace(SERVER, idle_activity=0.0),  # gated
        replace(SERVER, power_coefficient=0.0),
        replace(SERVER, idle_frequency_hz=1.8e9),
    ],
)
def test_a_switch_that_saves_nothing_is_not_made(server: ServerProfile) -> None:
    assert idle_frequency(server, 1000.0, 0.0) == 1.5e9


def test_from_the_clock_that_is_held() -> None:
    assert idle_frequency(SERVER, 10.0, 1.0, held_hz=2e9) == 0.5e9
    assert idle_frequency(SERVER, 1.0, 1.0, held_hz=2e9) == 2e9
    assert idle_frequency(SERVER, 10.0, 1.0, held_hz=0.4e9) == 0.4e9  # lower than the idle clock


def test_never_the_dearer_of_the_two() -> None:
    """Against the joules of both ways, added up in steps of the pause."""
    rng = np.random.default_rng(0)
    chosen = set()
    for _ in range(200):
        idle_s, switch_s = rng.uniform(0.1, 10), rng.uniform(0, 3)
        idle_hz, held_hz = rng.uniform(0.2e9, 2e9, 2)
        server = replace(SERVER, idle_frequency_hz=idle_hz)
        times = (np.arange(2000) + 0.5) / 2000 * idle_s
        switching = (times < switch_s) | (times > idle_s - switch_s)
        clock = np.where(switching, max(idle_hz, held_hz), idle_hz)
        hold_j = 0.3e-26 * held_hz**3 * idle_s
        switch_j = float((0.3e-26 * clock**3).mean() * idle_s) if idle_s > 2 * switch_s else math.inf
        best = idle_hz if switch_j < hold_j else held_hz
        assert idle_frequency(server, idle_s, switch_s, held_hz=held_hz) == best
        chosen.add(best == idle_hz)
    assert chosen == {True, False}


@pytest.mark.parametrize(
    ("idle_s", "switch_s", "held_hz", "message"),
    [
        (-1.0, 0.0, None, "`idle_s` is -1.0; expected at least 0 seconds"),
        (math.nan, 0.0, None, "`idle_s` is nan; expected at least 0 seconds"),
        (1.0, -0.5, None, "`switch_s` is -0.5; expected at least 0 seconds"),
        (1.0, 0.5, 0.0, "`held_hz` is 0.0; expected a finite number of more than 0 Hz"),
        (1.0, 0.5, math.inf, "`held_hz` is inf; expected a finite number of more than 0 Hz"),
    ],
)
def test_out_of_range(idle_s: float, switch_s: float, held_hz: float | None, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        idle_frequency(SERVER, idle_s, switch_s, held_hz=held_hz)
