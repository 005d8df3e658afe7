"""The encoder on a device's disk: first weights, the backup, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_encoders import tiny_encoder
from torch import nn

from flwr_splitkd.errors import StoreError
from flwr_splitkd.models import PretrainedModel, build_skeleton
from flwr_splitkd.split import find_layout
from flwr_splitkd.tiers.device.chain import OwnEncoder


def _build() -> nn.Module:
    return tiny_encoder("roberta")


def _open(folder: Path) -> OwnEncoder:
    skeleton = build_skeleton(_build)
    return OwnEncoder(folder, skeleton, find_layout(skeleton), _build)


def test_it_begins_with_the_builders_weights_by_unit(tmp_path: Path) -> None:
    own, whole = _open(tmp_path), _build().state_dict()
    held = {name.removeprefix("weight/"): t for unit in own.versions for name, t in own.read(unit).items()}
    assert set(held) == set(whole) and all(torch.equal(held[name], whole[name]) for name in whole)
    assert own.info == {"next_step": 0, "server_round": 0}


def test_a_refreshed_backup_is_what_the_next_process_finds(tmp_path: Path) -> None:
    own = _open(tmp_path)
    before = own.versions
    unit = {name: tensor + 1 for name, tensor in own.read("blocks.1").items()}
    own.refresh({"blocks.1": unit}, {"next_step": 5, "server_round": 1})
    again = _open(tmp_path)
    assert again.info == {"next_step": 5, "server_round": 1, "run": ""}
    assert {name for name in before if again.versions[name] != before[name]} == {"blocks.1"}
    assert all(torch.equal(again.read("blocks.1")[name], tensor) for name, tensor in unit.items())


def _train(own: OwnEncoder, server_round: int, by: float) -> None:
    unit = {name: tensor + by for name, tensor in own.read("blocks.1").items()}
    own.refresh({"blocks.1": unit}, {"next_step": 5 * server_round, "server_round": server_round})


def test_a_round_that_takes_place_again_begins_where_it_did(tmp_path: Path) -> None:
    """Twice, even: what was undone pushes nothing out that is still needed."""
    own = _open(tmp_path)
    assert not own.begin("run", 1)
    _train(own, 1, 1.0)
    after_one = own.versions
    for by in (2.0, 3.0):
        own = _open(tmp_path)
        assert own.begin("run", 2) == (by == 3.0)
        assert own.versions == after_one and own.info["next_step"] == 5
        _train(own, 2, by)
    after_two = own.versions
    again = _open(tmp_path)
    assert not again.begin("run", 3) and again.versions == after_two
    with pytest.raises(StoreError, match=r"is that of round 2 of run 'run'; expected one from before round 1"):
        again.begin("run", 1)


def test_rounds_of_another_run_lie_before(tmp_path: Path) -> None:
    """A folder of the user's own goes on from run to run."""
    own = _open(tmp_path)
    own.begin("first", 7)
    _train(own, 7, 1.0)
    kept = own.versions
    assert not own.begin("second", 1) and own.versions == kept
    _train(own, 1, 2.0)
    assert own.begin("second", 1) and own.versions == kept


def test_a_pretrained_encoder_is_never_whole_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _build()
    whole.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    builder = PretrainedModel(tmp_path / "model", task="encoder")
    skeleton = build_skeleton(builder)
    monkeypatch.setattr(PretrainedModel, "__call__", lambda self: pytest.fail("the whole was built"))
    own = OwnEncoder(tmp_path / "own", skeleton, find_layout(skeleton), builder)
    for unit in own.versions:
        for name, tensor in own.read(unit).items():
            assert torch.equal(tensor, whole.state_dict()[name.removeprefix("weight/")])


def test_another_encoders_folder_is_refused(tmp_path: Path) -> None:
    _open(tmp_path)
    other = build_skeleton(lambda: tiny_encoder("roberta", num_hidden_layers=2))
    with pytest.raises(StoreError, match=r"holds another encoder; .*'blocks.2'.* choose another `encoder_folder`"):
        OwnEncoder(tmp_path, other, find_layout(other), _build)
