"""The case study of Li et al., "Split Knowledge Distillation for Large Models in IoT", section V.

Ten vehicles of table II take a turn each in a round, at 30 km/h past a mmWave cell in three qualities. Three methods see the same
channel at the same moments: a turn begins every `TURN_EVERY_S`, or as soon after as there is a link. Each turn is planned
and worked out with the rates at its beginning (costs, schedulers), and a round takes the sum of its turns.

``proposed`` takes the cut and clock of least energy within a bound, which is a slack over the fastest turn that any cut allows.
``server-only`` and ``device-only`` take the first and the last cut, at the clock that the setting gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from flwr_splitkd.case_studies.split_kd.settings import MODELS, WORKLOAD, Setting
from flwr_splitkd.costs import (
    RADIO_PRESETS,
    CutTerms,
    DeviceProfile,
    LinkState,
    ServerProfile,
    cut_terms,
    named_shape,
    table_ii_fleet,
)
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers import Options, evaluate_options

__all__ = ["CHANNELS", "METHODS", "TURN_EVERY_S", "Outcome", "channel_states", "run_study"]

METHODS = ("proposed", "server-only", "device-only")
CHANNELS = tuple(RADIO_PRESETS)

TURN_EVERY_S = 60.0
"""Seconds between the beginnings of two turns, for every method: the channel is the same for all of them."""

# Once down the street and back: whoever has no link then never has one.
_LONGEST_WAIT_S = 96

States = dict[str, list[tuple[LinkState, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What every turn of a setting took. Arrays have shape ``[methods, channels, rounds, devices]``.

    Parameters
    ----------
    setting
        Under which.
    seconds, joules
        Of each turn. Joules are those that the setting counts.
    cuts, frequency_hz
        What was chosen.
    late
        Turns over the bound, which only the baselines may have.
    """

    setting: Setting
    seconds: Float
    joules: Float
    cuts: NDArray[np.int64]
    frequency_hz: Float
    late: NDArray[np.bool_]

    @property
    def delay_s(self) -> Float:
        """Seconds of each round. Shape ``[methods, channels, rounds]``."""
        return np.asarray(self.seconds.sum(axis=-1), dtype=np.float64)

    @property
    def energy_j(self) -> Float:
        """Joules of each round. Shape ``[methods, channels, rounds]``."""
        return np.asarray(self.joules.sum(axis=-1), dtype=np.float64)


def channel_states(rng: np.random.Generator, *, streets: int, rounds: int) -> States:
    """Draw the rates that turns begin with, by channel: so many rounds in each of so many streets.

    The three channels have the same streets, vehicles and shadows, and differ in noise alone.

    Parameters
    ----------
    rng
        Where streets are drawn from.
    streets, rounds
        At least 1.

    Returns
    -------
    dict
        For each channel ``streets * rounds`` rounds, each with a link for every device.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """
    for name, value in (("streets", streets), ("rounds", rounds)):
        if value < 1:
            raise ConfigError(f"`{name}` is {value}; expected at least 1.")
    seeds = rng.integers(2**63, size=streets)
    states: States = {}
    for channel in CHANNELS:
        states[channel] = []
        for seed in seeds:
            links = table_ii_fleet(channel, np.random.default_rng(seed)).links.values()
            for server_round in range(rounds):
                begin = server_round * len(links) * TURN_EVERY_S
                turns = (_first_link(link.at, begin + k * TURN_EVERY_S) for k, link in enumerate(links))
                states[channel].append(tuple(turns))
    return states


def run_study(
    settings: Sequence[Setting],
    states: States,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Outcome]:
    """Work every setting out on the same channels.

    Parameters
    ----------
    settings
        In any order; those that differ in the baselines' clock or the slack alone share work if they follow one another.
    states
        As `channel_states` draws them.
    on_progress
        Told how many settings of how many are done.

    Raises
    ------
    InfeasibleError
        If a turn has no feasible cut.
    """
    outcomes: list[Outcome] = []
    for _, group in groupby(settings, lambda one: replace(one, clock="max", slack=0.0)):
        outcomes += _group(list(group), states)
        on_progress(len(outcomes), len(settings))
    return outcomes


def _group(settings: list[Setting], states: States) -> list[Outcome]:
    """Settings with the same machines: each turn's options are worked out once for each clock and each slack."""
    first = settings[0]
    teacher, student = (named_shape(name) for name in (MODELS[first.models].teacher, MODELS[first.models].student))
    devices, servers = first.devices(), [setting.server() for setting in settings]
    terms = [cut_terms(student, teacher, WORKLOAD, device) for device in devices]
    rounds = len(next(iter(states.values())))
    shape = (len(settings), len(METHODS), len(states), rounds, len(devices))
    seconds, joules, clocks = np.empty(shape), np.empty(shape), np.empty(shape)
    cuts, late = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.bool_)
    for c, by_round in enumerate(states.values()):
        for r, links in enumerate(by_round):
            for d, link in enumerate(links):
                for s, turn in enumerate(_turns(settings, servers, terms[d], devices[d], link)):
                    at = (s, slice(None), c, r, d)
                    seconds[at], joules[at], clocks[at], cuts[at], late[at] = turn
    return [
        Outcome(
            setting=setting,
            seconds=seconds[s],
            joules=joules[s],
            cuts=cuts[s],
            frequency_hz=clocks[s],
            late=late[s],
        )
        for s, setting in enumerate(settings)
    ]


_Turn = tuple[Float, Float, Float, NDArray[np.int64], NDArray[np.bool_]]


def _turns(
    settings: list[Setting], servers: list[ServerProfile], terms: CutTerms, device: DeviceProfile, link: LinkState
) -> list[_Turn]:
    """One turn under each setting: seconds, joules, clock, cut and whether it is late, by method."""
    at_max = evaluate_options(terms, device=device, server=servers[0], link=link, frequency="max")
    fixed: dict[str, Options] = {"max": at_max}
    planned: dict[float, tuple[Options, float, int]] = {}
    turns = []
    for setting, server in zip(settings, servers, strict=True):
        if setting.slack not in planned:
            planned[setting.slack] = _plan(terms, at_max, device, server, link, setting.slack)
        options, bound_s, best = planned[setting.slack]
        baseline = options
        if setting.frequency != "optimal":
            if setting.clock not in fixed:
                fixed[setting.clock] = evaluate_options(
                    terms, device=device, server=server, link=link, frequency=setting.frequency
                )
            baseline = fixed[setting.clock]
        _refuse_impossible(baseline, setting)
        which = ((options, best), (baseline, 0), (baseline, len(terms) - 1))
        seconds, joules, clock = (
            np.array([getattr(found, name)[k] for found, k in which]) for name in ("seconds", "joules", "frequency_hz")
        )
        cut = terms.cuts[[k for _, k in which]]
        turns.append((seconds, joules, clock, cut, seconds > bound_s * (1 + 1e-9)))
    return turns


def _plan(
    terms: CutTerms, at_max: Options, device: DeviceProfile, server: ServerProfile, link: LinkState, slack: float
) -> tuple[Options, float, int]:
    """Options within the bound, the bound, and the position of the best; as `schedulers.plan_cut_and_frequency` ranks them."""
    if not at_max.feasible.any():
        raise InfeasibleError(
            f"No cut of {device.name} is feasible in the case study: {at_max.violations[0]}. Choose smaller models."
        )
    bound_s = (1 + slack) * float(at_max.seconds[at_max.feasible].min())
    options = evaluate_options(terms, device=device, server=server, link=link, max_delay_s=bound_s)
    feasible = np.flatnonzero(options.feasible)
    best = feasible[np.lexsort((feasible, options.seconds[feasible], options.joules[feasible]))][0]
    return options, bound_s, int(best)


def _refuse_impossible(baseline: Options, setting: Setting) -> None:
    """A baseline may miss the bound, but not the memory."""
    for end in (0, -1):
        if broken := sorted(set(baseline.violations[end]) - {"max_delay_s"}):
            raise InfeasibleError(
                f"Cut {baseline.terms.cuts[end]} is ruled out by {broken[0]} under {setting.name}; expected a baseline that can "
                "run. Choose other models."
            )


def _first_link(at: Callable[[float], LinkState], begin_s: float) -> LinkState:
    for wait_s in range(_LONGEST_WAIT_S + 1):
        state = at(begin_s + wait_s)
        if min(state.uplink_bps, state.downlink_bps) > 0:
            return state
    raise InfeasibleError(
        f"A vehicle has no link anywhere in its street from {begin_s:g} s on; expected one within {_LONGEST_WAIT_S} s. "
        "Choose another seed."
    )
