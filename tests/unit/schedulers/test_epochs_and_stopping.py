"""How long a turn lasts, and when a run has reached its aim."""

from __future__ import annotations

import re

import pytest

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers import DeviceView, FixedEpochs, NeverStop, TargetMetric

_DEVICE = DeviceView(node_id=1, name="0", server_round=1, turn=0, num_blocks=8, num_examples=10, num_batches=5)


def test_fixed_epochs() -> None:
    assert FixedEpochs(4).choose(_DEVICE) == 4
    with pytest.raises(ConfigError, match="`local_epochs` is 0; expected at least 1"):
        FixedEpochs(0)


def test_never_stop() -> None:
    assert NeverStop().reason({}) is None


@pytest.mark.parametrize(
    ("policy", "value", "stops"),
    [
        (TargetMetric("perplexity", at_most=5.0), 5.1, False),
        (TargetMetric("perplexity", at_most=5.0), 5.0, True),
        (TargetMetric("perplexity", at_most=5.0), 4.0, True),
        (TargetMetric("accuracy", at_least=0.9), 0.89, False),
        (TargetMetric("accuracy", at_least=0.9), 0.9, True),
        (TargetMetric("loss", at_most=0.0), 0.5, False),
        (TargetMetric("loss", at_most=0.0), float("nan"), False),
    ],
)
def test_target(policy: TargetMetric, value: float, stops: bool) -> None:
    reason = policy.reason({policy.name: value, "other": 0.0})
    assert (reason is not None) == stops
    if reason:
        assert policy.name in reason and f"{value:.4g}" in reason


@pytest.mark.parametrize("bounds", [{}, {"at_most": 1.0, "at_least": 0.5}])
def test_exactly_one_target(bounds: dict[str, float]) -> None:
    message = f"at_most={bounds.get('at_most')} and at_least={bounds.get('at_least')}; expected exactly one"
    with pytest.raises(ConfigError, match=re.escape(message)):
        TargetMetric("loss", **bounds)


def test_a_target_that_nobody_reports() -> None:
    with pytest.raises(ConfigError, match="The target metric is 'bleu'; expected one of \\['accuracy', 'loss'\\]"):
        TargetMetric("bleu", at_least=1).reason({"loss": 1.0, "accuracy": 0.5})
