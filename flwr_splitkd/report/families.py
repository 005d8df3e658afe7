"""What the page says of runs of either kind: those that go turn by turn, and those of the chain with its baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr_splitkd.report.chain import is_chain
from flwr_splitkd.report.chain_figures import chain_drawings
from flwr_splitkd.report.chain_tables import chain_tables
from flwr_splitkd.report.chain_words import chain_alternative, chain_lead, chain_totals
from flwr_splitkd.report.figures import DRAWINGS
from flwr_splitkd.report.load import RunData
from flwr_splitkd.report.style import Drawing
from flwr_splitkd.report.turn_tables import turn_tables
from flwr_splitkd.report.words import alternative, totals

__all__ = ["CHAIN", "TURNS", "Family", "family_of"]


class _Tables(Protocol):
    def __call__(self, run: RunData, *, named: bool) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Runs that can be compared with each other.

    Parameters
    ----------
    lead
        What kind of run it is, in a sentence.
    totals
        What a run came to, by what it is.
    drawings
        Every drawing for some runs.
    alternative
        What the drawing of a title shows of some runs, in words.
    tables
        A run's tables, as HTML.
    evaluations
        The headline of its evaluations.
    units
        What the foot of the page explains, as HTML; the end of a sentence.
    """

    lead: Callable[[RunData], str]
    totals: Callable[[RunData], Mapping[str, str]]
    drawings: Callable[[Sequence[RunData]], Sequence[Drawing]]
    alternative: Callable[[str, Sequence[RunData]], str]
    tables: _Tables
    evaluations: str
    units: str


TURNS = Family(
    lead=lambda run: "Split knowledge distillation, turn by turn.",
    totals=totals,
    drawings=lambda runs: DRAWINGS,
    alternative=alternative,
    tables=turn_tables,
    evaluations="On the server",
    units="CE is cross-entropy, KL the divergence from the teacher, both in nats per label",
)

CHAIN = Family(
    lead=chain_lead,
    totals=chain_totals,
    drawings=chain_drawings,
    alternative=chain_alternative,
    tables=chain_tables,
    evaluations="Evaluations",
    units="losses are in nats per label; a batch is missed when an iteration was closed while its device was still at work on "
    "it, and counts in the one in which it arrives; layers are the encoders' that changed hands, within the bytes up and down",
)


def family_of(run: RunData) -> Family:
    """Which of the two a run is of."""
    return CHAIN if is_chain(run) else TURNS
