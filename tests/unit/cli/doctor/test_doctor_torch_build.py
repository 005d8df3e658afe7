"""torch in a process of its own, and what its build means on a machine."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

from flwr_splitkd.cli.doctor.finding import Finding, Status
from flwr_splitkd.cli.doctor.hardware import Hardware
from flwr_splitkd.cli.doctor.torch_build import Gpu, TorchBuild, check_torch, probe_torch

JETSON = Hardware(model="Jetson Orin NX", is_jetson=True, release="R36.4.3")
CARD = Hardware(gpus=("NVIDIA GeForce RTX 4090",))
NO_GPU = Hardware()
ORIN = Gpu(name="Orin", free_bytes=5e9, total_bytes=8e9)


def statuses(findings: Iterable[Finding]) -> dict[str, Status]:
    return {finding.name: finding.status for finding in findings}


def torch_that(folder: Path, does: str) -> list[str]:
    """A package that is called torch."""
    (folder / "torch").mkdir()
    (folder / "torch/__init__.py").write_text(does)
    return [str(folder)]


@pytest.mark.parametrize(
    ("does", "failure"),
    [
        (
            "raise ImportError('libcudart.so.12: cannot open shared object file')",
            "ImportError: libcudart.so.12: cannot",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "ended the process with SIGILL"),
        ("print('hello'); raise SystemExit(0)", "answers 'hello"),
        ("raise SystemExit(3)", "exit code 3"),
        ("import time; time.sleep(60)", "no answer within 0.8 s"),
    ],
)
def test_builds_that_cannot_be_imported_end_a_process_and_not_the_command(
    does: str, failure: str, tmp_path: Path
) -> None:
    build = probe_torch(torch_that(tmp_path, does), limit_s=0.8)
    assert failure in build.failure
    (found,) = check_torch(build, JETSON)
    assert found.status is Status.WRONG and failure in found.seen
    assert "NVIDIA's build for this JetPack (Jetson Linux R36.4.3)" in found.remedy


def test_no_torch_at_all(tmp_path: Path) -> None:
    # Not this environment's, which a new process of this Python finds by itself: one that says what a missing one says.
    build = probe_torch(torch_that(tmp_path, "raise ModuleNotFoundError(\"No module named 'torch'\")"), limit_s=10.0)
    (found,) = check_torch(build, NO_GPU)
    assert "No module named 'torch'" in found.seen and found.remedy.startswith("pip install torch --index-url")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
def test_this_machine_s_torch_computes() -> None:
    build = probe_torch(sys.path, limit_s=120.0)
    assert build.failure == "" and build.products["cpu"] == ""
    assert statuses(check_torch(build, NO_GPU))["product of matrices on cpu"] is Status.OK


def test_a_cpu_build_is_right_without_a_gpu_and_wrong_beside_one() -> None:
    build = TorchBuild(version="2.13.0+cpu", products={"cpu": ""})
    assert statuses(check_torch(build, NO_GPU)) == {
        "torch": Status.OK,
        "GPU of torch": Status.SKIPPED,
        "product of matrices on cpu": Status.OK,
    }
    for hardware, remedy in ((CARD, "this driver's CUDA"), (JETSON, "NVIDIA's build for this JetPack")):
        cuda = {finding.name: finding for finding in check_torch(build, hardware)}["GPU of torch"]
        assert cuda.status is Status.WRONG and f"there is {hardware.gpu}" in cuda.seen
        assert cuda.seen.startswith("torch 2.13.0+cpu is built for CPUs alone") and remedy in cuda.remedy


def test_a_cuda_build_that_finds_no_gpu() -> None:
    # As PyPI's build does on an Orin with JetPack 6.
    build = TorchBuild(version="2.11.0+cu130", built_for="CUDA 13.0", products={"cpu": ""})
    cuda = {finding.name: finding for finding in check_torch(build, JETSON)}["GPU of torch"]
    assert cuda.status is Status.WRONG and "built for CUDA 13.0, finds no GPU" in cuda.seen
    assert "--runtime nvidia" in cuda.remedy and "NVIDIA's build" in cuda.remedy


def test_a_gpu_that_is_found_and_does_not_compute() -> None:
    why = "CUDA error: no kernel image is available for execution on the device"
    build = TorchBuild(version="2.9.0", built_for="CUDA 12.6", gpus=(ORIN,), products={"cpu": "", "cuda:0": why})
    found = {finding.name: finding for finding in check_torch(build, JETSON)}
    assert found["GPU of torch"].seen == "Orin (4.66 GiB free)"
    assert found["product of matrices on cuda:0"].status is Status.WRONG
    assert found["product of matrices on cuda:0"].seen == why
