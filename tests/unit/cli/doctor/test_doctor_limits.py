"""Open files, and what Flower is told not to install."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from flwr_splitkd.cli.doctor.finding import Status
from flwr_splitkd.cli.doctor.hardware import Hardware
from flwr_splitkd.cli.doctor.limits import check_open_files, check_programs, check_runtime_installation

VARIABLE = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"


@pytest.mark.parametrize(("soft", "status"), [(1024, Status.OK), (math.inf, Status.OK), (256, Status.WARNING)])
def test_open_files(soft: float, status: Status) -> None:
    found = check_open_files(soft)
    assert (found.status, found.seen) == (status, f"{soft:.0f}")
    assert found.remedy.startswith("ulimit -n 1024") == (status is Status.WARNING)


@pytest.mark.parametrize("environment", [{}, {VARIABLE: "true"}])
def test_an_installation_at_run_time_is_wrong_on_a_jetson_alone(environment: dict[str, str]) -> None:
    board = check_runtime_installation(environment, Hardware(is_jetson=True), has_flower=True)
    assert board.status is Status.WRONG and f"export {VARIABLE}=1" in board.remedy and "NVIDIA's torch" in board.remedy
    server = check_runtime_installation(environment, Hardware(), has_flower=True)
    assert server.status is Status.WARNING and f"export {VARIABLE}=1" in server.remedy


def test_where_it_is_told_and_where_there_is_no_flower() -> None:
    assert check_runtime_installation({VARIABLE: "1"}, Hardware(is_jetson=True), has_flower=True).status is Status.OK
    assert check_runtime_installation({}, Hardware(), has_flower=False).status is Status.SKIPPED


@pytest.mark.parametrize(("role", "app"), [("device", "flwr-clientapp"), ("edge", "flwr-serverapp")])
def test_what_flower_starts_by_name_must_be_this_environments(role: str, app: str, tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        for name in ("flower-superexec", app):
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
    assert [one.status for one in check_programs(role, f"{own}:{other}", own)] == [Status.OK, Status.OK]
    for search, seen in ((f"{other}:{own}", other / app), (str(tmp_path), "not found")):
        superexec, started = check_programs(role, search, own)
        assert (superexec.status, started.status, started.seen) == (Status.WARNING, Status.WARNING, str(seen))
        assert f"{own / app}, which Flower starts" in started.expected
        assert f"export PATH={own}:$PATH" in started.remedy
    (tmp_path / "link").symlink_to(own)
    assert [one.status for one in check_programs(role, str(tmp_path / "link"), own)] == [Status.OK, Status.OK]


def test_the_cloud_starts_no_program_of_flowers() -> None:
    assert list(check_programs("cloud", "", Path("/opt"))) == []
