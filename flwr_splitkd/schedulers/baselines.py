"""What the planner is compared with: the server takes nearly all, the device takes nearly all, or a cut that somebody fixed.

The benchmarks of Li et al., "Split Knowledge Distillation for Large Models in IoT", section V: server-only leaves one block of
the student on the device, device-only all but the last. The paper does not say at which clock the server runs in them, on
which the outcome of the comparison depends, so that each takes it as an argument. A baseline does not give up when it misses
the delay bound: it takes what it takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from flwr_splitkd.costs import CutTerms, DeviceProfile, LinkState, ServerProfile
from flwr_splitkd.errors import ConfigError, CutError, InfeasibleError
from flwr_splitkd.schedulers.plan import Decision, FrequencyPolicy, plan_cut_and_frequency
from flwr_splitkd.schedulers.view import DeviceView, Outlook

__all__ = ["DeviceOnly", "ServerOnly", "device_only", "fixed_cut", "server_only"]


def server_only(
    terms: CutTerms,
    *,
    device: DeviceProfile,
    server: ServerProfile,
    link: LinkState,
    frequency: FrequencyPolicy,
    max_delay_s: float = math.inf,
    battery_j: float | None = None,
) -> Decision:
    """Decide on cut 1; see `fixed_cut`."""
    return fixed_cut(
        terms,
        int(terms.cuts.min()),
        device=device,
        server=server,
        link=link,
        frequency=frequency,
        max_delay_s=max_delay_s,
        battery_j=battery_j,
    )


def device_only(
    terms: CutTerms,
    *,
    device: DeviceProfile,
    server: ServerProfile,
    link: LinkState,
    frequency: FrequencyPolicy,
    max_delay_s: float = math.inf,
    battery_j: float | None = None,
) -> Decision:
    """Decide on cut L - 1, for a student of L blocks; see `fixed_cut`."""
    return fixed_cut(
        terms,
        int(terms.cuts.max()),
        device=device,
        server=server,
        link=link,
        frequency=frequency,
        max_delay_s=max_delay_s,
        battery_j=battery_j,
    )


def fixed_cut(
    terms: CutTerms,
    cut: int,
    *,
    device: DeviceProfile,
    server: ServerProfile,
    link: LinkState,
    frequency: FrequencyPolicy,
    max_delay_s: float = math.inf,
    battery_j: float | None = None,
) -> Decision:
    """Decide on a given cut, whatever its energy, and also if it misses the delay bound.

    Of several codecs in `terms` the one of least energy within the bound is taken; if none meets it, the one of least energy.
    `Decision.binding` then ends in ``"(delay bound missed)"``.

    Parameters
    ----------
    terms
        The options of the device's turn.
    cut
        One of `terms`.
    device, server, link
        Who takes part, and the rates between them.
    frequency
        ``"max"`` and ``"nominal"`` hold the server's clock there, whatever the bound. ``"optimal"`` takes the clock of least
        energy within the bound, and the largest where the bound is missed.
    max_delay_s
        Bound on the turn.
    battery_j
        What is left in the device's battery; None on mains.

    Raises
    ------
    CutError
        If `terms` has no such cut.
    ConfigError
        If a bound is out of range.
    InfeasibleError
        If memory, the battery or the link do not allow it.
    """
    if cut not in terms.cuts:
        raise CutError(f"`cut` is {cut}; expected {terms.cuts.min()}..{terms.cuts.max()}, as in `terms`.")

    def plan(bound_s: float, clock: FrequencyPolicy) -> Decision:
        return plan_cut_and_frequency(
            terms,
            device=device,
            server=server,
            link=link,
            max_delay_s=bound_s,
            battery_j=battery_j,
            frequency=clock,
            cuts=[cut],
        )

    try:
        return plan(max_delay_s, frequency)
    except InfeasibleError:
        # Raises again if it is not the bound that is in the way.
        late = plan(math.inf, "max" if frequency == "optimal" else frequency)
    clock = "max frequency" if frequency == "optimal" else late.binding
    return replace(late, binding=f"{clock} (delay bound missed)")


class _OneCut:
    """What both baselines have in common: only the function that decides differs.

    Parameters
    ----------
    frequency
        The server's clock: ``"max"``, ``"nominal"`` or ``"optimal"``.
    max_delay_s
        Bound on a turn, which ``"optimal"`` tries to meet.
    codec
        For smashed data and gradients; that of the strategy when not given.
    """

    needs_outlook = True
    _decide: Callable[..., Decision]

    def __init__(self, *, frequency: FrequencyPolicy, max_delay_s: float = math.inf, codec: str | None = None) -> None:
        self.frequency, self.max_delay_s = _checked(frequency, max_delay_s)
        self.codecs = () if codec is None else (codec,)

    def choose(self, device: DeviceView) -> Decision:
        """Plan the turn.

        Raises
        ------
        ConfigError
            If the strategy has no planner.
        InfeasibleError
            If memory, the battery or the link do not allow it.
        """
        return self.plan(_outlook(device, type(self).__name__), device.local_epochs)

    def plan(self, outlook: Outlook, local_epochs: int) -> Decision:
        """Plan a turn of so many passes; raises as `choose` does."""
        return self._decide(
            outlook.terms(local_epochs, self.codecs or (outlook.codec,)),
            device=outlook.device,
            server=outlook.server,
            link=outlook.link,
            frequency=self.frequency if outlook.clock_is_ours else "max",
            max_delay_s=self.max_delay_s,
            battery_j=outlook.battery_j,
        )


class ServerOnly(_OneCut):
    """Cut 1 for every device: the server does nearly all of the work. See `fixed_cut`."""

    _decide = staticmethod(server_only)


class DeviceOnly(_OneCut):
    """Cut L - 1 for every device: it does nearly all of the student's work. See `fixed_cut`."""

    _decide = staticmethod(device_only)


def _outlook(device: DeviceView, policy: str) -> Outlook:
    if device.outlook is None:
        raise ConfigError(f"{policy} has no outlook on the turn; expected a strategy with a planner, such as SplitKD.")
    return device.outlook


def _checked(frequency: FrequencyPolicy, max_delay_s: float) -> tuple[FrequencyPolicy, float]:
    if frequency not in ("optimal", "max", "nominal"):
        raise ConfigError(f"`frequency` is {frequency!r}; expected 'optimal', 'max' or 'nominal'.")
    if not max_delay_s > 0:
        raise ConfigError(f"`max_delay_s` is {max_delay_s}; expected more than 0 seconds.")
    return frequency, max_delay_s
