"""Which devices are alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from flwr_splitkd.costs import DeviceProfile, LinkState
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.errors import ConfigError

__all__ = ["cluster_by_similarity", "similarity_features"]

# Bits a second between which rates are told apart: a link that is down, and one that is free, still have a logarithm.
_LEAST_BPS, _MOST_BPS = 1.0, 1e15


def similarity_features(profiles: Sequence[DeviceProfile], links: Sequence[LinkState]) -> Float:
    """Describe devices by what sets their turns: logarithms of speed, memory and rates.

    Logarithms, since a device of twice the speed differs from one as much as that differs from one of half the speed. Rates
    count from 1 bit/s to 10^15 bit/s. The speed is the nominal one, also of a device that was measured block by block.

    Parameters
    ----------
    profiles, links
        One of each for each device.

    Returns
    -------
    Float
        FLOPs a second, bytes, uplink and downlink bits a second, as natural logarithms. Shape ``[N, 4]``.

    Raises
    ------
    ConfigError
        If there is not one link for each profile.
    """
    if len(profiles) != len(links):
        raise ConfigError(
            f"There are {len(profiles)} profiles and {len(links)} links; expected one link for each profile."
        )
    rows = [
        (profile.flops, profile.memory_bytes, _within(link.uplink_bps), _within(link.downlink_bps))
        for profile, link in zip(profiles, links, strict=True)
    ]
    return np.log(np.asarray(rows, dtype=np.float64).reshape(len(rows), 4))


def cluster_by_similarity(features: ArrayLike, num_clusters: int) -> tuple[int, ...]:
    """Part devices into clusters: agglomerative clustering by Ward's criterion.

    Features are standardised to mean 0 and deviation 1; one that is the same for all counts for nothing. Each device begins
    as its own cluster; those two are joined whose union adds least to the squared distances to the centres, ``n_a n_b / (n_a +
    n_b) |c_a - c_b|^2``, until `num_clusters` are left. Of equals the pair of the first devices is joined, so that the same
    features give the same clusters. O(N^3) for N devices. Ward, "Hierarchical Grouping to Optimize an Objective Function",
    1963.

    Parameters
    ----------
    features
        A row for each device. Shape ``[N, F]``.
    num_clusters
        ``1 .. N``.

    Returns
    -------
    tuple of int
        The cluster of each device, ``0 .. num_clusters - 1``, counted in the order of their first devices. Length ``N``.

    Raises
    ------
    ConfigError
        If `features` is not such a matrix of finite numbers, or `num_clusters` is out of range.
    """
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
        raise ConfigError(
            f"`features` has shape {rows.shape}; expected a row of finite numbers for each of at least 1 device."
        )
    if not 1 <= num_clusters <= len(rows):
        raise ConfigError(
            f"`num_clusters` is {num_clusters}; expected 1..{len(rows)}, since there are {len(rows)} devices."
        )
    centres, sizes = _standardised(rows), np.ones(len(rows))
    members = [[device] for device in range(len(rows))]
    squares = ((centres[:, None] - centres[None]) ** 2).sum(axis=2) / 2
    added = np.where(np.tri(len(rows), dtype=bool), np.inf, squares)
    for _ in range(len(rows) - num_clusters):
        a, b = (int(index) for index in np.unravel_index(np.argmin(added), added.shape))  # a < b
        centres[a] = (sizes[a] * centres[a] + sizes[b] * centres[b]) / (sizes[a] + sizes[b])
        sizes[a] += sizes[b]
        members[a] += members[b]
        members[b] = []
        added[b], added[:, b] = np.inf, np.inf
        distances = sizes[a] * sizes / (sizes[a] + sizes) * ((centres - centres[a]) ** 2).sum(axis=1)
        added[a, a + 1 :] = np.where(np.isinf(added[a, a + 1 :]), np.inf, distances[a + 1 :])
        added[:a, a] = np.where(np.isinf(added[:a, a]), np.inf, distances[:a])
    labels = [0] * len(rows)
    for label, cluster in enumerate(cluster for cluster in members if cluster):
        for device in cluster:
            labels[device] = label
    return tuple(labels)


def _standardised(rows: Float) -> Float:
    centred = rows - rows.mean(axis=0)
    spread = centred.std(axis=0)
    # What is the same for all but for rounding must not be blown up.
    varies = spread > 1e-12 * np.abs(rows).max(axis=0)
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(centred), where=varies), dtype=np.float64)


def _within(rate_bps: float) -> float:
    return min(max(rate_bps, _LEAST_BPS), _MOST_BPS)
