"""The cut, the codec and the server's clock of a turn that take the least energy within a delay bound.

For one option everything but the server's share is fixed, so its energy as a function of the clock f is
``xi A f^2 + P_static A / f + const`` with A cycles: convex, smallest at ``f0 = (P_static / (2 xi))^(1/3)``. The delay bound asks
for at least ``f_req = A / (D_max - T without the server)``, so ``f* = clip(max(f0, f_req), f_min, f_max)`` is exact, and the
options are few enough to try them all. Li et al., "Split Knowledge Distillation for Large Models in IoT", section IV.A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flwr_splitkd.costs import CutTerms, DeviceProfile, LinkState, ServerProfile, TurnCost, turn_cost
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.errors import ConfigError, InfeasibleError

__all__ = ["Decision", "FrequencyPolicy", "Options", "RunnerUp", "evaluate_options", "plan_cut_and_frequency"]

FrequencyPolicy = Literal["optimal", "max", "nominal"]

# A bound that was reached by rounding is met.
TOLERANCE = 1e-9
"""Relative."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Options:
    """Every option at its best clock. Arrays have one value for each. Shape ``[K]``.

    Parameters
    ----------
    terms
        The options.
    frequency_hz
        The server's clock; the largest for options that cannot meet the bound.
    seconds, joules
        Of the whole turn, both sides together.
    device_j
        Of the device alone.
    violations
        Constraints that each option breaks, with the value that would do: ``{"max_delay_s": 31.5}``. Empty if it is feasible.
    binding
        What sets the clock of each option: ``"delay"``, ``"max frequency"``, ``"min frequency"``, ``"fixed"`` or ``"energy"``.
    """

    terms: CutTerms
    frequency_hz: Float
    seconds: Float
    joules: Float
    device_j: Float
    violations: tuple[dict[str, float], ...]
    binding: tuple[str, ...]

    @property
    def feasible(self) -> np.ndarray:
        """Which options break no constraint. Shape ``[K]``."""
        return np.array([not broken for broken in self.violations])


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerUp:
    """The second-best option."""

    cut: int
    codec: str
    frequency_hz: float
    seconds: float
    joules: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided for a turn, and why.

    Parameters
    ----------
    cut, codec, frequency_hz
        The option, and the server's clock.
    cost
        What it is predicted to take.
    binding
        What sets the clock, see `Options`.
    runner_up
        The second-best option; None if no other is feasible.
    excluded
        How many options each constraint rules out.
    """

    cut: int
    codec: str
    frequency_hz: float
    cost: TurnCost
    binding: str
    runner_up: RunnerUp | None
    excluded: dict[str, int]

    @property
    def reason(self) -> str:
        """The decision in a line."""
        text = (
            f"cut {self.cut}, codec {self.codec}, server at {self.frequency_hz / 1e9:.2f} GHz: {self.cost.total_j:.4g} J in "
            f"{self.cost.total_s:.4g} s; clock set by {self.binding}"
        )
        if self.excluded:
            text += "; ruled out: " + ", ".join(f"{count} by {name}" for name, count in self.excluded.items())
        if self.runner_up is None:
            return text + "; no other option"
        other = self.runner_up
        return (
            f"{text}; next best cut {other.cut}, codec {other.codec}, {other.frequency_hz / 1e9:.2f} GHz: {other.joules:.4g} J "
            f"in {other.seconds:.4g} s"
        )


def plan_cut_and_frequency(
    terms: CutTerms,
    *,
    device: DeviceProfile,
    server: ServerProfile,
    link: LinkState,
    max_delay_s: float = math.inf,
    min_cut: int = 1,
    battery_j: float | None = None,
    frequency: FrequencyPolicy = "optimal",
    cuts: Sequence[int] | None = None,
) -> Decision:
    """Choose the feasible option with the least energy; of equals the faster, then the one that comes first.

    Parameters as in `evaluate_options`.

    Raises
    ------
    InfeasibleError
        If there is none; with the values that would make it feasible.
    """
    options = evaluate_options(
        terms,
        device=device,
        server=server,
        link=link,
        max_delay_s=max_delay_s,
        min_cut=min_cut,
        battery_j=battery_j,
        frequency=frequency,
        cuts=cuts,
    )
    feasible = np.flatnonzero(options.feasible)
    if not feasible.size:
        raise InfeasibleError(_remedies(options, device, link, max_delay_s))
    ranked = feasible[np.lexsort((feasible, options.seconds[feasible], options.joules[feasible]))]
    best = int(ranked[0])
    excluded: dict[str, int] = {}
    for broken in options.violations:
        for name in broken:
            excluded[name] = excluded.get(name, 0) + 1
    return Decision(
        cut=int(terms.cuts[best]),
        codec=terms.codecs[best],
        frequency_hz=float(options.frequency_hz[best]),
        cost=turn_cost(
            terms, best, frequency_hz=float(options.frequency_hz[best]), device=device, server=server, link=link
        ),
        binding=options.binding[best],
        runner_up=_runner_up(options, int(ranked[1])) if len(ranked) > 1 else None,
        excluded=excluded,
    )


def evaluate_options(
    terms: CutTerms,
    *,
    device: DeviceProfile,
    server: ServerProfile,
    link: LinkState,
    max_delay_s: float = math.inf,
    min_cut: int = 1,
    battery_j: float | None = None,
    frequency: FrequencyPolicy = "optimal",
    cuts: Sequence[int] | None = None,
) -> Options:
    """Work out every option at its best clock.

    Parameters
    ----------
    terms
        The options of the device's turn.
    device, server, link
        Who takes part, and the rates between them.
    max_delay_s
        Bound on the turn.
    min_cut
        Privacy floor: at least so many blocks stay on the device.
    battery_j
        What is left in the device's battery; None on mains.
    frequency
        ``"optimal"`` as above; ``"max"`` and ``"nominal"`` hold the server's clock there.
    cuts
        Only these.

    Raises
    ------
    ConfigError
        If a bound is out of range.
    """
    if not max_delay_s > 0:
        raise ConfigError(f"`max_delay_s` is {max_delay_s}; expected more than 0 seconds.")
    cycles = terms.server_cycles(server)
    rest_s = terms.device_s + terms.uplink_s(link) + terms.downlink_s(link) + terms.other_s + terms.server_offset_s
    clock, binding = _clock(cycles, rest_s, server, max_delay_s, frequency)
    server_s = cycles / clock
    seconds = rest_s + server_s
    with np.errstate(invalid="ignore"):  # no watts for ever, where there is no link
        device_j = device.compute_power_w * terms.device_s + device.transmit_power_w * terms.uplink_s(link)
        joules = (
            device_j
            + server.transmit_power_w * terms.downlink_s(link)
            + server.power_coefficient * clock**3 * server_s
            + server.static_power_w * seconds
            + server.idle_power_w * rest_s
        )
    device_j, joules = (np.where(np.isfinite(rest_s), energy, np.inf) for energy in (device_j, joules))
    checks = {
        "min_cut": (terms.cuts < min_cut, np.asarray(terms.cuts, dtype=np.float64)),
        "device memory": (terms.device_memory_bytes > device.memory_bytes, terms.device_memory_bytes),
        "server memory": (terms.server_memory_bytes > server.memory_bytes, terms.server_memory_bytes),
        # Without a link a turn takes for ever, whatever the bound.
        "link": (~np.isfinite(rest_s), rest_s),
        "max_delay_s": (np.isfinite(rest_s) & (seconds > max_delay_s * (1 + TOLERANCE)), seconds),
    }
    if battery_j is not None:
        checks["battery"] = (device_j > battery_j, device_j)
    if cuts is not None:
        checks["cuts"] = (~np.isin(terms.cuts, list(cuts)), np.asarray(terms.cuts, dtype=np.float64))
    violations: tuple[dict[str, float], ...] = tuple({} for _ in range(len(terms)))
    for name, (broken, needed) in checks.items():
        for option in np.flatnonzero(broken):
            violations[option][name] = float(needed[option])
    return Options(
        terms=terms,
        frequency_hz=clock,
        seconds=seconds,
        joules=joules,
        device_j=device_j,
        violations=violations,
        binding=binding,
    )


def _clock(
    cycles: Float, rest_s: Float, server: ServerProfile, max_delay_s: float, frequency: FrequencyPolicy
) -> tuple[Float, tuple[str, ...]]:
    """Best clock of each option, and what sets it."""
    low, high = server.min_frequency_hz, server.max_frequency_hz
    if frequency != "optimal":
        if frequency not in ("max", "nominal"):
            raise ConfigError(f"`frequency` is {frequency!r}; expected 'optimal', 'max' or 'nominal'.")
        fixed = high if frequency == "max" else server.nominal_frequency_hz
        return np.full(len(cycles), fixed), ("fixed",) * len(cycles)
    xi, static = server.power_coefficient, server.static_power_w
    # Without dynamic power faster is never worse: it costs nothing, and without static power saves time only.
    cheapest = (static / (2 * xi)) ** (1 / 3) if xi else math.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        left_s = max_delay_s - rest_s
        required = np.where(left_s > 0, cycles / left_s, np.where(cycles > 0, np.inf, 0.0))
    wanted = np.maximum(cheapest, required)
    clock = np.clip(wanted, low, high)
    binding = np.where(
        wanted > high,
        "max frequency",
        np.where(wanted < low, "min frequency", np.where(required > cheapest, "delay", "energy")),
    )
    return clock, tuple(str(name) for name in binding)


def _runner_up(options: Options, option: int) -> RunnerUp:
    return RunnerUp(
        cut=int(options.terms.cuts[option]),
        codec=options.terms.codecs[option],
        frequency_hz=float(options.frequency_hz[option]),
        seconds=float(options.seconds[option]),
        joules=float(options.joules[option]),
    )


_UNITS = {
    "max_delay_s": ("s", 1.0),
    "device memory": ("GiB", 2.0**30),
    "server memory": ("GiB", 2.0**30),
    "battery": ("J", 1.0),
}
_REMEDIES = {
    "max_delay_s": "raise `max_delay_s` to {value} (cut {cut}, codec {codec})",
    "device memory": "give the device {value} of memory (cut {cut}, codec {codec})",
    "server memory": "give the server {value} of memory (cut {cut}, codec {codec})",
    "battery": "let the device have {value} in its battery (cut {cut}, codec {codec})",
    "min_cut": "lower `min_cut` to {cut}",
    "cuts": "allow cut {cut}",
}


def _remedies(options: Options, device: DeviceProfile, link: LinkState, max_delay_s: float) -> str:
    """Why nothing is feasible, and for each constraint the least that would make it so if it alone were changed."""
    terms = options.terms
    if all("link" in broken for broken in options.violations):
        return (
            f"{device.name} has a link of {link.uplink_bps:g} bit/s up and {link.downlink_bps:g} bit/s down; expected more than 0 "
            "in both directions. It can take a turn when it is in reach again."
        )
    alone: dict[str, tuple[float, int]] = {}
    for option, broken in enumerate(options.violations):
        if len(broken) == 1:
            (name, value) = next(iter(broken.items()))
            # The largest cut below the floor changes least; of everything else the least will do.
            key = -value if name == "min_cut" else value
            if name not in alone or key < alone[name][0]:
                alone[name] = (key, option)
    if alone:
        hints = [_remedy(name, options, option) for name, (_, option) in alone.items()]
        remedy = ", or ".join(hints)
    else:
        option = min(range(len(terms)), key=lambda k: (len(options.violations[k]), options.seconds[k]))
        remedy = ", and ".join(_remedy(name, options, option) for name in options.violations[option])
    within = f" within {max_delay_s:g} s" if math.isfinite(max_delay_s) else ""
    names = sorted({name for broken in options.violations for name in broken})
    return (
        f"No cut of {terms.cuts.min()}..{terms.cuts.max()} is feasible for {device.name}{within}: all are ruled out "
        f"by {', '.join(names)}. To make it feasible, {remedy}."
    )


def _remedy(name: str, options: Options, option: int) -> str:
    unit, scale = _UNITS.get(name, ("", 1.0))
    # Rounded up, so that the number given is enough.
    value = math.ceil(options.violations[option][name] / scale * 1000) / 1000
    return _REMEDIES.get(name, f"change {name}").format(
        value=f"{value:.3f}".rstrip("0").rstrip(".") + f" {unit}",
        cut=options.terms.cuts[option],
        codec=options.terms.codecs[option],
    )
