"""Who is behind each node: names and data sizes, from enrolment or from a device's first turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import WARNING

from flwr.serverapp import Grid

from flwr_splitkd.costs import DeviceProfile
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.records import Enrolment
from flwr_splitkd.schedulers import Candidate, CutPolicy, DeviceView, EpochsPolicy, Forecast
from flwr_splitkd.strategies.console import log
from flwr_splitkd.strategies.enrolment import enrol_nodes, profile_of
from flwr_splitkd.strategies.planner import Planner

__all__ = ["Roster"]


class Roster:
    """The devices that are known so far.

    Parameters
    ----------
    planner
        Makes forecasts, and hears of profiles that devices bring along; None where names alone are needed.
    num_blocks
        Blocks of the student.
    introduce
        Hears of these profiles where there is no planner.
    """

    def __init__(
        self,
        planner: Planner | None,
        num_blocks: int,
        introduce: Callable[[str, DeviceProfile], None] | None = None,
    ) -> None:
        self._planner, self._num_blocks = planner, num_blocks
        self._introduce = planner.introduce if planner is not None else introduce
        self._known: dict[int, Enrolment] = {}
        self._asked: set[int] = set()

    def meet(self, device: DeviceView) -> None:
        """Remember a device that has connected."""
        self._known[device.node_id] = Enrolment(
            name=device.name, num_examples=device.num_examples, num_batches=device.num_batches
        )

    def enrol(self, grid: Grid, online: Sequence[int], timeout_s: float) -> None:
        """Ask those who they are that have never been asked and are not known."""
        strangers = [node_id for node_id in online if node_id not in self._known and node_id not in self._asked]
        if not strangers:
            return
        self._asked |= set(strangers)
        for node_id, enrolment in enrol_nodes(grid, strangers, timeout_s).items():
            self._known[node_id] = enrolment
            if self._introduce is not None and (profile := profile_of(enrolment)):
                try:
                    self._introduce(enrolment.name, profile)
                except ConfigError as error:
                    log(WARNING, "\tdevice %s: its profile is left out. %s", enrolment.name, error)

    def names(self, online: Sequence[int]) -> dict[int, str]:
        """Names of those of these nodes that are known."""
        return {node_id: self._known[node_id].name for node_id in online if node_id in self._known}

    def candidates(
        self, online: Sequence[int], turns: dict[int, int], server_round: int, cut: CutPolicy, epochs: EpochsPolicy
    ) -> list[Candidate]:
        """Nodes with what their next turn would take."""
        made = []
        for node_id in online:
            known = self._known.get(node_id)
            forecast = self._forecast(node_id, known, server_round, sum(turns.values()), cut, epochs) if known else None
            name = known.name if known else ""
            made.append(Candidate(node_id=node_id, turns=turns.get(node_id, 0), name=name, forecast=forecast))
        return made

    def _forecast(
        self, node_id: int, known: Enrolment, server_round: int, turn: int, cut: CutPolicy, epochs: EpochsPolicy
    ) -> Forecast | None:
        if self._planner is None:
            return None
        num_examples, num_batches = known.num_examples, known.num_batches
        if not num_batches:  # not loaded yet: as much as the others have
            sizes = [(other.num_examples, other.num_batches) for other in self._known.values() if other.num_batches]
            if sizes:
                num_examples, num_batches = (round(sum(column) / len(sizes)) for column in zip(*sizes, strict=True))
        device = DeviceView(
            node_id=node_id,
            name=known.name,
            server_round=server_round,
            turn=turn,
            num_blocks=self._num_blocks,
            num_examples=num_examples,
            num_batches=num_batches,
        )
        return self._planner.forecast(device, cut, epochs)
