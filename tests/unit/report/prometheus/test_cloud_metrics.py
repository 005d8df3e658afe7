"""A cloud's readings as metrics, and the endpoint that serves them."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.report.prometheus import CloudEndpoint, MetricsAddress
from flwr_splitkd.tiers.cloud.counters import REQUESTS, STAGES, CloudReading, TaskReading

TASK = TaskReading(
    requests={("train", "answered"): 4, ("train", "failed"): 1},
    stages_s={"queue": 0.5, "train": 2.5},
    num_tokens=40,
    loss=1.25,
    num_steps=3,
    num_commits=2,
    next_step=13,
    uncommitted_steps=1,
    waiting_gradients=2,
)
NEW = TaskReading(
    requests={(name, outcome): 0 for name in REQUESTS for outcome in ("answered", "failed")},
    stages_s=dict.fromkeys(STAGES, 0.0),
    num_tokens=0,
    loss=None,
    num_steps=0,
    num_commits=0,
    next_step=0,
    uncommitted_steps=0,
    waiting_gradients=0,
)
READING = CloudReading(
    tasks={"qa": TASK, "new": NEW},
    sessions={("qa", "north", "train"): 1, ("qa", "south", "train"): 0, ("qa", "south", "ask"): 2},
    faults={("stream", "handshake"): 3, ("session", "lost"): 1},
    received_bytes=1000,
    sent_bytes=2000,
    num_streams=3,
)


@pytest.fixture
def endpoint() -> Iterator[CloudEndpoint]:
    one = CloudEndpoint(MetricsAddress(address="127.0.0.1:0"))
    yield one
    one.close()


def read(endpoint: CloudEndpoint) -> dict[str, float]:
    """Names with labels in the order of the labels' names, and values."""
    with urllib.request.urlopen(f"http://{endpoint.address}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        " ".join([sample.name, *(value for _, value in sorted(sample.labels.items()))]): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("splitkd_cloud")
    }


def test_while_the_model_is_loaded(endpoint: CloudEndpoint) -> None:
    assert read(endpoint) == {"splitkd_cloud_ready": 0}


def test_a_cloud(endpoint: CloudEndpoint) -> None:
    endpoint.watch(lambda: READING)
    found = read(endpoint)
    expected = {
        "splitkd_cloud_ready": 1,
        "splitkd_cloud_sessions north train qa": 1,
        "splitkd_cloud_sessions south train qa": 0,
        "splitkd_cloud_sessions south ask qa": 2,
        "splitkd_cloud_open_streams": 3,
        "splitkd_cloud_bytes_total uplink": 1000,
        "splitkd_cloud_bytes_total downlink": 2000,
        "splitkd_cloud_faults_total handshake stream": 3,
        "splitkd_cloud_faults_total lost session": 1,
        "splitkd_cloud_faults_total non_finite request": 0,
        "splitkd_cloud_requests_total answered train qa": 4,
        "splitkd_cloud_requests_total failed train qa": 1,
        "splitkd_cloud_requests_total failed fetch new": 0,
        "splitkd_cloud_stage_seconds_total train qa": 2.5,
        "splitkd_cloud_stage_seconds_total commit new": 0,
        "splitkd_cloud_steps_total qa": 3,
        "splitkd_cloud_commits_total qa": 2,
        "splitkd_cloud_tokens_total qa": 40,
        "splitkd_cloud_next_step qa": 13,
        "splitkd_cloud_uncommitted_steps qa": 1,
        "splitkd_cloud_waiting_gradients qa": 2,
        "splitkd_cloud_loss qa": 1.25,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert "splitkd_cloud_loss new" not in found and found["splitkd_cloud_steps_total new"] == 0


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ConfigError, match="which cannot be bound"):
            CloudEndpoint(MetricsAddress(address=f"127.0.0.1:{taken.getsockname()[1]}"))
