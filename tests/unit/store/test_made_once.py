"""Folders that are made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from flwr_splitkd.store.made_once import made_once


class Maker:
    def __init__(self, content: str = "weights") -> None:
        self.calls = 0
        self.content = content

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "model.bin").write_text(self.content)


def test_made_once_for_each_description(tmp_path: Path) -> None:
    make = Maker()
    first = made_once("model", {"steps": 1, "width": 2}, make, root=tmp_path)
    assert first == made_once("model", {"width": 2, "steps": 1}, make, root=tmp_path)
    assert (first / "model.bin").read_text() == "weights"
    assert make.calls == 1
    assert made_once("model", {"steps": 2}, make, root=tmp_path) != first
    assert made_once("other", {"steps": 1, "width": 2}, make, root=tmp_path) != first
    assert make.calls == 3
    assert len(list(tmp_path.iterdir())) == 3, "something was left beside the folders"


def test_the_cache_is_the_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    assert made_once("model", {}, Maker()).parent == tmp_path / "cache"


@pytest.mark.parametrize(
    ("file", "content"),
    [("model.bin", "short"), ("model.bin", None), ("recipe.json", "{"), ("recipe.json", "[]"), ("recipe.json", None)],
)
def test_what_is_damaged_is_made_again(tmp_path: Path, file: str, content: str | None) -> None:
    warnings: list[str] = []
    make = Maker()
    folder = made_once("model", {"steps": 1}, make, root=tmp_path, warn=warnings.append)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    assert made_once("model", {"steps": 1}, make, root=tmp_path, warn=warnings.append) == folder
    assert (folder / "model.bin").read_text() == "weights"
    assert make.calls == 2
    assert warnings == [f"the cached model in {folder} is damaged; it is made again"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("out of power")

    with pytest.raises(RuntimeError, match="out of power"):
        made_once("model", {}, fail, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_process_was_faster(tmp_path: Path) -> None:
    def slow(folder: Path) -> None:
        made_once("model", {}, Maker("the other's"), root=tmp_path)
        (folder / "model.bin").write_text("mine")

    folder = made_once("model", {}, slow, root=tmp_path)
    assert (folder / "model.bin").read_text() == "the other's"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
