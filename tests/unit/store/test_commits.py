"""The commit log: a turn counts once its manifest is on the disk, and whatever happens the previous one stays."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flwr_splitkd.errors import StoreError
from flwr_splitkd.store import CommitLog, tensor_file


def _unit(value: float, size: int = 8) -> dict[str, Tensor]:
    return {"weight/w": torch.full((size,), value), "moment/exp_avg/w": torch.full((size,), -value)}


def _value(log: CommitLog, unit: str) -> float:
    return float(log.read(unit)["weight/w"][0])


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_commit_read_and_continue(tmp_path: Path) -> None:
    log = CommitLog(tmp_path)
    assert log.latest is None
    first = log.commit({"stem": _unit(1), "head": _unit(2)}, {"turn": 1})
    assert (first.number, first.commit_id, first.info) == (0, "000000", {"turn": 1})
    second = log.commit({"head": _unit(3)}, {"turn": 2})
    assert second.units["stem"] == first.units["stem"] and second.units["head"] != first.units["head"]
    assert (_value(log, "stem"), _value(log, "head")) == (1, 3)
    again = CommitLog(tmp_path)
    assert again.latest == second
    assert torch.equal(again.read("head")["moment/exp_avg/w"], torch.full((8,), -3.0))
    assert again.commit({"stem": _unit(4)}, {}).number == 2


def test_dtypes_and_shapes_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "bf16": torch.randn(3, 5).bfloat16(),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.empty(0, 4),
        "bool": torch.tensor([True, False]),
        "strided": torch.arange(12.0).view(3, 4).T,
        "float64": torch.tensor([1e-300]),
    }
    log = CommitLog(tmp_path)
    log.commit({"stem": tensors}, {})
    got = CommitLog(tmp_path).read("stem")
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name


def test_tied_tensors_of_one_unit(tmp_path: Path) -> None:
    """A masked LM's bias has two names in its state dict, both in the head."""
    weight = torch.arange(4.0)
    log = CommitLog(tmp_path)
    log.commit({"head": {"weight/bias": weight, "weight/decoder.bias": weight, "weight/view": weight[1:]}}, {})
    got = log.read("head")
    assert torch.equal(got["weight/bias"], weight) and torch.equal(got["weight/decoder.bias"], weight)
    assert torch.equal(got["weight/view"], weight[1:])


def test_two_manifests_and_what_they_name_are_kept(tmp_path: Path) -> None:
    log = CommitLog(tmp_path)
    manifests = [log.commit({"stem": _unit(turn), "head": _unit(100)}, {}) for turn in range(5)]
    kept = {f"units/{unit}-{digest}.safetensors" for m in manifests[-2:] for unit, digest in m.units.items()}
    assert set(_names(tmp_path)) == {"manifest-000003.json", "manifest-000004.json"} | kept
    assert len(kept) == 3  # the head is the same in both


def test_the_millionth_commit_is_newer_than_the_one_before(tmp_path: Path) -> None:
    log = CommitLog(tmp_path)
    log.commit({"stem": _unit(1)}, {})
    path = tmp_path / "manifest-000000.json"
    content = json.loads(path.read_text())
    path.unlink()
    (tmp_path / "manifest-999998.json").write_text(json.dumps({**content, "number": 999_998}))
    log = CommitLog(tmp_path)
    for value in (2, 3):
        log.commit({"stem": _unit(value)}, {})
    assert CommitLog(tmp_path).latest == log.latest
    assert log.latest is not None and log.latest.number == 1_000_000
    assert _value(CommitLog(tmp_path), "stem") == 3


def test_an_unknown_unit(tmp_path: Path) -> None:
    log = CommitLog(tmp_path)
    with pytest.raises(StoreError, match="Unit 'stem' is in no commit of .*; expected one of \\[\\]"):
        log.read("stem")
    log.commit({"stem": _unit(1)}, {})
    with pytest.raises(StoreError, match="Unit 'heed' is in no commit of .*; expected one of \\['stem'\\]"):
        log.read("heed")


# ---- crashes


@pytest.fixture
def two_commits(tmp_path: Path) -> Path:
    log = CommitLog(tmp_path)
    log.commit({"stem": _unit(1), "head": _unit(10)}, {"turn": 1})
    log.commit({"stem": _unit(2), "head": _unit(20)}, {"turn": 2})
    return tmp_path


def _unit_file(folder: Path, number: int, unit: str) -> Path:
    manifest = json.loads((folder / f"manifest-{number:06d}.json").read_text())
    return folder / "units" / f"{unit}-{manifest['units'][unit]}.safetensors"


def test_killed_between_the_files_and_the_manifest(two_commits: Path) -> None:
    """The unit files of a third commit are there, whole or half written, and its manifest is not."""
    units = two_commits / "units"
    shutil.copy(_unit_file(two_commits, 1, "stem"), units / f"stem-{'0' * 32}.safetensors")
    (units / f".head-{'1' * 32}.safetensors.4711.part").write_bytes(b"half a fi")
    (two_commits / ".manifest-000002.json.4711.part").write_text('{"format": 1, "num')
    log = CommitLog(two_commits)
    assert log.latest is not None and log.latest.info == {"turn": 2}
    assert (_value(log, "stem"), _value(log, "head")) == (2, 20)
    assert not [name for name in _names(two_commits) if name.endswith(".part")]
    log.commit({"stem": _unit(3)}, {})
    assert f"units/stem-{'0' * 32}.safetensors" not in _names(two_commits)  # nothing is left of it


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"format": 99, "number": 1, "units": {}}', '{"format": 1}']
)
def test_a_damaged_manifest_falls_back_to_the_one_before(two_commits: Path, content: str) -> None:
    (two_commits / "manifest-000001.json").write_text(content)
    log = CommitLog(two_commits)
    assert log.latest is not None and log.latest.info == {"turn": 1}
    assert (_value(log, "stem"), _value(log, "head")) == (1, 10)
    assert log.commit({"stem": _unit(3)}, {"turn": 3}).number == 1
    assert (_value(CommitLog(two_commits), "stem"), _value(CommitLog(two_commits), "head")) == (3, 10)


@pytest.mark.parametrize("damage", ["removed", "truncated", "emptied"])
def test_a_damaged_unit_falls_back_to_the_commit_before(two_commits: Path, damage: str) -> None:
    path = _unit_file(two_commits, 1, "head")
    if damage == "removed":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[:-5] if damage == "truncated" else b"")
    log = CommitLog(two_commits)
    assert log.latest is not None and log.latest.info == {"turn": 1}
    assert (_value(log, "stem"), _value(log, "head")) == (1, 10)


def test_a_damaged_file_is_not_taken_for_the_same_content(two_commits: Path) -> None:
    """Files are named by their content, so an equal unit is not written twice; unless what is there is broken."""
    path = _unit_file(two_commits, 0, "head")
    path.write_bytes(path.read_bytes()[:-5])
    log = CommitLog(two_commits)
    log.commit({"head": _unit(10)}, {})
    assert _value(CommitLog(two_commits), "head") == 10


def test_altered_bytes_are_noticed_when_read(two_commits: Path) -> None:
    path = _unit_file(two_commits, 1, "head")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    log = CommitLog(two_commits)
    assert log.latest is not None and log.latest.number == 0  # the one before is used
    reason = f"{path} has digest [0-9a-f]{{32}}; expected {path.stem.split('-')[1]}: it was altered"
    assert re.match(reason, log.damaged["manifest-000001.json"])
    log = CommitLog(two_commits)
    shutil.copy(path, _unit_file(two_commits, 0, "head"))
    with pytest.raises(StoreError, match="it was altered or half written"):  # and what rots later is noticed when read
        log.read("head")


def test_everything_is_damaged(two_commits: Path) -> None:
    for path in two_commits.glob("manifest-*.json"):
        path.write_text("?")
    log = CommitLog(two_commits)
    assert log.latest is None
    assert log.commit({"stem": _unit(5)}, {}).number == 0


def test_files_reach_the_disk_before_the_manifest_and_each_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, replace = tensor_file._sync, os.replace

    def kind(path: Any) -> str:
        name = Path(path).name
        return "manifest" if "manifest" in name else "unit" if "safetensors" in name else "folder"

    monkeypatch.setattr(tensor_file, "_sync", lambda path: (events.append(f"sync {kind(path)}"), sync(path))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(f"name {kind(b)}"), replace(a, b))[1])
    CommitLog(tmp_path).commit({"stem": _unit(1)}, {})
    assert events == ["sync unit", "name unit", "sync folder", "sync manifest", "name manifest", "sync folder"]


# ---- a full disk


def _no_space(*_args: Any, **_kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["save_file", "_sync"])
def test_no_space_for_a_unit(two_commits: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    log = CommitLog(two_commits)
    latest, names = log.latest, _names(two_commits)
    with monkeypatch.context() as full:
        full.setattr(tensor_file, step, _no_space)
        with pytest.raises(StoreError, match="cannot be written: .*No space left on device.*is untouched"):
            log.commit({"stem": _unit(3)}, {})
    assert log.latest == latest == CommitLog(two_commits).latest
    assert _names(two_commits) == names
    assert log.commit({"stem": _unit(3)}, {}).number == 2


def test_no_space_for_the_manifest(two_commits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = CommitLog(two_commits)
    latest, names = log.latest, _names(two_commits)
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", _no_space)
        with pytest.raises(StoreError, match="manifest-000002.json cannot be written: .*No space left"):
            log.commit({"stem": _unit(3)}, {})
    assert log.latest == latest == CommitLog(two_commits).latest
    assert _names(two_commits) == names  # the units that were written make room again
    assert _value(log, "stem") == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    log = CommitLog(small_disk)
    log.commit({"stem": _unit(1, 20_000)}, {})  # 160 kB
    for value in (2, 3):
        with pytest.raises(StoreError, match="cannot be written: .*No space left on device"):
            log.commit({"stem": _unit(value, 20_000), "head": _unit(value, 200_000)}, {})
        assert _value(CommitLog(small_disk), "stem") == _value(log, "stem") == 1
        assert len(_names(small_disk)) == 2
    log.commit({"stem": _unit(4, 20_000)}, {})
    assert _value(CommitLog(small_disk), "stem") == 4


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = CommitLog(tmp_path / "file" / "commits")
    with pytest.raises(StoreError, match="cannot be written: .*Not a directory"):
        log.commit({"stem": _unit(1)}, {})
    assert log.latest is None


# ---- digests


def test_the_digest_depends_on_everything_but_the_order() -> None:
    one = {"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.int64)}
    base = tensor_file.digest(one)
    assert len(base) == 32 and int(base, 16)
    assert tensor_file.digest(dict(reversed(list(one.items())))) == base
    assert tensor_file.digest({name: tensor.clone() for name, tensor in one.items()}) == base
    strided = torch.stack([one["a"], one["a"]], dim=1)[:, 0]
    assert tensor_file.digest({**one, "a": strided}) == base
    others = [
        {**one, "a": one["a"].view(2, 3)},
        {**one, "a": one["a"].view(torch.int32)},
        {**one, "a": one["a"] + 1},
        {"c": one["a"], "b": one["b"]},
        {"a": one["a"]},
        {**one, "empty": torch.empty(0)},
    ]
    digests = [tensor_file.digest(other) for other in others]
    assert base not in digests and len(set(digests)) == len(digests)


def test_a_log_that_only_reads_leaves_what_another_process_writes(tmp_path: Path) -> None:
    CommitLog(tmp_path).commit({"a": {"x": torch.ones(2)}}, {"turn": 1})
    half_written = tmp_path / "units" / ".b.safetensors.1.part"
    half_written.write_bytes(b"...")
    log = CommitLog(tmp_path, reads_only=True)
    assert half_written.exists() and torch.equal(log.read("a")["x"], torch.ones(2))
    with pytest.raises(StoreError, match="was opened with `reads_only`; expected no commit"):
        log.commit({"a": {"x": torch.zeros(2)}}, {})
    assert CommitLog(tmp_path).latest == log.latest and not half_written.exists()
