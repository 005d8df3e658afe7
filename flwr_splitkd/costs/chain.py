"""What the chain device - edge - cloud has to do in an iteration, and what it has to do it with.

Wang et al., "Split Learning based Cloud-edge-end Collaborative Model Training in Heterogeneous Networks" (SCCT), section III. A
split point s is in ``1 .. L``: the device runs the first s layers, the edge the other ``L - s``. L is allowed, since the head is in
the cloud. The latencies that follow are in `flwr_splitkd.costs.chain_latency`, what differs from the paper and why in
docs/explanation/two-timescale.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.costs.memory import kept_values
from flwr_splitkd.costs.shape import Float, ModelShape
from flwr_splitkd.errors import ConfigError

__all__ = ["ChainResources", "ChainWorkload", "Ints", "MemoryLimits", "check_split_points"]

Ints = NDArray[np.int64]

# Of a token's id, and of a loss value.
_ID_BYTES, _LOSS_BITS = 4.0, 32.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChainWorkload:
    """What one device's iteration takes, for every split point. A number stands for all layers or split points.

    Parameters
    ----------
    forward_flops
        Forward FLOPs of each layer for one batch, the paper's h b. Shape ``[L]``.
    smashed_bits
        What goes up at each split point ``1 .. L``: z^s of (15). Shape ``[L]``.
    gradient_bits
        What comes down at each split point: z^g of (15). Shape ``[L]``.
    layer_bits
        What each layer takes when it is handed over, the paper's z. Shape ``[L]``.
    device_memory_bytes, edge_memory_bytes
        What each split point takes on either side, (21-6) and (21-7). Shape ``[L]``.
    cloud_up_bits, cloud_down_bits
        Each device's share of z^e and z^c in (17).
    iterations_per_epoch, epochs
        J iterations make an epoch, T epochs a round.
    backward_ratio
        FLOPs of the backward pass over those of the forward pass, the paper's epsilon.
    """

    forward_flops: Float
    smashed_bits: Float
    gradient_bits: Float
    layer_bits: Float
    device_memory_bytes: Float
    edge_memory_bytes: Float
    cloud_up_bits: float
    cloud_down_bits: float
    iterations_per_epoch: int
    epochs: int
    backward_ratio: float = 2.0

    def __post_init__(self) -> None:
        """Fill up the arrays, and check the ranges.

        Raises
        ------
        ConfigError
            If one is out of range, or the arrays do not belong together.
        """
        layers = np.asarray(self.forward_flops, dtype=np.float64)
        if layers.ndim != 1 or not layers.size:
            raise ConfigError(f"`forward_flops` has shape {layers.shape}; expected one value for each layer.")
        for name in _LAYER_ARRAYS:
            object.__setattr__(self, name, _filled(name, getattr(self, name), layers.shape, "layer or split point"))
        for name in ("iterations_per_epoch", "epochs"):
            check_number(name, getattr(self, name), minimum=1)
        for name in ("cloud_up_bits", "cloud_down_bits", "backward_ratio"):
            check_number(name, getattr(self, name), minimum=0)

    @classmethod
    def from_shape(
        cls,
        shape: ModelShape,
        *,
        batch_size: int,
        positions: int,
        iterations_per_epoch: int,
        epochs: int,
        answer_positions: int = 16,
        value_bytes: float = 4.0,
        weight_bytes: float = 4.0,
        backward_ratio: float = 2.0,
        moments: int = 0,
        kept_moments: int = 2,
        reference_loss: bool = False,
        literal: bool = False,
    ) -> ChainWorkload:
        """Work out an encoder's workload.

        With b samples of S positions, width d, and xi bits a value: smashed data and gradients take ``b S d xi`` bits each,
        ``m_n`` and ``dL/dm_n`` the same on their way to the cloud and back. Labels are token ids, of `answer_positions`
        positions, which travel from the device to the cloud. Memory counts weights, gradients, the optimiser's moments and what the
        layers keep of a batch for the backward pass; the embedding is the device's.

        Parameters
        ----------
        shape
            Of the encoder (SLM); its head is not counted, since the cloud has it.
        batch_size, positions
            b samples of S positions, the paper's d_in.
        iterations_per_epoch, epochs
            J and T.
        answer_positions
            Positions of a sample's label, the paper's d_l.
        value_bytes, weight_bytes
            Of one value on its way, and of one weight.
        backward_ratio
            The paper's epsilon.
        moments, kept_moments
            Values of optimiser state that are handed over with each weight, and that each weight has in memory.
        reference_loss
            Whether the tokens travel to the cloud as well, for the second term of (8).
        literal
            The paper's own sizes: z^g of (15) without the batch; z^c of (17) of the loss values alone; z^e with embedded inputs and
            labels, which are not in z^s; memory of parameters alone in (21-6) and (21-7).

        Raises
        ------
        ConfigError
            If a number is out of range.
        """
        check_number("batch_size", batch_size, minimum=1)
        check_number("positions", positions, minimum=1)
        check_number("value_bytes", value_bytes, above=0)
        check_number("weight_bytes", weight_bytes, above=0)
        for name, value in (
            ("answer_positions", answer_positions),
            ("moments", moments),
            ("kept_moments", kept_moments),
        ):
            check_number(name, value, minimum=0)
        activations = 8 * value_bytes * batch_size * positions * shape.hidden_size
        labels = 8 * _ID_BYTES * batch_size * answer_positions
        tokens = 8 * _ID_BYTES * batch_size * positions if reference_loss else 0.0
        smashed, gradient = activations + labels + tokens, activations
        up, down = smashed, activations + _LOSS_BITS
        if literal:
            smashed, gradient = activations, activations / batch_size
            up = 2 * activations + 8 * value_bytes * batch_size * answer_positions * shape.hidden_size
            down = _LOSS_BITS
        below = np.cumsum(shape.block_parameters)
        above = below[-1] - below
        kept = np.cumsum(value_bytes * batch_size * positions * kept_values(shape, positions))
        copies, embedding = 2.0 + kept_moments, float(shape.embedding_parameters)
        if literal:
            kept, copies, embedding = 0.0 * kept, 1.0, 0.0
        return cls(
            forward_flops=batch_size * shape.block_flops(positions),
            smashed_bits=np.full(shape.num_blocks, smashed),
            gradient_bits=np.full(shape.num_blocks, gradient),
            layer_bits=8 * weight_bytes * (1 + moments) * shape.block_parameters,
            device_memory_bytes=copies * weight_bytes * (below + embedding) + kept,
            edge_memory_bytes=copies * weight_bytes * above + kept[-1] - kept,
            cloud_up_bits=up,
            cloud_down_bits=down,
            iterations_per_epoch=iterations_per_epoch,
            epochs=epochs,
            backward_ratio=backward_ratio,
        )

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.forward_flops)

    @property
    def device_work_flops(self) -> Float:
        """FLOPs of an iteration on the device at each split point, ``(1 + epsilon) h^d b``. Shape ``[L]``."""
        return (1 + self.backward_ratio) * np.cumsum(self.forward_flops)

    @property
    def edge_work_flops(self) -> Float:
        """FLOPs of an iteration on the edge at each split point, ``(1 + epsilon) h^e b``; 0 at L. Shape ``[L]``."""
        # Summed from the last layer, so that the end is exactly 0.
        above = np.concatenate([np.cumsum(self.forward_flops[:0:-1])[::-1], [0.0]])
        return (1 + self.backward_ratio) * above


_LAYER_ARRAYS = (
    "forward_flops",
    "smashed_bits",
    "gradient_bits",
    "layer_bits",
    "device_memory_bytes",
    "edge_memory_bytes",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChainResources:
    """Devices, radio and servers as they are in an epoch, or in Q epochs: arrays are ``[N]``, or ``[Q, N]``.

    Parameters
    ----------
    device_flops
        C_n, FLOPs a second. Shape ``[N]`` or ``[Q, N]``.
    channel_gain
        G_n, received power over sent power with both antennas' gains in it. Same shape.
    device_power_w
        P_n; a number stands for all.
    edge_power_w
        P_e.
    edge_flops
        C_e, FLOPs a second.
    num_subcarriers, subcarrier_hz
        K and B_s.
    noise_w_per_hz
        N_0.
    cloud_bps
        R_ce.
    shared_edge_power
        Whether the edge's power is spread evenly over all K subcarriers, so that what it sends to all devices together is P_e at
        most. Without it (14) is taken literally: every device is sent to with the whole of P_e.
    device_overhead_s
        Seconds of an iteration on the device that no split point changes, such as loading a batch; not in the paper. Same shape.
    uplink_bps, downlink_bps
        Rates of links that are not made of subcarriers, such as wired ones: both or neither. They take the place of (13) and
        (14): gains, powers and noise are not looked at, subcarriers change nothing, and only shares and split points
        matter. Same shape.
    """

    device_flops: Float
    channel_gain: Float
    edge_flops: float
    num_subcarriers: int
    subcarrier_hz: float
    cloud_bps: float
    device_power_w: Float | float = 0.2
    edge_power_w: float = 10.0
    noise_w_per_hz: float = 10**-20.4
    shared_edge_power: bool = True
    device_overhead_s: Float | float = 0.0
    uplink_bps: Float | None = None
    downlink_bps: Float | None = None

    def __post_init__(self) -> None:
        """Fill up the arrays, and check the ranges.

        Raises
        ------
        ConfigError
            If one is out of range, or the arrays do not belong together.
        """
        shape = np.shape(self.device_flops)
        if len(shape) not in (1, 2) or 0 in shape:
            raise ConfigError(
                f"`device_flops` has shape {shape}; expected one value for each device, or a row of them for each draw."
            )
        if (self.uplink_bps is None) != (self.downlink_bps is None):
            raise ConfigError(
                "One of `uplink_bps` and `downlink_bps` is given; expected both rates of a link, or neither."
            )
        for name in self._device_arrays:
            above_zero = name != "device_overhead_s"
            object.__setattr__(self, name, _filled(name, getattr(self, name), shape, "device", above_zero=above_zero))
        for name in ("edge_flops", "subcarrier_hz", "cloud_bps", "edge_power_w", "noise_w_per_hz"):
            check_number(name, getattr(self, name), above=0)
        check_number("num_subcarriers", self.num_subcarriers, minimum=1)

    @property
    def num_devices(self) -> int:
        """N."""
        return int(self.device_flops.shape[-1])

    @property
    def num_draws(self) -> int:
        """Q; 1 where there is no such axis."""
        return len(self.device_flops) if self.device_flops.ndim == 2 else 1

    def as_draws(self) -> ChainResources:
        """The same with an axis of draws."""
        if self.device_flops.ndim == 2:
            return self
        return replace(self, **{name: getattr(self, name)[None] for name in self._device_arrays})

    def draw(self, index: int) -> ChainResources:
        """One of the draws, without that axis."""
        draws = self.as_draws()
        return replace(draws, **{name: getattr(draws, name)[index] for name in self._device_arrays})

    @property
    def has_rates(self) -> bool:
        """Whether links are given as rates, so that there are no subcarriers to divide."""
        return self.uplink_bps is not None

    @property
    def _device_arrays(self) -> tuple[str, ...]:
        return _DEVICE_ARRAYS + (("uplink_bps", "downlink_bps") if self.has_rates else ())


_DEVICE_ARRAYS = ("device_flops", "channel_gain", "device_power_w", "device_overhead_s")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemoryLimits:
    """Memory that split points have to fit in; it stays the same throughout the training.

    Parameters
    ----------
    device_bytes
        M_n; a number stands for all devices. Shape ``[N]``.
    edge_bytes
        M_e.
    """

    device_bytes: Float | float = np.inf
    edge_bytes: float = np.inf

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises
        ------
        ConfigError
            If one is no number of at least 0.
        """
        device = np.asarray(self.device_bytes, dtype=np.float64)
        for name, value in (("device_bytes", device), ("edge_bytes", np.float64(self.edge_bytes))):
            if not bool(np.all(value >= 0)):
                raise ConfigError(f"`{name}` is {value}; expected at least 0 bytes.")
        object.__setattr__(self, "device_bytes", device)


def check_split_points(split_points: ArrayLike, num_layers: int, num_devices: int) -> Ints:
    """Check that there is a split point within ``1 .. L`` for each device, and return them as integers.

    Raises
    ------
    ConfigError
        If there is not.
    """
    points = np.asarray(split_points)
    if points.shape != (num_devices,):
        raise ConfigError(f"`split_points` has shape {points.shape}; expected one for each of {num_devices} devices.")
    whole = points.astype(np.int64)
    wrong = (whole != points) | (whole < 1) | (whole > num_layers)
    if wrong.any():
        raise ConfigError(
            f"`split_points` holds {points[wrong].flat[0]}; expected whole numbers of 1..{num_layers}, since there are "
            f"{num_layers} layers."
        )
    return whole


def _filled(name: str, value: ArrayLike, shape: tuple[int, ...], of: str, *, above_zero: bool = False) -> Float:
    try:
        array = np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), shape))
    except ValueError:
        raise ConfigError(f"`{name}` has shape {np.shape(value)}; expected {shape}, one value for each {of}.") from None
    bad = ~np.isfinite(array) | (array < 0) | (above_zero & (array == 0))
    if bad.any():
        bound = "more than 0" if above_zero else "at least 0"
        raise ConfigError(f"`{name}` holds {array[bad].flat[0]:g}; expected finite numbers of {bound}.")
    array.flags.writeable = False
    return array
