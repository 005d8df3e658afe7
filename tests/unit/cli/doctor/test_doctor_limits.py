"""Open files, and what Flower is told not to install."""

from __future__ import annotations

import math

import pytest

from flwr_splitkd.cli.doctor.finding import Status
from flwr_splitkd.cli.doctor.hardware import Hardware
from flwr_splitkd.cli.doctor.limits import check_open_files, check_runtime_installation

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
