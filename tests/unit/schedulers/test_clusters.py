"""Which devices are alike: features, and clusters of them."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest

from flwr_splitkd.costs import GENERIC_DEVICE, TABLE_II_DEVICES, LinkState
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers import cluster_by_similarity, similarity_features

LINK = LinkState(uplink_bps=1e7, downlink_bps=2e7)


def _squares(rows: np.ndarray, labels: tuple[int, ...]) -> float:
    """Squared distances to the clusters' centres, which Ward's criterion keeps small."""
    return sum(float(((part - part.mean(axis=0)) ** 2).sum()) for part in _parts(rows, labels))


def _parts(rows: np.ndarray, labels: tuple[int, ...]) -> list[np.ndarray]:
    return [rows[np.array(labels) == label] for label in sorted(set(labels))]


def _slow_ward(rows: np.ndarray, num_clusters: int) -> set[frozenset[int]]:
    """Join the two whose union adds least, by the definition."""
    clusters = [frozenset([k]) for k in range(len(rows))]

    def spread(cluster: frozenset[int]) -> float:
        part = rows[sorted(cluster)]
        return float(((part - part.mean(axis=0)) ** 2).sum())

    while len(clusters) > num_clusters:
        pairs = [(a, b) for a in clusters for b in clusters if min(a) < min(b)]
        a, b = min(pairs, key=lambda pair: spread(pair[0] | pair[1]) - spread(pair[0]) - spread(pair[1]))
        clusters = [cluster for cluster in clusters if cluster not in (a, b)] + [a | b]
    return set(clusters)


def test_features_are_logarithms_of_speed_memory_and_rates() -> None:
    (row,) = similarity_features([GENERIC_DEVICE], [LINK])
    expected = [GENERIC_DEVICE.flops, GENERIC_DEVICE.memory_bytes, 1e7, 2e7]
    assert np.exp(row).tolist() == pytest.approx(expected)
    assert similarity_features([], []).shape == (0, 4)


def test_a_link_that_is_down_or_free_has_features_too() -> None:
    links = [LinkState(uplink_bps=0, downlink_bps=math.inf), LINK]
    features = similarity_features([GENERIC_DEVICE] * 2, links)
    assert np.isfinite(features).all()
    assert features[0, 2] == 0 and features[0, 3] > features[1, 3]


def test_one_link_for_each_profile() -> None:
    with pytest.raises(ConfigError, match="There are 2 profiles and 1 links; expected one link"):
        similarity_features([GENERIC_DEVICE] * 2, [LINK])


def test_the_kinds_of_table_ii_are_found() -> None:
    features = similarity_features(TABLE_II_DEVICES, [LINK] * 10)
    assert cluster_by_similarity(features, 3) == (0, 0, 0, 0, 1, 1, 1, 1, 2, 2)


def test_links_part_devices_that_are_alike() -> None:
    far = LinkState(uplink_bps=1e4, downlink_bps=1e4)
    features = similarity_features([GENERIC_DEVICE] * 4, [LINK, far, LINK, far])
    assert cluster_by_similarity(features, 2) == (0, 1, 0, 1)


@pytest.mark.parametrize(("seed", "num_clusters"), list(product(range(6), [1, 2, 4, 9, 10])))
def test_the_same_clusters_as_by_the_definition(seed: int, num_clusters: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(10, 3)) * [1, 10, 0.1] + [0, 5, 100]
    labels = cluster_by_similarity(rows, num_clusters)
    found = {frozenset(np.flatnonzero(np.array(labels) == k).tolist()) for k in range(num_clusters)}
    assert found == _slow_ward((rows - rows.mean(axis=0)) / rows.std(axis=0), num_clusters)
    assert list(dict.fromkeys(labels)) == list(range(num_clusters))  # counted in the order of their first devices


def test_no_feature_weighs_more_for_its_unit() -> None:
    rows = np.random.default_rng(3).normal(size=(12, 2))
    scaled = cluster_by_similarity(rows * [1e9, 1e-9] + [3e9, 7], 4)
    assert scaled == cluster_by_similarity(rows, 4)
    constant = np.column_stack([rows, np.resize([0.3, 0.1 + 0.2], 12)])  # the same but for rounding
    assert cluster_by_similarity(constant, 4) == scaled


def test_clear_groups_are_found_and_shuffling_renames_them_only() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 8)
    rows = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])[truth] + rng.normal(size=(32, 2))
    assert cluster_by_similarity(rows, 4) == tuple(truth.tolist())
    mixed = rng.permutation(32)
    labels = cluster_by_similarity(rows[mixed], 4)
    assert len({(int(truth[k]), label) for k, label in zip(mixed, labels, strict=True)}) == 4


def test_more_clusters_are_tighter() -> None:
    rows = np.random.default_rng(5).normal(size=(20, 2))
    spreads = [_squares(rows, cluster_by_similarity(rows, n)) for n in range(1, 21)]
    assert all(after < before for before, after in pairwise(spreads))
    assert spreads[-1] == 0


def test_devices_that_are_all_the_same() -> None:
    assert cluster_by_similarity(np.ones((4, 3)), 2) == (0, 0, 0, 1)


@pytest.mark.parametrize(
    ("features", "num_clusters", "message"),
    [
        (np.ones((3, 2)), 0, "`num_clusters` is 0; expected 1..3, since there are 3 devices"),
        (np.ones((3, 2)), 4, "`num_clusters` is 4; expected 1..3, since there are 3 devices"),
        (np.ones(3), 1, "`features` has shape (3,); expected a row of finite numbers"),
        (np.ones((0, 2)), 1, "`features` has shape (0, 2); expected a row"),
        (np.full((2, 2), np.nan), 1, "`features` has shape (2, 2); expected a row of finite numbers"),
    ],
)
def test_what_cannot_be_clustered(features: np.ndarray, num_clusters: int, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        cluster_by_similarity(features, num_clusters)


def test_the_input_is_left_as_it_was() -> None:
    features = similarity_features(
        [GENERIC_DEVICE, replace(GENERIC_DEVICE, cores=1), GENERIC_DEVICE], [LINK, LINK, LINK]
    )
    before = features.copy()
    cluster_by_similarity(features, 2)
    assert (features == before).all()
