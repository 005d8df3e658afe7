"""SCCT's settings: what is refused before anybody is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_encoders import tiny_encoder
from torch import nn

from flwr_splitkd import SCCT
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.strategies import SCCTResult, summarize_chain
from flwr_splitkd.strategies.chain.result import DeviceRecord, EpochRecord
from flwr_splitkd.strategies.description import describe
from flwr_splitkd.tiers.cloud import EmbeddedCloud, TaskSettings
from flwr_splitkd.tiers.edge.chain import CloudAccess, DeviceOutcome


def _slm() -> nn.Module:
    return tiny_encoder("roberta")


ACCESS = CloudAccess(address="127.0.0.1:1", edge="e", token=b"a secret of many bytes", task="questions")
CLOUD = EmbeddedCloud(llm=_slm, tasks={"a": TaskSettings(slm_width=8), "b": TaskSettings(slm_width=8)})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fraction_train": 1.5}, r"`fraction_train` is 1.5; expected 0 to 1"),
        ({"quorum": 0.0}, r"`quorum` is 0.0; expected above 0"),
        ({"straggler_timeout_s": -1.0}, r"`straggler_timeout_s` is -1.0; expected 0 or more"),
        ({"num_epochs": 0}, r"`num_epochs` is 0; expected at least 1"),
        ({"iterations_per_epoch": 0}, r"`num_iterations` is 0; expected at least 1"),
        ({"max_grad_norm": 0.0}, r"`max_grad_norm` is 0.0; expected more than 0"),
        ({"optimizer_handover": "device"}, r"`optimizer_handover` is 'device'; expected 'full' or 'reset'"),
        ({"module_start": "new"}, r"`module_start` is 'new'; expected 'cloud' or 'fresh'"),
        ({"run_folder": "a", "resume": "b"}, r"expected one of them"),
        ({"task": "other"}, r"`task` is 'other' and `cloud` names 'questions'"),
        ({"cloud": CLOUD}, r"`task` is None; expected one of \['a', 'b'\]"),
        ({"cloud": CLOUD, "task": "c"}, r"`task` is 'c'; expected one of"),
        ({"grace_period_s": -1.0}, r"`grace_period_s` is -1.0"),
        ({"split_point": 0}, r"is 0; expected"),
    ],
)
def test_what_is_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SCCT(**{"slm": _slm, "cloud": ACCESS, **settings})


def test_the_secret_is_in_no_description() -> None:
    strategy = SCCT(slm=_slm, cloud=ACCESS)
    told = str(strategy._settings()) + repr(ACCESS)
    assert "a secret" not in told and "questions" in told
    assert "secret" not in str(describe(strategy.setup))


def test_a_runs_tables(tmp_path: Path) -> None:
    outcome = DeviceOutcome(
        split_point=2,
        num_steps=4,
        num_examples=8,
        num_tokens=16,
        num_missed=1,
        loss=1.25,
        reference_loss=None,
        left="battery",
        duration_s=2.0,
        edge_s=0.5,
        device_s=1.0,
        num_resumed=0,
        uplink_bytes=1 << 20,
        downlink_bytes=2 << 20,
        uplink_handover_bytes=1 << 19,
        downlink_handover_bytes=1 << 20,
    )
    epoch = EpochRecord(
        server_round=1,
        epoch=1,
        num_iterations=4,
        loss=1.25,
        reference_loss=2.5,
        seconds=8.0,
        num_missed=1,
        module_step=4,
        learning_rate=1e-3,
        grad_norm=0.5,
    )
    result = SCCTResult(
        devices=[
            DeviceRecord(server_round=1, node_id=5, device="0", mode="train", outcome=outcome),
            DeviceRecord(server_round=1, node_id=6, device="1", mode="train", error="it was lost"),
        ],
        epochs=[epoch],
        run_folder=tmp_path,
    )
    text = summarize_chain(result, {"majority answer": {"f1": 7.5}})
    assert "left" in text and "1.2500" in text and "2.5000" in text and str(tmp_path) in text
    assert result.devices[1].to_json()["error"] == "it was lost"
    assert result.devices[0].to_json()["split_point"] == 2 and epoch.to_json()["kind"] == "epoch"
