"""Seconds of the chain device - edge - cloud: rates, iterations, epochs, rounds. Wang et al. (SCCT), section III.B, (12) to (20).

For device n at split point s, with a share alpha of the edge's compute and beta subcarriers:

- (12) on the device: ``d1 = (1 + epsilon) h^d(s) b / C_n``, and its overhead if there is one
- (13) up: ``R^d = beta B_s log2(1 + G P_n / (N_0 beta B_s))``
- (14) down: ``R^e = beta B_s log2(1 + G P_e / (N_0 K B_s))``; the paper has beta in place of K, so that P_e is spent N times over
- (15) between both: ``d2 = z^s / R^d + z^g / R^e``
- (16) on the edge: ``d3 = (1 + epsilon) h^e(s) b / (alpha C_e)``
- (17) edge to cloud and back, for all devices together: ``d4 = (z^e + z^c) / R_ce``
- (18) a layer that changes hands: its bits over R^d if the split point falls, over R^e if it rises
- (19) an epoch: ``J (d4 + max_n(d1 + d2 + d3))``
- (20) a round: ``max_n d0 + sum of its epochs``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from flwr_splitkd.costs.chain import ChainResources, ChainWorkload, Ints, check_split_points
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.errors import ConfigError

__all__ = [
    "ChainLatency",
    "RoundLatency",
    "chain_latency",
    "cloud_link_s",
    "handover_s",
    "handover_table_s",
    "link_rates_bps",
    "rates_bps",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChainLatency:
    """Seconds of one iteration, its terms apart. Arrays are ``[N]``, or ``[Q, N]`` for Q draws of resources.

    Parameters
    ----------
    device_s
        (12).
    uplink_s, downlink_s
        The two terms of (15).
    edge_s
        (16); 0 where the edge has no layer.
    cloud_link_s
        (17), of all devices together.
    iterations_per_epoch
        J.
    """

    device_s: Float
    uplink_s: Float
    downlink_s: Float
    edge_s: Float
    cloud_link_s: float
    iterations_per_epoch: int

    @property
    def link_s(self) -> Float:
        """(15)."""
        return self.uplink_s + self.downlink_s

    @property
    def each_s(self) -> Float:
        """What (19) takes the largest of."""
        return self.device_s + self.link_s + self.edge_s

    @property
    def slowest_s(self) -> Float:
        """The slowest device's seconds; the iteration's without the cloud link, which no decision changes."""
        return np.asarray(self.each_s.max(axis=-1))

    @property
    def iteration_s(self) -> Float:
        """An iteration."""
        return self.cloud_link_s + self.slowest_s

    @property
    def epoch_s(self) -> Float:
        """(19), with J for the paper's I."""
        return self.iterations_per_epoch * self.iteration_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundLatency:
    """Seconds of a round, (20).

    Parameters
    ----------
    handover_s
        (18), of each device. Shape ``[N]``.
    epochs_s
        (19), of each epoch. Shape ``[T]``.
    """

    handover_s: Float
    epochs_s: Float

    @classmethod
    def of(cls, handover_s: ArrayLike, epochs: Sequence[ChainLatency]) -> RoundLatency:
        """Put a round together."""
        return cls(
            handover_s=np.asarray(handover_s, dtype=np.float64),
            epochs_s=np.array([float(epoch.epoch_s) for epoch in epochs]),
        )

    @property
    def total_s(self) -> float:
        """The round."""
        return float(self.handover_s.max(initial=0.0) + self.epochs_s.sum())


def chain_latency(
    workload: ChainWorkload,
    resources: ChainResources,
    *,
    split_points: ArrayLike,
    subcarriers: ArrayLike,
    shares: ArrayLike,
) -> ChainLatency:
    """Work out an iteration.

    Parameters
    ----------
    workload, resources
        What is to be done, and with what.
    split_points
        s, ``1 .. L``. Shape ``[N]``.
    subcarriers
        beta; without one a device's latency is infinite, see `link_rates_bps`. Shape ``[N]``, or ``[Q, N]``.
    shares
        alpha, 0 to 1; 0 is infinite too, unless the edge has no layer of the device. Shape ``[N]``, or ``[Q, N]``.

    Raises
    ------
    ConfigError
        If one is out of range.
    """
    points = check_split_points(split_points, workload.num_layers, resources.num_devices) - 1
    alpha = np.asarray(shares, dtype=np.float64)
    if not (np.isfinite(alpha).all() and (alpha >= 0).all() and (alpha <= 1 + 1e-9).all()):
        raise ConfigError(f"`shares` is {alpha}; expected numbers of 0 to 1.")
    up, down = link_rates_bps(resources, subcarriers)
    work_s = workload.edge_work_flops[points] / resources.edge_flops
    with np.errstate(divide="ignore", invalid="ignore"):
        edge_s = np.where(work_s > 0, work_s / alpha, 0.0)
        uplink_s = workload.smashed_bits[points] / up
        downlink_s = workload.gradient_bits[points] / down
    return ChainLatency(
        device_s=workload.device_work_flops[points] / resources.device_flops + resources.device_overhead_s,
        uplink_s=uplink_s,
        downlink_s=downlink_s,
        edge_s=edge_s,
        cloud_link_s=cloud_link_s(workload, resources),
        iterations_per_epoch=workload.iterations_per_epoch,
    )


def cloud_link_s(workload: ChainWorkload, resources: ChainResources) -> float:
    """(17)."""
    return resources.num_devices * (workload.cloud_up_bits + workload.cloud_down_bits) / resources.cloud_bps


def link_rates_bps(resources: ChainResources, subcarriers: ArrayLike) -> tuple[Float, Float]:
    """(13) and (14), or the links' own rates if they have any: bits a second up and down.

    Parameters
    ----------
    resources
        Gains and powers.
    subcarriers
        beta. The paper allows 0, with which a rate is 0 and the iteration never ends. Shape ``[N]`` or ``[Q, N]``.

    Raises
    ------
    ConfigError
        If one is negative.
    """
    beta = np.asarray(subcarriers, dtype=np.float64)
    if not (np.isfinite(beta).all() and (beta >= 0).all()):
        raise ConfigError(f"`subcarriers` is {beta}; expected finite numbers of at least 0.")
    if resources.uplink_bps is not None and resources.downlink_bps is not None:
        shape = np.broadcast_shapes(beta.shape, resources.uplink_bps.shape)
        return np.broadcast_to(resources.uplink_bps, shape), np.broadcast_to(resources.downlink_bps, shape)
    up, down = _snr(resources)
    return _rates(resources, up, down, beta)


def rates_bps(resources: ChainResources) -> Callable[[Ints, Ints], tuple[Float, Float]]:
    """(13) and (14) for many numbers of subcarriers at once.

    Parameters
    ----------
    resources
        With an axis of draws.

    Returns
    -------
    Callable
        From draws, shape ``[I]``, and subcarriers of at least 1, shape ``[I, N, any]``, to bits a second up and down.
    """
    if resources.uplink_bps is not None and resources.downlink_bps is not None:
        both = resources.uplink_bps[:, :, None], resources.downlink_bps[:, :, None]

        def given(draws: Ints, subcarriers: Ints) -> tuple[Float, Float]:
            shape = np.broadcast_shapes(both[0][draws].shape, np.shape(subcarriers))
            up, down = (np.broadcast_to(rate[draws], shape) for rate in both)
            return up, down

        return given
    up_snr, down_snr = (snr[:, :, None] for snr in _snr(resources))
    return lambda draws, subcarriers: _rates(resources, up_snr[draws], down_snr[draws], subcarriers)


def handover_s(
    workload: ChainWorkload,
    resources: ChainResources,
    *,
    old: ArrayLike,
    new: ArrayLike,
    subcarriers: ArrayLike,
) -> Float:
    """(18): only the layers between the old and the new split point change hands.

    Parameters
    ----------
    workload, resources
        Sizes of layers, and the channel at the round's start.
    old, new
        Split points. A device that joins has its whole encoder: its old one is L. Shape ``[N]``.
    subcarriers
        beta at the round's start. Shape ``[N]``.
    """
    points = check_split_points(new, workload.num_layers, resources.num_devices) - 1
    table = handover_table_s(workload, resources, old=old, subcarriers=subcarriers)
    return np.asarray(np.take_along_axis(table, np.broadcast_to(points, table.shape[:-1])[..., None], axis=-1)[..., 0])


def handover_table_s(
    workload: ChainWorkload, resources: ChainResources, *, old: ArrayLike, subcarriers: ArrayLike | None = None
) -> Float:
    """(18) for every new split point ``1 .. L``. Shape ``[..., N, L]``.

    Parameters as in `handover_s`; without `subcarriers` every device has an equal part of them, at least one.
    """
    before: Ints = check_split_points(old, workload.num_layers, resources.num_devices)
    if subcarriers is None:
        each = max(resources.num_subcarriers // resources.num_devices, 1)
        subcarriers = np.full(resources.num_devices, each)
    up, down = link_rates_bps(resources, subcarriers)
    ends = np.cumsum(workload.layer_bits)
    bits = ends - ends[before - 1][..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bits > 0, bits / down[..., None], np.where(bits < 0, -bits / up[..., None], 0.0))


def _snr(resources: ChainResources) -> tuple[Float, Float]:
    """Signal over noise, if all the power went into one subcarrier."""
    noise_w = resources.noise_w_per_hz * resources.subcarrier_hz
    return (
        resources.channel_gain * resources.device_power_w / noise_w,
        resources.channel_gain * resources.edge_power_w / noise_w,
    )


def _rates(resources: ChainResources, up_snr: Float, down_snr: Float, subcarriers: Float | Ints) -> tuple[Float, Float]:
    # Of 0 subcarriers the rate is 0, whatever is divided by.
    spread = np.maximum(subcarriers, 1.0)
    bits = resources.subcarrier_hz / np.log(2.0)
    up = subcarriers * bits * np.log1p(up_snr / spread)
    # With the edge's power spread evenly each subcarrier carries the same, and one logarithm will do.
    over = resources.num_subcarriers if resources.shared_edge_power else spread
    return up, np.asarray(subcarriers * (bits * np.log1p(down_snr / over)))
