"""The question answering app's plan: who decides, on which resources, and within which memory."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from tiny_encoders import LAYERS, WIDTH, tiny_encoder
from torch import nn

from flwr_splitkd.costs import MeasuredCell, ModelledCell
from flwr_splitkd.errors import ConfigError
from import_graph import ROOT

pytest.importorskip("peft", reason="the app needs it")


def _slm() -> nn.Module:
    return tiny_encoder("roberta")


@pytest.fixture(autouse=True)
def _app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "apps" / "scct")


def _plan(**keys: Any) -> Any:
    config = importlib.import_module("scct_app.config").read_config({k.replace("_", "-"): v for k, v in keys.items()})
    return importlib.import_module("scct_app.plan").chain_plan(config, _slm)


def test_no_mechanism_has_no_plan() -> None:
    assert _plan() is None
    with pytest.raises(ConfigError, match="`resources` is 'measured' and `mechanism` is 'none'; expected one of SCCTT"):
        _plan(resources="measured")


def test_modelled_resources_reckon_with_the_costed_encoder() -> None:
    plan = _plan(mechanism="SCCTT", cell_edge_flops=3e12, cell_subcarriers=64)
    assert isinstance(plan.cell, ModelledCell)
    assert (plan.cell.edge_flops, plan.cell.num_subcarriers) == (3e12, 64)
    assert plan.workload.smashed_bits[0] > 32 * 8 * 192 * 1024
    assert np.isinf(plan.limits.device_bytes) and np.isinf(plan.limits.edge_bytes)


def test_measured_resources_reckon_with_the_run_s_own() -> None:
    given = {"mechanism": "SCCTT", "resources": "measured", "cell_edge_flops": 3e12, "cell_device_flops": 5e11}
    plan = _plan(**given, device_memory=1.5, edge_memory=4.0)
    assert isinstance(plan.cell, MeasuredCell)
    assert (plan.cell.edge_flops, plan.cell.device_flops, plan.cell.num_subcarriers) == (3e12, 5e11, None)
    assert plan.workload.num_layers == LAYERS
    assert plan.workload.gradient_bits[0] == 32 * 8 * 192 * WIDTH
    assert (float(plan.limits.device_bytes), plan.limits.edge_bytes) == (1.5 * 2**30, 4.0 * 2**30)
    # Both moments change hands with the weights, unless they start anew; of adapters little does.
    weights = 32 * sum(one.numel() for one in _slm().get_submodule("encoder.layer").parameters()) / LAYERS
    assert plan.workload.layer_bits[0] == pytest.approx(3 * weights)
    assert _plan(**given, optimizer_handover="reset").workload.layer_bits[0] == pytest.approx(weights)
    assert 0 < _plan(**given, slm_rank=2).workload.layer_bits[0] < weights
