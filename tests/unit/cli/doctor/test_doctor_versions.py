"""Packages as their metadata say, in folders of distributions that a test writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from flwr_splitkd.cli.doctor.finding import Finding, Status
from flwr_splitkd.cli.doctor.versions import (
    check_extras,
    check_flower,
    check_packages,
    check_python,
    installed_version,
)

OURS = """\
Requires-Python: >=3.10
Requires-Dist: flwr>=1.30
Requires-Dist: torch>=2.6
Requires-Dist: protobuf<7,>=5.29
Requires-Dist: only-before>=2; python_version < '3'
Provides-Extra: report
Requires-Dist: drawing>=3.8; extra == 'report'
Provides-Extra: simulation
Requires-Dist: flwr[simulation]>=1.30; extra == 'simulation'
"""
FLOWER = "Provides-Extra: simulation\nRequires-Dist: ray==2.55.1; extra == 'simulation'\n"


def install(folder: Path, name: str, version: str, metadata: str = "") -> list[str]:
    """Make the metadata of a distribution, as an installer does; the path to look in."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata}")
    return [str(folder)]


@pytest.fixture
def path(tmp_path: Path) -> list[str]:
    install(tmp_path, "flwr", "1.41.0", FLOWER)
    install(tmp_path, "protobuf", "6.33.6")
    return install(tmp_path, "flwr_splitkd", "0.1.0", OURS)


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_what_fits_and_what_a_marker_leaves_out(path: list[str], tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.13.0+cpu")
    found = by_name(check_packages(path))
    assert {name: (one.status, one.seen) for name, one in found.items()} == {
        "flwr": (Status.OK, "1.41.0"),
        "torch": (Status.OK, "2.13.0+cpu"),
        "protobuf": (Status.OK, "6.33.6"),
    }
    assert installed_version("flwr", path) == "1.41.0" and installed_version("ray", path) is None


def test_an_old_flower_a_missing_torch_and_a_protobuf_that_is_too_new(tmp_path: Path) -> None:
    install(tmp_path, "flwr", "1.29.0")
    install(tmp_path, "protobuf", "7.35.0")
    found = by_name(check_packages(install(tmp_path, "flwr_splitkd", "0.1.0", OURS)))
    assert {one.status for one in found.values()} == {Status.WRONG}
    assert (found["flwr"].seen, found["flwr"].expected) == ("1.29.0", ">=1.30")
    assert found["flwr"].remedy == "pip install 'flwr>=1.30'"
    assert (found["protobuf"].seen, found["protobuf"].expected) == ("7.35.0", "<7,>=5.29")
    assert found["torch"].seen == "not installed" and "the build that fits this machine" in found["torch"].remedy


def test_nvidia_s_builds_are_pre_releases_of_what_they_are(path: list[str], tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.6.0a0+ecf3bae40a.nv25.1")
    torch = by_name(check_packages(path))["torch"]
    assert torch.status is Status.WARNING and "pip install --no-deps" in torch.remedy


def test_an_older_one_of_nvidia_s_builds(path: list[str], tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.5.0a0+872d972e41.nv24.8")
    assert by_name(check_packages(path))["torch"].status is Status.WRONG


def test_a_version_that_is_none(path: list[str], tmp_path: Path) -> None:
    install(tmp_path, "torch", "unknown")
    torch = by_name(check_packages(path))["torch"]
    assert (torch.status, torch.seen) == (Status.WRONG, "unknown")


def test_the_package_itself_is_not_installed(tmp_path: Path) -> None:
    (found,) = check_packages([str(tmp_path)])
    assert found.status is Status.WRONG and "pip install ." in found.remedy
    assert check_python("3.11.2", [str(tmp_path)]).status is Status.SKIPPED


@pytest.mark.parametrize(("version", "status"), [("3.10.0", Status.OK), ("3.8.10", Status.WRONG)])
def test_python(version: str, status: Status, path: list[str]) -> None:
    found = check_python(version, path)
    assert (found.status, found.seen, found.expected) == (status, version, ">=3.10")
    assert ("JetPack 5 has 3.8" in found.remedy) == (status is Status.WRONG)


def test_extras_that_the_role_would_use_are_warnings_and_those_asked_for_are_wrong(path: list[str]) -> None:
    found = by_name(check_extras({"report": "figures of runs"}, ["simulation"], path))
    report, simulation = found["extra [report]"], found["extra [simulation]"]
    assert (report.status, report.seen) == (Status.WARNING, "missing: drawing>=3.8")
    assert report.expected == "figures of runs" and "pip install 'flwr_splitkd[report]'" in report.remedy
    # What flwr[simulation] brings, which flwr's own metadata say.
    assert (simulation.status, simulation.seen) == (Status.WRONG, "missing: ray==2.55.1")


def test_extras_that_are_there(path: list[str], tmp_path: Path) -> None:
    install(tmp_path, "drawing", "3.9")
    install(tmp_path, "ray", "2.54.0")
    found = by_name(check_extras({}, ["report", "simulation"], path))
    assert found["extra [report]"].status is Status.OK
    assert found["extra [simulation]"].seen == "missing: ray==2.55.1 (there is 2.54.0)"


def test_an_extra_that_there_is_not(path: list[str]) -> None:
    (found,) = check_extras({"energy": "joules"}, ["telepathy"], path)
    assert found.status is Status.WRONG and found.expected == "one of report, simulation"
    assert "has no such extra" in found.seen


@pytest.mark.parametrize(
    ("ours", "theirs", "status"),
    [
        ("1.41.0", "1.41.3", Status.OK),
        ("1.41.0", "1.41", Status.OK),
        ("1.41.0", "1.30.0", Status.WRONG),
        ("1.41.0", None, Status.SKIPPED),
        (None, "1.41", Status.SKIPPED),
    ],
)
def test_flower_here_and_there(ours: str | None, theirs: str | None, status: Status) -> None:
    found = check_flower(ours, theirs)
    assert found.status is status
    if status is Status.WRONG:
        assert found.seen == "1.41.0 here, 1.30.0 there" and "pip install 'flwr==1.30.*' here" in found.remedy
    if status is Status.SKIPPED:
        assert "--superlink-version X.Y" in found.remedy
