"""One round of the chain on the device: its half of its own encoder, beside its data.

RoundPlan -> send the layers that the edge lacks -> (forward -> send -> receive -> backward -> step)* -> put the halves
together -> refresh the backup.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import DataError, ProtocolError, TensorError
from flwr_splitkd.models import materialize
from flwr_splitkd.split import (
    DeviceEncoder,
    Layout,
    encoder_units,
    export_optimizer_state,
    grad_norms,
    import_optimizer_state,
    scale_gradients,
    seed_dropout,
)
from flwr_splitkd.split.dropout import DropoutSeeds
from flwr_splitkd.store.tensor_file import digest
from flwr_splitkd.tiers.device.batches import Batch, DeviceData
from flwr_splitkd.tiers.device.chain.own_encoder import OwnEncoder
from flwr_splitkd.tiers.device.passes import forward_pass, received_gradient
from flwr_splitkd.tiers.device.steps import NO_GRADIENT
from flwr_splitkd.tiers.optimizer import OptimizerSettings, set_learning_rate
from flwr_splitkd.tiers.units import (
    FROZEN,
    Moments,
    decode_all,
    encode_all,
    pack,
    require_finite,
    trained_names,
    unpack,
)
from flwr_splitkd.wire.codec import decode, encode
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["REFERENCE", "RoundReport", "Score", "run_round"]

REFERENCE = "reference_"
"""Begins the names of a batch's tensors that are the LLM's tokens of context and question."""

Score = Callable[[list[list[int]], Batch], Mapping[str, float]]
"""Rates generated answers: token ids of each sample, and the batch; returns means over the samples by metric."""

_IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What the device tells Flower about its round.

    Parameters
    ----------
    over
        The edge's word on it.
    mode
        A ``pb.Mode``.
    split_point
        Blocks that ran here.
    num_examples
        Samples that went through.
    num_steps
        Steps of its encoder.
    scores
        Means over the samples, by metric; only when evaluating.
    """

    over: pb.RoundOver
    mode: int
    split_point: int
    num_examples: int
    num_steps: int
    scores: dict[str, float] = field(default_factory=dict)


def run_round(
    link: Link,
    *,
    skeleton: nn.Module,
    layout: Layout,
    own: OwnEncoder,
    data: DeviceData,
    compute_device: torch.device,
    begin_timeout_s: float,
    step_timeout_s: float,
    score: Score | None = None,
    leave_when: Callable[[int], str | None] | None = None,
) -> RoundReport:
    """Take part in one round, or in an evaluation.

    Parameters
    ----------
    link
        Open, past the handshake.
    skeleton
        The encoder without memory; taken over.
    own
        The encoder on the disk.
    begin_timeout_s
        Seconds to wait for the round's plan.
    step_timeout_s
        Seconds to wait for an answer: the other devices of the iteration are waited for too.
    score
        Rates the answers of an evaluation.
    leave_when
        Asked before each step with its number in the round; a reason makes the device leave, with its whole encoder.

    Raises
    ------
    SplitKDError
        Why it came to nothing; the backup stays as it was.
    """
    plan: pb.RoundPlan = link.receive("RoundPlan", begin_timeout_s).body
    one = _Round(link, plan, skeleton, layout, own, compute_device, step_timeout_s)
    if plan.mode == pb.MODE_EVALUATE:
        return one.evaluate(data, score)
    return one.train(data, leave_when)


class _Round:
    def __init__(
        self,
        link: Link,
        plan: pb.RoundPlan,
        skeleton: nn.Module,
        layout: Layout,
        own: OwnEncoder,
        compute_device: torch.device,
        step_timeout_s: float,
    ) -> None:
        self._link, self._plan, self._layout, self._own = link, plan, layout, own
        self._device, self._timeout_s = compute_device, step_timeout_s
        self._training = plan.mode == pb.MODE_TRAIN
        self._moments_travel = plan.optimizer_handover == pb.OPTIMIZER_HANDOVER_FULL
        self._send_layers()
        started_s = time.monotonic()
        self._units = self._own_units()
        weights, moments = unpack({n: t for unit in self._units for n, t in own.read(unit).items()})
        self._half = DeviceEncoder(skeleton, plan.split_point, layout)
        materialize(self._half, weights, device=compute_device)
        self._half.train(self._training)
        self._trainable = [(name, p) for name, p in self._half.named_parameters() if p.requires_grad]
        self._optimizer = self._build_optimizer(moments)
        self._step, self._num_examples = plan.first_step, 0
        self._waited_s, self._setup_s = 0.0, time.monotonic() - started_s
        self._began_s = time.monotonic()

    # ---- training

    def train(self, data: DeviceData, leave_when: Callable[[int], str | None] | None) -> RoundReport:
        self._began_s = time.monotonic()
        times = self._times()
        num_steps = self._plan.num_epochs * self._plan.num_iterations
        message: WireMessage | None = None
        last: pb.RoundDone | pb.Leave | None = None
        with seed_dropout(self._half.model, self._layout, self._plan.seed) as seeds:
            for index, batch in enumerate(islice(self._batches(data), num_steps)):
                reason = leave_when(index) if leave_when else None
                if reason:
                    last = pb.Leave(reason=reason)
                    break
                message = self._train_step(batch, seeds, times)
                if message is not None:  # the others have ended the round
                    break
                times = self._times()
        if message is None:
            self._link.send(last or self._done())
            message = self._receive("RoundOver")
        self._refresh(message)
        return self._report(message)

    def _done(self) -> pb.RoundDone:
        return pb.RoundDone(num_steps=self._taken, num_examples=self._num_examples, times=self._times())

    def _times(self) -> pb.DeviceTimes:
        """Where the seconds of the steps so far went."""
        return pb.DeviceTimes(
            setup_s=self._setup_s,
            compute_s=max(time.monotonic() - self._began_s - self._waited_s, 0.0),
            receive_s=self._link.receive_s,
        )

    @property
    def _taken(self) -> int:
        return int(self._step - self._plan.first_step)

    def _batches(self, data: DeviceData) -> Iterator[Batch]:
        """Pass over the data as often as the round needs, each time in another order."""
        for number in count():
            yield from data.one_pass(self._plan.seed, self._plan.first_step, number, self._layout.data_input)

    def _train_step(self, batch: Batch, seeds: DropoutSeeds, times: pb.DeviceTimes) -> WireMessage | None:
        """Train on one batch; return RoundOver if that came instead of the answer. `times` are of the steps before."""
        inputs, labels, reference = _split(batch)
        seeds.at(self._step)
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        smashed = self._forward(inputs, training=True)
        header = pb.Forward(step=self._step, num_microbatches=1, times=times)
        self._link.send(header, self._uplink(smashed, inputs, labels, reference))
        answer = self._receive("Backward|RoundOver")
        if answer.kind == "RoundOver":
            return answer
        self._check(answer)
        gradient = received_gradient(answer.tensors["gradient"], smashed, self._step)
        torch.autograd.backward(smashed, gradient)
        self._update(answer.body.update if answer.body.HasField("update") else None)
        self._num_examples += len(labels)
        self._step += 1
        return None

    def _update(self, update: pb.Update | None) -> None:
        """Take the optimiser step (equation (11)), clipped together with the edge's half if at all."""
        if self._plan.clip_gradients:
            norms = grad_norms(self._trainable)
            values = [float(norms[name]) if name in norms else NO_GRADIENT for name, _ in self._trainable]
            self._link.send(pb.GradientNorms(step=self._step, norms=values))
            update = self._receive("Update").body
        if update is None or update.step != self._step:
            raise ProtocolError(f"The edge's answer to step {self._step} lacks its update. Nothing was applied.")
        if self._optimizer is None:
            return
        if self._plan.clip_gradients:
            factor = torch.tensor(update.clip_coefficient, dtype=self._trainable[0][1].dtype)
            scale_gradients((parameter for _, parameter in self._trainable), factor)
        set_learning_rate(self._optimizer, update.learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _refresh(self, message: WireMessage) -> None:
        """Put the two halves together and make them the new backup; all of it or nothing."""
        over: pb.RoundOver = message.body
        units: dict[str, dict[str, Tensor]] = {item.unit: {} for item in over.units}
        for name, tensor in decode_all(message.tensors).items():
            unit, _, rest = name.partition("|")
            if unit not in units:
                raise ProtocolError(f"The edge sent a tensor {name[:80]!r} of a unit that it did not name.")
            units[unit][rest] = tensor
        self._check_units(units)
        for item in over.units:
            if digest(units[item.unit]) != item.version:
                raise TensorError(f"Unit {item.unit} came back altered; expected the digest {item.version}.")
        own = self._trained_units()
        for unit, tensors in own.items():
            for name, tensor in tensors.items():
                require_finite(tensor, f"{name!r} of {unit} at the round's end", "Lower the learning rate.")
        info = {"next_step": self._step, "server_round": self._plan.server_round}
        self._own.refresh({**own, **units}, info)

    def _check_units(self, units: Mapping[str, Mapping[str, Tensor]]) -> None:
        """What comes back must be the other half, tensor by tensor: it becomes this device's only copy."""
        expected = {unit for unit in self._own.versions if unit not in self._units and not unit.endswith(FROZEN)}
        if set(units) != expected:
            odd = sorted(set(units) ^ expected)
            raise ProtocolError(f"The edge returned other units than it has; the first that differs is {odd[0]!r}.")
        for unit, tensors in units.items():
            before = {name: tensor for name, tensor in self._own.read(unit).items() if name.startswith("weight/")}
            after = {name: tensor for name, tensor in tensors.items() if name.startswith("weight/")}
            same = set(before) == set(after) and all(
                (before[name].shape, before[name].dtype) == (after[name].shape, after[name].dtype) for name in before
            )
            if not same:
                raise TensorError(
                    f"Unit {unit} came back with other tensors, shapes or dtypes; nothing of it was kept."
                )

    # ---- evaluation

    def evaluate(self, data: DeviceData, score: Score | None) -> RoundReport:
        self._began_s = time.monotonic()
        sums: dict[str, float] = {}
        for batch in data.one_pass(self._plan.seed, 0, 0, self._layout.data_input):
            inputs, labels, _ = _split(batch)
            inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
            smashed = self._forward(inputs, training=False)
            header = pb.Forward(step=self._step, num_microbatches=1)
            self._link.send(header, self._uplink(smashed, inputs, labels, {}))
            answer = self._receive("Answer")
            if score is not None and "tokens" in answer.tensors:
                answers = [[t for t in row if t >= 0] for row in decode(answer.tensors["tokens"]).tolist()]
                for name, value in score(answers, batch).items():
                    sums[name] = sums.get(name, 0.0) + float(value) * len(labels)
            self._num_examples += len(labels)
            self._step += 1
        self._link.send(self._done())
        message = self._receive("RoundOver")
        return self._report(message, {name: total / self._num_examples for name, total in sums.items()})

    def _report(self, message: WireMessage, scores: dict[str, float] | None = None) -> RoundReport:
        return RoundReport(
            over=message.body,
            mode=self._plan.mode,
            split_point=self._plan.split_point,
            num_examples=self._num_examples,
            num_steps=self._taken,
            scores=scores or {},
        )

    # ---- the half

    def _send_layers(self) -> None:
        """Send what the edge lacks of its half (SCCT, section III.A: the server-side sub-model)."""
        unknown = [unit for unit in self._plan.wanted_units if unit not in self._own.versions]
        if unknown:
            raise ProtocolError(f"The edge asks for unit {unknown[0][:80]!r}; expected units of this encoder.")
        tensors: dict[str, EncodedTensor] = {}
        for unit in self._plan.wanted_units:
            tensors.update(encode_all(self._travelling(self._own.read(unit)), f"{unit}|"))
        self._link.send(pb.ServerHalf(), tensors)

    def _travelling(self, unit: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: t for name, t in unit.items() if self._moments_travel or name.startswith("weight/")}

    def _own_units(self) -> list[str]:
        device_units = encoder_units(self._layout, self._plan.split_point)[0]
        return [unit for one in device_units for unit in (one, one + FROZEN) if unit in self._own.versions]

    def _build_optimizer(self, moments: Moments) -> torch.optim.Optimizer | None:
        if not self._training or not self._trainable:
            return None
        optimizer = OptimizerSettings.from_wire(self._plan.optimizer).build(p for _, p in self._trainable)
        held = {name for name, _ in self._trainable}
        if self._moments_travel:
            import_optimizer_state(optimizer, self._trainable, {n: m for n, m in moments.items() if n in held})
        return optimizer

    def _trained_units(self) -> dict[str, dict[str, Tensor]]:
        moments: Moments = {}
        if self._optimizer is not None and self._moments_travel:
            moments = export_optimizer_state(self._optimizer, self._trainable)
        changed = trained_names(self._half.model)
        weights: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self._half.model.state_dict().items():
            if name in changed:
                weights.setdefault(self._layout.unit_of(name), {})[name] = tensor.detach()
        return {unit: pack(tensors, moments) for unit, tensors in weights.items()}

    def _forward(self, inputs: dict[str, Tensor], *, training: bool) -> Tensor:
        check = "Check the data set of this device, and that its tokens are those of the encoder's tokenizer."
        return forward_pass(self._half, inputs, training=training, model="encoder", check=check)

    def _uplink(
        self, smashed: Tensor, inputs: dict[str, Tensor], labels: Tensor, reference: dict[str, Tensor]
    ) -> dict[str, EncodedTensor]:
        tensors = {"smashed": encode(smashed, self._plan.uplink_codec), "labels": encode(labels)}
        tensors.update(encode_all(self._half.edge_inputs(inputs), "inputs/"))
        if self._plan.reference_loss:
            if not reference:
                raise DataError(
                    f"The cloud computes the reference loss, and a batch has no tensors whose names begin with {REFERENCE!r}; "
                    "expected the LLM's tokens of context and question. Add them, or switch `reference_loss` off."
                )
            tensors.update(encode_all(reference, "reference/"))
        return tensors

    def _check(self, answer: WireMessage) -> None:
        if answer.body.step != self._step or "gradient" not in answer.tensors:
            raise ProtocolError(
                f"The edge answered step {answer.body.step} with {sorted(answer.tensors)}; expected a gradient of step "
                f"{self._step}. Nothing was applied."
            )

    def _receive(self, expected: str) -> WireMessage:
        started_s = time.monotonic()
        try:
            return self._link.receive(expected, self._timeout_s)
        finally:
            self._waited_s += time.monotonic() - started_s


def _split(batch: Batch) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """A batch's inputs of the encoder, the answers' token ids, and the LLM's tokens of context and question."""
    labels = batch.get("labels")
    if labels is None or labels.dtype != torch.int64 or labels.dim() != 2:
        what = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise DataError(
            f"A batch has the labels {what}; expected the answers' token ids, torch.int64 of shape [batch, tokens], with "
            f"{_IGNORED} where there is none."
        )
    reference = {n.removeprefix(REFERENCE): t for n, t in batch.items() if n.startswith(REFERENCE)}
    inputs = {n: t for n, t in batch.items() if n != "labels" and not n.startswith(REFERENCE)}
    return inputs, labels, reference
