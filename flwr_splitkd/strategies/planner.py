"""What a strategy knows of its fleet: an outlook for the policies before a turn, and what the turn has taught after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from flwr_splitkd.costs import (
    CutTerms,
    DeviceEstimate,
    DeviceProfile,
    EdgeEstimate,
    Fleet,
    LinkState,
    MeasuredTurn,
    ModelShape,
    Workload,
    correct,
    cut_terms,
    relative_error,
)
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers import (
    CutPolicy,
    Decision,
    DeviceView,
    EpochsPolicy,
    Forecast,
    FrequencyPolicy,
    Outlook,
)
from flwr_splitkd.schedulers.baselines import fixed_cut
from flwr_splitkd.schedulers.plan import TOLERANCE
from flwr_splitkd.telemetry import ModelledWorld, Payment
from flwr_splitkd.tiers.edge import TurnOutcome

__all__ = ["PlannedTurn", "Planner", "PlannerBasis"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannerBasis:
    """What every turn of a run has in common.

    Parameters
    ----------
    student, teacher
        Sizes of the models; None without a teacher.
    workload
        A turn of one batch; how many there are is filled in for each device.
    handover_bytes
        Of each cut ``1 .. L-1``. Shape ``[L-1]``.
    max_batches
        Most batches in a pass; 0 for all.
    codec
        Of turns whose policy does not choose one.
    clock_is_set
        Whether the edge sets its GPU's clock to what is decided. It may turn out during the run that it no longer can.
    """

    student: ModelShape
    teacher: ModelShape | None
    workload: Workload
    handover_bytes: np.ndarray
    max_batches: int
    codec: str
    clock_is_set: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedTurn:
    """A turn as it was decided, and what is needed to learn from it.

    Parameters
    ----------
    cut, local_epochs, codec
        What the edge serves it with; `codec` is None where the policy has not chosen one.
    decision
        With reasons and predictions; None without a planner.
    nominal
        Terms before any correction.
    max_delay_s
        The policy's bound on the turn.
    """

    cut: int
    local_epochs: int
    codec: str | None = None
    decision: Decision | None = None
    nominal: CutTerms | None = None
    max_delay_s: float = math.inf

    @property
    def frequency_hz(self) -> float | None:
        """The clock that was chosen; None without a planner."""
        return None if self.decision is None else self.decision.frequency_hz

    def to_json(self) -> dict[str, Any]:
        """As part of a line of ``metrics.jsonl``: what was decided, why, and what it was expected to take."""
        if self.decision is None:
            return {}
        cost = self.decision.cost
        return {
            "codec": self.decision.codec,
            "planned_frequency_hz": self.decision.frequency_hz,
            "binding": self.decision.binding,
            "reason": self.decision.reason,
            "predicted_device_s": cost.device_s,
            "predicted_uplink_s": cost.uplink_s,
            "predicted_server_s": cost.server_s,
            "predicted_downlink_s": cost.downlink_s,
            "predicted_other_s": cost.other_s,
            "predicted_s": cost.total_s,
            "predicted_j": cost.total_j,
        }


@dataclass
class Planner:
    """Costs of a fleet's turns: from profiles at first, corrected by what the data plane measures.

    Parameters
    ----------
    fleet
        Machines and links; common machines and 100 Mbit/s when not given.
    sequence_length
        Tokens of a sample; a wrong value is corrected with the rest after the first turn.
    modelled
        Whether seconds, joules, links and batteries come from the cost model, as in a simulation; all that comes from it is
        named ``modelled_*``. The server's clock is then as decided; otherwise it is where the edge sets it
        (``SplitKD(set_frequency=True)``), and taken for its largest where nobody does.
    channel
        What is known of a modelled link when a turn is decided: ``"last"`` is its state in the device's last turn (before
        that, when the planner first looks at it), ``"fresh"`` that in which the turn will take place, as no real planner could
        know.
    frequency
        Clock for cut policies that choose none: ``"max"``, ``"nominal"`` or ``"optimal"``.
    student, teacher
        Sizes of the models; measured from the run's own when not given.
    """

    fleet: Fleet = field(default_factory=Fleet)
    sequence_length: int = 512
    modelled: bool = False
    channel: Literal["last", "fresh"] = "last"
    frequency: FrequencyPolicy = "max"
    student: ModelShape | None = None
    teacher: ModelShape | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises
        ------
        ConfigError
            If one is out of range.
        """
        if self.sequence_length < 1:
            raise ConfigError(f"`sequence_length` is {self.sequence_length}; expected at least 1.")
        if self.channel not in ("last", "fresh"):
            raise ConfigError(f"`channel` is {self.channel!r}; expected 'last' or 'fresh'.")
        if self.frequency not in get_args(FrequencyPolicy):
            raise ConfigError(
                f"`frequency` is {self.frequency!r}; expected one of {', '.join(get_args(FrequencyPolicy))}."
            )
        if self.channel == "fresh" and not self.modelled:
            raise ConfigError("`channel` is 'fresh'; expected 'last': nobody knows a real link before it is used.")
        self._basis: PlannerBasis | None = None
        self._world = ModelledWorld(self.fleet) if self.modelled else None
        self._edge = EdgeEstimate()
        self._devices: dict[str, DeviceEstimate] = {}
        self._unpaid: tuple[dict[str, DeviceEstimate], dict[str, Any]] | None = None
        self._own_profiles: dict[str, DeviceProfile] = {}
        self._clock_is_set = False

    # ---- the run

    def open(self, basis: PlannerBasis) -> None:
        """Begin a run.

        Raises
        ------
        ConfigError
            If the shapes that were given have other blocks than the run's student.
        """
        blocks = len(basis.handover_bytes) + 1
        if basis.student.num_blocks != blocks:
            raise ConfigError(
                f"`student` of the planner is {basis.student.name} with {basis.student.num_blocks} blocks; expected {blocks}, as "
                "the run's student has."
            )
        for profile in (*self.fleet.devices.values(), self.fleet.default_device):
            _check_blocks(profile, basis.student)
        self._basis, self._clock_is_set = basis, basis.clock_is_set

    def introduce(self, device: str, profile: DeviceProfile) -> None:
        """Take a device's own word on what it is, unless the fleet describes it.

        Raises
        ------
        ConfigError
            If it was measured with a model of another number of blocks.
        """
        if device not in self.fleet.devices:
            _check_blocks(profile, self._open().student)
            self._own_profiles[device] = profile

    # ---- before a turn

    def outlook(self, device: str, *, num_examples: int, num_batches: int) -> Outlook:
        """What a device's next turn will take, for every cut."""
        basis = self._open()
        estimate = self._estimate(device)
        profile = self._profile(device)

        def terms(local_epochs: int, codecs: Sequence[str]) -> CutTerms:
            workload = self._workload(num_examples, num_batches, local_epochs)
            nominal = cut_terms(
                basis.student,
                basis.teacher,
                workload,
                profile,
                codecs=codecs,
                handover_bytes=basis.handover_bytes,
            )
            return correct(nominal, estimate, self._edge)

        return Outlook(
            device=profile,
            server=self.fleet.server,
            link=self._known_link(device, estimate),
            battery_j=self._battery_j(device, profile, estimate),
            terms=terms,
            clock_is_ours=self.modelled or self._clock_is_set,
            codec=basis.codec,
        )

    def plan(self, device: DeviceView, cut: CutPolicy, local_epochs: EpochsPolicy) -> PlannedTurn:
        """Have the policies decide on a turn.

        Raises
        ------
        InfeasibleError
            If the device cannot take it. From then on it is judged by its profile and link alone again: what ruled it out may
            have passed, and without a turn nothing would be measured.
        ConfigError
            If a policy has decided on what was not on offer.
        """
        try:
            return self._plan(device, cut, local_epochs)
        except InfeasibleError:
            self._forget(device.name)
            raise

    def _plan(self, device: DeviceView, cut: CutPolicy, local_epochs: EpochsPolicy) -> PlannedTurn:
        basis = self._open()
        outlook = self.outlook(device.name, num_examples=device.num_examples, num_batches=device.num_batches)
        view = replace(device, outlook=outlook)
        epochs = local_epochs.choose(view)
        chosen = cut.choose(replace(view, local_epochs=epochs))
        codecs = tuple(getattr(cut, "codecs", ()) or (basis.codec,))
        decision = chosen if isinstance(chosen, Decision) else self._decision(outlook, chosen, basis.codec, epochs)
        nominal = cut_terms(
            basis.student,
            basis.teacher,
            self._workload(device.num_examples, device.num_batches, epochs),
            outlook.device,
            codecs=codecs,
            handover_bytes=basis.handover_bytes,
        )
        nominal.index(decision.cut, decision.codec)  # raises if it is not among them
        return PlannedTurn(
            cut=decision.cut,
            local_epochs=epochs,
            # The run's own codecs may differ up and down.
            codec=None if decision.codec == basis.codec else decision.codec,
            decision=decision,
            nominal=nominal,
            max_delay_s=float(getattr(cut, "max_delay_s", math.inf)),
        )

    def evaluation_cut(self, device: DeviceView, cut: CutPolicy, local_epochs: EpochsPolicy) -> int:
        """Return the cut that a turn would have, or the least that the policy allows if the device cannot take one."""
        try:
            return self._plan(device, cut, local_epochs).cut
        except InfeasibleError:
            return int(getattr(cut, "min_cut", 1))

    def forecast(self, device: DeviceView, cut: CutPolicy, local_epochs: EpochsPolicy) -> Forecast:
        """What a device's next turn would take if it were decided now."""
        outlook = self.outlook(device.name, num_examples=device.num_examples, num_batches=device.num_batches)
        duration_s = device_j = total_j = math.inf
        infeasible = ""
        try:
            planned = self.plan(device, cut, local_epochs)
            if planned.decision is not None and math.isfinite(planned.decision.cost.total_s):
                cost = planned.decision.cost
                duration_s, device_j, total_j = cost.total_s, cost.device_j, cost.total_j
            else:
                infeasible = (
                    f"Device {device.name} is out of reach: {outlook.link.uplink_bps:g} bit/s up; expected more than 0."
                )
        except InfeasibleError as error:
            infeasible = str(error)
        return Forecast(
            device=outlook.device,
            link=outlook.link,
            battery_j=outlook.battery_j,
            num_examples=device.num_examples,
            duration_s=duration_s,
            device_j=device_j,
            total_j=total_j,
            infeasible=infeasible,
        )

    # ---- a turn

    def pay(self, device: str, planned: PlannedTurn) -> dict[str, Any]:
        """Let a modelled turn take place; return what it took, or nothing where costs are real.

        It comes before the turn itself, so that the turn's commit remembers it; see `refund`.
        """
        return self.pay_together([(device, planned)])[0]

    def pay_together(self, turns: Sequence[tuple[str, PlannedTurn]], *, clipped: bool = False) -> list[dict[str, Any]]:
        """Let the modelled turns of a cluster take place, as `pay` does one; `clipped` is whether gradients are clipped."""
        world = self._world
        if world is None or any(planned.decision is None for _, planned in turns):
            return [{} for _ in turns]
        before = {device: self._estimate(device) for device, _ in turns}
        self._unpaid = (before, world.state_dict())
        payments = [self._payment(device, planned) for device, planned in turns]
        paid = world.pay_together(payments, clipped=clipped)
        for (device, _), turn in zip(turns, paid, strict=True):
            self._devices[device] = self._estimate(device).see(turn.link)
        return [
            {
                **turn.to_json(),
                "modelled_late": turn.total_s > planned.max_delay_s * (1 + TOLERANCE),
            }
            for (_, planned), turn in zip(turns, paid, strict=True)
        ]

    def _payment(self, device: str, planned: PlannedTurn) -> Payment:
        decision, nominal = planned.decision, planned.nominal
        if decision is None or nominal is None:
            raise ConfigError(f"The turn of {device} was not decided by a planner; expected its costs.")
        option = nominal.index(decision.cut, decision.codec)
        return Payment(
            device=device,
            profile=self._profile(device),
            terms=nominal,
            option=option,
            frequency_hz=decision.frequency_hz,
        )

    def refund(self) -> None:
        """Take the last payment back: the turn was lost, as if it had never begun."""
        if self._world is not None and self._unpaid is not None:
            before, state = self._unpaid
            self._devices.update(before)
            self._world.load_state_dict(state)
            self._unpaid = None

    def learn(self, device: str, planned: PlannedTurn, outcome: TurnOutcome) -> dict[str, Any]:
        """Correct the costs by what a turn took; return what to record of it. Modelled costs need no correction.

        Parameters
        ----------
        device
            Its name.
        planned
            As it was decided.
        outcome
            What the data plane measured.
        """
        self._unpaid = None
        decision, nominal = planned.decision, planned.nominal
        if decision is None or nominal is None or self._world is not None:
            return {}
        option = nominal.index(decision.cut, decision.codec)
        turn = _measured(outcome, option)
        server = self.fleet.server
        frequency_hz = decision.frequency_hz
        if outcome.clock is not None:
            self._clock_is_set = not outcome.clock.refusal
            frequency_hz = outcome.clock.set_frequency_hz or server.max_frequency_hz
        nominal_s = float(nominal.server_flops[option]) / server.flops_at(frequency_hz)
        # Not of a part of a turn, whose costs would be taken for a whole one's, nor of a device that tells no times.
        if outcome.num_batches == nominal.num_steps and outcome.device_s > 0:
            profile = self._profile(device)
            device_j = profile.compute_power_w * turn.device_s + profile.transmit_power_w * turn.uplink_s
            self._edge = self._edge.observe(nominal, turn, nominal_s=nominal_s)
            self._devices[device] = self._estimate(device).observe(nominal, turn, device_j=device_j)
        return {
            "measured_other_s": turn.fixed_s + turn.other_s,
            "prediction_error": relative_error(decision.cost, turn),
        }

    def totals(self) -> dict[str, float]:
        """The modelled world's clock and energy so far; nothing without one."""
        return {} if self._world is None else {"modelled-s": self._world.now_s, "modelled-j": self._world.total_j}

    # ---- in a commit

    def state_dict(self) -> dict[str, Any]:
        """What was learnt."""
        return {
            "edge": asdict(self._edge),
            "devices": {name: estimate.to_json() for name, estimate in self._devices.items()},
            "world": self._world.state_dict() if self._world else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what another planner has learnt."""
        self._edge = EdgeEstimate.from_json(state["edge"])
        self._devices = {name: DeviceEstimate.from_json(data) for name, data in state["devices"].items()}
        if self._world is not None and state["world"] is not None:
            self._world.load_state_dict(state["world"])

    # ---- inside

    def _open(self) -> PlannerBasis:
        if self._basis is None:
            raise ConfigError(
                "The planner is not open; expected a strategy that runs. Pass it as `planner` of SplitKD."
            )
        return self._basis

    def _profile(self, device: str) -> DeviceProfile:
        return self._own_profiles.get(device) or self.fleet.device(device)

    def _estimate(self, device: str) -> DeviceEstimate:
        if device not in self._devices:
            link = self._world.link(device) if self._world else self.fleet.link(device).at(0.0)
            self._devices[device] = DeviceEstimate(link=link)
        return self._devices[device]

    def _forget(self, device: str) -> None:
        """Drop what was learnt of a device and its link, but not what it has spent."""
        before = self._devices.pop(device, None)
        if before is not None:
            self._devices[device] = replace(self._estimate(device), spent_j=before.spent_j)

    def _battery_j(self, device: str, profile: DeviceProfile, estimate: DeviceEstimate) -> float | None:
        if self._world is not None:
            return self._world.battery_j(device, profile)
        return None if profile.battery_j is None else max(profile.battery_j - estimate.spent_j, 0.0)

    def _known_link(self, device: str, estimate: DeviceEstimate) -> LinkState:
        if self._world is not None and self.channel == "fresh":
            return self._world.link(device)
        return estimate.link

    def _workload(self, num_examples: int, num_batches: int, local_epochs: int) -> Workload:
        basis = self._open()
        batches = max(num_batches, 1)
        return replace(
            basis.workload,
            batch_size=max(round(num_examples / batches), 1),
            num_batches=min(batches, basis.max_batches) if basis.max_batches else batches,
            local_epochs=local_epochs,
        )

    def _decision(self, outlook: Outlook, cut: int, codec: str, local_epochs: int) -> Decision:
        """What follows from a cut that a policy has chosen without a word on the rest."""
        return fixed_cut(
            outlook.terms(local_epochs, (codec,)),
            cut,
            device=outlook.device,
            server=outlook.server,
            link=outlook.link,
            frequency=self.frequency if outlook.clock_is_ours else "max",
            battery_j=outlook.battery_j,
        )


def _check_blocks(profile: DeviceProfile, student: ModelShape) -> None:
    if profile.blocks is not None and len(profile.blocks.forward_s) != student.num_blocks:
        raise ConfigError(
            f"The profile of {profile.name} was measured with the {len(profile.blocks.forward_s)} blocks of "
            f"{profile.blocks.model}; expected the {student.num_blocks} of {student.name}. Measure it again with "
            "`flwr-splitkd profile`, or leave its `blocks` out."
        )


def _measured(outcome: TurnOutcome, option: int) -> MeasuredTurn:
    handed_down = outcome.handover_downlink_bytes
    return MeasuredTurn(
        option=option,
        num_steps=outcome.num_batches,
        device_s=outcome.device_s,
        edge_s=outcome.edge_s,
        uplink_s=outcome.uplink_s,
        downlink_s=outcome.downlink_s,
        uplink_bytes=outcome.uplink_payload_bytes,
        downlink_bytes=outcome.downlink_payload_bytes,
        handover_uplink_bytes=outcome.handover_bytes - handed_down,
        handover_downlink_bytes=handed_down,
        fixed_s=outcome.fixed_s,
        other_s=outcome.other_s,
    )
