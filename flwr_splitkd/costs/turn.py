"""What a turn costs: seconds, joules and bytes of its stages for every cut.

The model of Li et al., "Split Knowledge Distillation for Large Models in IoT", sections IV and V.A; the paper gives no
formulas, these are ours (docs/explanation/cost-model.md). B samples of S tokens make an iteration, a turn has n of them,
F are the forward FLOPs of one block for one sample, a backward pass costs twice its forward pass:

- device: ``t_d = n B sum_{i<c} 3 F_i / flops_d``
- server: ``t_s = n B (F_teacher + 3 (sum_{i>=c} F_i + F_head)) / (f cores flops_per_cycle)``
- uplink: ``t_u = (n (smashed data + teacher embeddings + labels) + layers handed back) / R_u``
- downlink: ``t_n = (n gradients + layers handed over) / R_d``
- energy: ``xi_d f_d^3 t_d + P_u t_u + P_s t_n + xi_s f^3 t_s + P_static T`` and, if clocks are not gated, the idle share.

The stages of a turn follow one another: ``T = t_d + t_u + t_s + t_n`` and what was measured on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flwr_splitkd.costs.links import LinkState
from flwr_splitkd.costs.memory import device_memory, kept_values
from flwr_splitkd.costs.profiles import DeviceProfile, ServerProfile
from flwr_splitkd.costs.shape import Float, ModelShape
from flwr_splitkd.costs.workload import Workload
from flwr_splitkd.errors import ConfigError

__all__ = ["CutTerms", "TurnCost", "cut_terms", "turn_cost"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CutTerms:
    """The parts of a turn's cost that do not depend on the link and the server's clock, for every option.

    An option is a cut with a codec; arrays have one value for each. Shape ``[K]``.

    Parameters
    ----------
    cuts, codecs
        The options.
    num_steps
        Batches that go through.
    device_s
        The device computes for so long.
    server_flops
        The server's work that a faster clock shortens.
    uplink_bytes, downlink_bytes
        Of the steps: smashed data and gradients.
    handover_uplink_bytes, handover_downlink_bytes
        Layers and their moments.
    device_memory_bytes, server_memory_bytes
        Estimated peak of each half.
    other_s
        What no stage explains: start of the turn, latency of its messages. Measured; 0 before.
    server_offset_s
        The server's seconds that no clock shortens, for every option. Measured; 0 before.
    """

    cuts: np.ndarray
    codecs: tuple[str, ...]
    num_steps: int
    device_s: Float
    server_flops: Float
    uplink_bytes: Float
    downlink_bytes: Float
    handover_uplink_bytes: Float
    handover_downlink_bytes: Float
    device_memory_bytes: Float
    server_memory_bytes: Float
    other_s: Float
    server_offset_s: float = 0.0

    def __len__(self) -> int:
        return len(self.cuts)

    def index(self, cut: int, codec: str = "none") -> int:
        """Return the position of an option.

        Raises
        ------
        ConfigError
            If it is none.
        """
        for position, option in enumerate(zip(self.cuts, self.codecs, strict=True)):
            if option == (cut, codec):
                return position
        raise ConfigError(
            f"There is no cut {cut} with the codec {codec!r}; expected cuts {self.cuts.min()}..{self.cuts.max()} with "
            f"{sorted(set(self.codecs))}."
        )

    def uplink_s(self, link: LinkState) -> Float:
        """Seconds of each option's uplink; infinite without a link. Shape ``[K]``."""
        return _seconds(self.uplink_bytes + self.handover_uplink_bytes, link.uplink_bps)

    def downlink_s(self, link: LinkState) -> Float:
        """Seconds of each option's downlink; infinite without a link. Shape ``[K]``."""
        return _seconds(self.downlink_bytes + self.handover_downlink_bytes, link.downlink_bps)

    def server_cycles(self, server: ServerProfile) -> Float:
        """Cycles of the server's clock that each option takes. Shape ``[K]``."""
        return self.server_flops / (server.cores * server.flops_per_cycle)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCost:
    """Seconds of a turn's stages, and who spends how many joules in them."""

    device_s: float
    uplink_s: float
    server_s: float
    downlink_s: float
    other_s: float
    device_compute_j: float
    device_transmit_j: float
    server_compute_j: float
    server_transmit_j: float
    server_static_j: float
    server_idle_j: float

    @property
    def total_s(self) -> float:
        """The whole turn."""
        return self.device_s + self.uplink_s + self.server_s + self.downlink_s + self.other_s

    @property
    def device_j(self) -> float:
        """What the device spends."""
        return self.device_compute_j + self.device_transmit_j

    @property
    def total_j(self) -> float:
        """What both spend."""
        server_j = self.server_compute_j + self.server_transmit_j + self.server_static_j + self.server_idle_j
        return self.device_j + server_j


def cut_terms(
    student: ModelShape,
    teacher: ModelShape | None,
    workload: Workload,
    device: DeviceProfile,
    *,
    codecs: Sequence[str] = ("none",),
    handover_bytes: Float | None = None,
) -> CutTerms:
    """Work out every cut with every codec.

    Parameters
    ----------
    student, teacher
        The teacher's embeddings travel up and its blocks run on the server; None without one.
    workload
        What a turn has to do.
    device
        Whose turn it is.
    codecs
        For smashed data and gradients.
    handover_bytes
        Of each cut ``1 .. L-1``, where they are known better than by weights times bytes. Shape ``[L-1]``.

    Raises
    ------
    ConfigError
        If the student cannot be cut, or the device's measured times are of another number of blocks.
    """
    blocks = student.num_blocks
    if blocks < 2:
        raise ConfigError(f"{student.name} has {blocks} block; expected at least 2, to cut between.")
    if not codecs:
        raise ConfigError("`codecs` is empty; expected at least one, such as 'none'.")
    cuts = np.arange(1, blocks)
    device_s = _device_seconds(student, workload, device)
    server_flops = _server_flops(student, teacher, workload)
    if handover_bytes is None:
        weights = np.cumsum(student.block_parameters)[:-1]
        weights = weights + (student.embedding_parameters if workload.train_embeddings else 0)
        handover_bytes = weights * workload.weight_bytes * (1 + workload.moments)
    elif handover_bytes.shape != cuts.shape:
        raise ConfigError(
            f"`handover_bytes` has shape {handover_bytes.shape}; expected ({len(cuts)},), one for each cut."
        )
    tokens, steps = workload.batch_tokens, workload.num_steps
    values_up = student.hidden_size + (teacher.embedding_width if teacher else 0)
    widths = np.array([workload.value_bytes(codec) for codec in codecs])
    uplink = steps * tokens * (values_up * widths + workload.token_bytes)
    downlink = steps * tokens * student.hidden_size * widths
    # Codec by codec, all cuts of each.
    every = len(codecs)
    return CutTerms(
        cuts=np.tile(cuts, every),
        codecs=tuple(codec for codec in codecs for _ in cuts),
        num_steps=steps,
        device_s=np.tile(device_s, every),
        server_flops=np.tile(server_flops, every),
        uplink_bytes=np.repeat(uplink, len(cuts)),
        downlink_bytes=np.repeat(downlink, len(cuts)),
        handover_uplink_bytes=np.tile(handover_bytes, every),
        handover_downlink_bytes=np.tile(handover_bytes, every),
        device_memory_bytes=np.tile(device_memory(student, teacher, workload).peak, every),
        server_memory_bytes=np.tile(_server_memory(student, teacher, workload), every),
        other_s=np.zeros(every * len(cuts)),
    )


def turn_cost(
    terms: CutTerms,
    option: int,
    *,
    frequency_hz: float,
    device: DeviceProfile,
    server: ServerProfile,
    link: LinkState,
) -> TurnCost:
    """Work out one option at one clock and one state of the link.

    Parameters
    ----------
    terms
        Of the device's turn.
    option
        Position in `terms`.
    frequency_hz
        The server's clock.
    device, server, link
        Who takes part.
    """
    device_s, other_s = float(terms.device_s[option]), float(terms.other_s[option])
    uplink_s, downlink_s = float(terms.uplink_s(link)[option]), float(terms.downlink_s(link)[option])
    busy_s = float(terms.server_cycles(server)[option]) / frequency_hz
    server_s = busy_s + terms.server_offset_s
    total_s = device_s + uplink_s + server_s + downlink_s + other_s
    return TurnCost(
        device_s=device_s,
        uplink_s=uplink_s,
        server_s=server_s,
        downlink_s=downlink_s,
        other_s=other_s,
        device_compute_j=_joules(device.compute_power_w, device_s),
        device_transmit_j=_joules(device.transmit_power_w, uplink_s),
        server_compute_j=server.power_coefficient * frequency_hz**3 * busy_s,
        server_transmit_j=_joules(server.transmit_power_w, downlink_s),
        server_static_j=_joules(server.static_power_w, total_s),
        server_idle_j=_joules(server.idle_power_w, total_s - busy_s),
    )


def _device_seconds(student: ModelShape, workload: Workload, device: DeviceProfile) -> Float:
    if device.blocks is None:
        flops = 3 * student.block_flops(workload.sequence_length, causal=workload.causal)
        seconds = workload.batch_size * np.cumsum(flops)[:-1] / device.flops
    else:
        times = device.blocks
        if len(times.forward_s) != student.num_blocks:
            raise ConfigError(
                f"{device.name} was measured with the {len(times.forward_s)} blocks of {times.model}; expected the "
                f"{student.num_blocks} of {student.name}. Measure it again with `flwr-splitkd profile`."
            )
        ratio = workload.batch_tokens / (times.batch_size * times.sequence_length)
        blocks = np.cumsum(np.add(times.forward_s, times.backward_s))[:-1]
        seconds = (blocks + times.embedding_s) * ratio
    return np.asarray(workload.num_steps * seconds, dtype=np.float64)


def _server_flops(student: ModelShape, teacher: ModelShape | None, workload: Workload) -> Float:
    length, causal = workload.sequence_length, workload.causal
    blocks = student.block_flops(length, causal=causal)
    above = blocks.sum() - np.cumsum(blocks)[:-1]
    per_sample = 3 * (above + student.head_flops(length))
    if teacher:
        per_sample = per_sample + teacher.forward_flops(length, causal=causal)
    return np.asarray(workload.num_steps * workload.batch_size * per_sample, dtype=np.float64)


def _server_memory(student: ModelShape, teacher: ModelShape | None, workload: Workload) -> Float:
    """The whole student with its moments, the teacher, and above the cut gradients and what is kept of a joined micro-batch."""
    above = student.block_parameters.sum() - np.cumsum(student.block_parameters)[:-1] + student.head_parameters
    trains = student.num_parameters - (0 if workload.train_embeddings else student.embedding_parameters)
    share = workload.trained_share
    weights = student.num_parameters + share * (workload.memory_moments * trains + above)
    weights = weights + (teacher.num_parameters if teacher else 0)
    values = kept_values(student, workload.sequence_length)
    tokens = workload.joined_devices * workload.microbatch_tokens
    kept = tokens * workload.activation_bytes * (values.sum() - np.cumsum(values)[:-1])
    return np.asarray(weights * workload.weight_bytes + kept, dtype=np.float64)


def _joules(power_w: float, seconds: float) -> float:
    """A turn that never ends takes for ever, whatever its powers."""
    return power_w * seconds if math.isfinite(seconds) else math.inf


def _seconds(num_bytes: Float, rate_bps: float) -> Float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(num_bytes > 0, 8 * num_bytes / rate_bps, 0.0)
