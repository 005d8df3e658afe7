"""Folders: with room, without, and such as cannot be written."""

from __future__ import annotations

from pathlib import Path

from flwr_splitkd.cli.doctor.disk import check_folder
from flwr_splitkd.cli.doctor.finding import Finding, Status


def look(folder: Path, needed_bytes: float = 0.0) -> Finding:
    return check_folder("runs", folder, needed_bytes=needed_bytes, needed_for="commits", remedy="have runs elsewhere.")


def test_a_folder_that_is_there_and_one_that_would_be_made(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert found.status in (Status.OK, Status.WARNING) and found.seen.endswith("GiB free")
    found = look(tmp_path / "a" / "b")
    assert found.seen.endswith(f" in {tmp_path}, where it would be made")
    assert list(tmp_path.iterdir()) == []


def test_too_little_room(tmp_path: Path) -> None:
    found = look(tmp_path, needed_bytes=1e18)
    assert found.status is Status.WRONG and found.expected == "931322574.62 GiB for commits"
    assert found.remedy.startswith("Free ") and found.remedy.endswith("GiB more, or: have runs elsewhere.")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = look(tmp_path / "file" / "runs")
    assert found.status is Status.WRONG and f"{tmp_path}/file cannot be written: Not a directory" in found.seen
    assert found.remedy.endswith("or: have runs elsewhere.")
    found = look(Path("/proc/runs"))  # no file can be made there, not even by root
    assert found.status is Status.WRONG and "/proc cannot be written" in found.seen
