"""Policies that show something: another cut in every turn, and old and new decisions side by side after a link has dropped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers import DeadlineEpochs, Decision, DeviceView, OptimalCut, Outlook, fixed_cut

__all__ = ["Alternation", "AlternationCut", "AlternationEpochs", "Choice", "CutOfTurn"]

_log = logging.getLogger("flwr")

# A link that has lost two thirds of its rate has dropped; one within a fifth of its best is as it was.
_DROPPED, _STEADY = 1 / 3, 0.8


class CutOfTurn:
    """Every turn of the run takes the next cut, whoever has it.

    Parameters
    ----------
    cuts
        Over and over, in this order.
    """

    def __init__(self, cuts: Sequence[int]) -> None:
        self.cuts = tuple(cuts)

    def choose(self, device: DeviceView) -> int:
        """Return the turn's cut."""
        return self.cuts[device.turn % len(self.cuts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a turn is served with: a decision and the passes that it was planned for."""

    decision: Decision
    local_epochs: int


class Alternation:
    """What the planner says; once the link has dropped, in turn what it says now and what it said before.

    Without loss and with all passes where the bound allows it; otherwise any of the codecs, and as many passes as it allows.

    Parameters
    ----------
    max_delay_s
        Bound on a turn.
    max_epochs
        Most passes of a turn.
    codecs
        The first one loses nothing.
    """

    def __init__(self, *, max_delay_s: float, max_epochs: int, codecs: Sequence[str]) -> None:
        self.max_epochs = max_epochs
        self.first = OptimalCut(max_delay_s=max_delay_s, codecs=codecs[:1])
        self.any = OptimalCut(max_delay_s=max_delay_s, codecs=codecs)
        self.best_bps = 0.0
        self.steady: Choice | None = None
        self.old: Choice | None = None
        self.old_since = 0
        self.last: tuple[int, Choice] | None = None

    def choice(self, device: DeviceView) -> Choice:
        """Decide on a turn, once: both policies ask.

        Raises
        ------
        InfeasibleError
            If not even one pass fits into the bound.
        """
        if self.last is None or self.last[0] != device.turn:
            self.last = (device.turn, self._decide(device))
        return self.last[1]

    def _decide(self, device: DeviceView) -> Choice:
        outlook = device.outlook
        if outlook is None:
            raise ConfigError("The policy has no outlook on the turn; expected a strategy with a planner.")
        now, rate_bps = self._now(device, outlook), outlook.link.uplink_bps
        self.best_bps = max(self.best_bps, rate_bps)
        if self.old is None:
            if self.steady is not None and rate_bps < _DROPPED * self.best_bps:
                self.old, self.old_since = self.steady, device.turn
            elif rate_bps >= _STEADY * self.best_bps:
                self.steady = now
        if self.old is None or (device.turn - self.old_since) % 2 == 0:
            return now
        return self._again(self.old, outlook)

    def _now(self, device: DeviceView, outlook: Outlook) -> Choice:
        try:
            plain = self.first.plan(outlook, self.max_epochs)
        except InfeasibleError:
            epochs = DeadlineEpochs(self.max_epochs, self.any).choose(device)
            return Choice(decision=self.any.plan(outlook, epochs), local_epochs=epochs)
        _log.info("with every codec it would be: %s", self.any.plan(outlook, self.max_epochs).reason)
        return Choice(decision=plain, local_epochs=self.max_epochs)

    def _again(self, choice: Choice, outlook: Outlook) -> Choice:
        """The same cut, codec and passes, at what they are expected to take now."""
        old = choice.decision
        decision = fixed_cut(
            outlook.terms(choice.local_epochs, (old.codec,)),
            old.cut,
            device=outlook.device,
            server=outlook.server,
            link=outlook.link,
            frequency="max",
            max_delay_s=self.any.max_delay_s,
        )
        return Choice(decision=decision, local_epochs=choice.local_epochs)


class AlternationCut:
    """The cut policy's side of an `Alternation`."""

    needs_outlook = True

    def __init__(self, alternation: Alternation) -> None:
        self.alternation = alternation
        self.codecs, self.max_delay_s = alternation.any.codecs, alternation.any.max_delay_s

    def choose(self, device: DeviceView) -> Decision:
        """Return the turn's decision."""
        return self.alternation.choice(device).decision


class AlternationEpochs:
    """The epochs policy's side of an `Alternation`."""

    needs_outlook = True

    def __init__(self, alternation: Alternation) -> None:
        self.alternation = alternation

    def choose(self, device: DeviceView) -> int:
        """Return the turn's passes."""
        return self.alternation.choice(device).local_epochs
