"""The device's cache: the newest version of each unit, and never a damaged one."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flwr_splitkd.errors import StoreError
from flwr_splitkd.store import DeviceCache, tensor_file


def _unit(value: float) -> dict[str, Tensor]:
    return {"weight/w": torch.full((8,), value)}


def test_the_newest_version_of_each_unit(tmp_path: Path) -> None:
    cache = DeviceCache(tmp_path / "node" / "model")
    assert cache.versions() == {}
    cache.put("stem", "v1", _unit(1))
    cache.put("blocks.0", "v1", _unit(2))
    cache.put("blocks.0", "v2", _unit(3))
    cache.put("blocks.01", "v9", _unit(4))
    again = DeviceCache(tmp_path / "node" / "model")
    assert again.versions() == {"stem": "v1", "blocks.0": "v2", "blocks.01": "v9"}
    assert torch.equal(again.get("blocks.0", "v2")["weight/w"], torch.full((8,), 3.0))
    with pytest.raises(StoreError, match="blocks.0@v1.safetensors cannot be read"):
        again.get("blocks.0", "v1")


def test_a_parameter_of_its_own(tmp_path: Path) -> None:
    cache = DeviceCache(tmp_path)
    cache.put("moments.model.layers.0.mlp.up_proj.weight", "own", {"exp_avg": torch.ones(2), "step": torch.tensor(3.0)})
    cache.put("moments.model.layers.0.mlp.up_proj.weight", "own", {"exp_avg": torch.zeros(2)})
    assert cache.versions() == {"moments.model.layers.0.mlp.up_proj.weight": "own"}
    assert list(cache.get("moments.model.layers.0.mlp.up_proj.weight", "own")) == ["exp_avg"]


@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied"])
def test_a_damaged_file_is_refused_and_removed(tmp_path: Path, damage: str) -> None:
    cache = DeviceCache(tmp_path)
    cache.put("stem", "v1", _unit(1))
    path = tmp_path / "stem@v1.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[-1] ^= 1
    path.write_bytes({"truncated": content[:-3], "altered": content, "emptied": b""}[damage])
    with pytest.raises(StoreError, match="stem@v1.safetensors"):
        cache.get("stem", "v1")
    assert cache.versions() == {}  # the next Hello does not promise it
    cache.put("stem", "v1", _unit(1))
    assert torch.equal(cache.get("stem", "v1")["weight/w"], torch.full((8,), 1.0))


def test_what_a_killed_process_left_is_no_version_and_goes_away(tmp_path: Path) -> None:
    left = tmp_path / ".stem@v7.safetensors.4711.part"
    left.write_bytes(b"half")
    cache = DeviceCache(tmp_path)
    assert cache.versions() == {}
    cache.put("stem", "v1", _unit(1))
    assert not left.exists()
    assert cache.versions() == {"stem": "v1"}


def test_a_full_disk_keeps_the_old_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = DeviceCache(tmp_path)
    cache.put("stem", "v1", _unit(1))
    with monkeypatch.context() as full:
        full.setattr(tensor_file, "save_file", no_space)
        with pytest.raises(StoreError, match="stem@v2.safetensors cannot be written: .*No space left"):
            cache.put("stem", "v2", _unit(2))
    assert cache.versions() == {"stem": "v1"}
    assert torch.equal(cache.get("stem", "v1")["weight/w"], torch.full((8,), 1.0))


@pytest.mark.parametrize(
    ("unit", "version"),
    [
        ("../stem", "v1"),
        ("stem", "../../v1"),
        ("/etc/x", "v1"),
        ("a@b", "v1"),
        ("*", "v1"),
        ("", "v1"),
        (".stem", "v1"),
        ("stem", ""),
    ],
)
def test_a_name_from_the_wire_cannot_leave_the_folder(tmp_path: Path, unit: str, version: str) -> None:
    cache = DeviceCache(tmp_path / "cache")
    for call in (lambda: cache.put(unit, version, _unit(1)), lambda: cache.get(unit, version)):
        with pytest.raises(StoreError, match="A unit in the cache would be named"):
            call()
    assert not list(tmp_path.rglob("*.safetensors"))
