"""Metrics of several devices as one."""

from __future__ import annotations

import math
import re

import pytest
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.strategies.metrics import scalar_metrics, weighted_mean
from flwr_splitkd.strategies.result import TurnRecord, perplexity


def _reply(**metrics: float | list[float]) -> RecordDict:
    record = MetricRecord({name.replace("_", "-"): value for name, value in metrics.items()})
    return RecordDict({"arrays": ArrayRecord(), "metrics": record})


def test_weighted_by_examples() -> None:
    mean = weighted_mean([_reply(num_examples=30, loss=1.0), _reply(num_examples=10, loss=3.0)], "num-examples")
    assert dict(mean) == {"loss": 1.5}


def test_lists_are_left_out_and_no_reply_is_no_metric() -> None:
    assert dict(weighted_mean([_reply(num_examples=1, loss=2.0, norms=[1.0, 2.0])], "num-examples")) == {"loss": 2.0}
    assert dict(weighted_mean([], "num-examples")) == {}


def test_no_examples_at_all_is_no_division_by_zero() -> None:
    assert dict(weighted_mean([_reply(num_examples=0, loss=2.0)], "num-examples")) == {"loss": 0.0}


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ([_reply(loss=1.0)], "has the metrics ['loss']; expected ['loss', 'num-examples'] in every reply"),
        (
            [_reply(num_examples=1, loss=1.0), _reply(num_examples=1, accuracy=1.0)],
            "has the metrics ['accuracy', 'num-examples']; expected ['loss', 'num-examples']",
        ),
    ],
)
def test_replies_that_do_not_match(replies: list[RecordDict], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        weighted_mean(replies, "num-examples")


def test_scalars_of_nothing() -> None:
    assert scalar_metrics(None) == {}
    assert scalar_metrics(MetricRecord({"a": 1, "b": 2.5, "c": [1.0]})) == {"a": 1.0, "b": 2.5}


def test_perplexity() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(2.0) == math.exp(2.0)
    assert perplexity(1e6) == math.inf


def test_a_turn_that_came_to_nothing_as_json() -> None:
    line = TurnRecord(server_round=2, turn=3, num_turns=5, node_id=4, device="", mode="train", error="why").to_json()
    assert line == {
        "kind": "turn", "server_round": 2, "turn": 3, "node_id": 4, "device": "", "mode": "train", "error": "why",
    }  # fmt: skip
