"""Whether torch is here, is the build for this machine, and computes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flwr_splitkd.cli.doctor.finding import Finding, gib, ok, skipped, wrong
from flwr_splitkd.cli.doctor.hardware import Hardware

__all__ = ["Gpu", "TorchBuild", "check_torch", "probe_torch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU that torch computes on, and its memory."""

    name: str
    free_bytes: float
    total_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBuild:
    """What torch says of itself.

    Parameters
    ----------
    version
        Such as ``"2.13.0+cpu"``; empty if it cannot be imported.
    built_for
        Such as ``"CUDA 12.6"``; empty if for CPUs alone.
    gpus
        That it can use.
    products
        Of each device, why a product of matrices failed; empty if it is right.
    failure
        Why it cannot be imported; empty if it can.
    """

    version: str = ""
    built_for: str = ""
    gpus: tuple[Gpu, ...] = ()
    products: Mapping[str, str] = field(default_factory=dict)
    failure: str = ""


def probe_torch(path: Sequence[str], *, limit_s: float) -> TorchBuild:
    """Ask torch, in a process of its own.

    Parameters
    ----------
    path
        Where that process looks for packages, such as ``sys.path``.
    limit_s
        Seconds after which that process is killed.
    """
    # Not from the working directory, where anything may be called torch.py.
    folders = os.pathsep.join(str(Path(folder).absolute()) for folder in path if folder)
    program = str(Path(__file__).with_name("torch_probe.py"))
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')", program],
            cwd="/",
            env={**os.environ, "PYTHONPATH": folders},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return TorchBuild(failure=f"no answer within {limit_s:g} s")
    except OSError as error:
        return TorchBuild(failure=f"no process to import it in could be started: {error}")
    if done.returncode:
        return TorchBuild(failure=_why(done.returncode, done.stderr))
    try:
        told = json.loads(done.stdout.splitlines()[-1])
        return TorchBuild(
            version=told["version"],
            built_for=told["built_for"],
            gpus=tuple(Gpu(**gpu) for gpu in told["gpus"]),
            products=told["products"],
        )
    except (ValueError, IndexError, KeyError, TypeError):
        return TorchBuild(failure=f"what calls itself torch answers {done.stdout[-200:]!r}")


def check_torch(build: TorchBuild, hardware: Hardware) -> Iterator[Finding]:
    """Whether the build fits the machine.

    Parameters
    ----------
    build
        From `probe_torch`.
    hardware
        What the kernel says is there.
    """
    if build.failure:
        yield wrong("torch", build.failure, expected="a torch that can be imported", remedy=_install(hardware))
        return
    yield ok("torch", f"{build.version}, built for {build.built_for or 'CPUs alone'}", "can be imported")
    yield _check_gpu(build, hardware)
    for device, why in build.products.items():
        name = f"product of matrices on {device}"
        if not why:
            yield ok(name, "right")
        else:
            yield wrong(name, why, expected="64 in each place", remedy=_install(hardware))


def _check_gpu(build: TorchBuild, hardware: Hardware) -> Finding:
    name = "GPU of torch"
    if build.gpus:
        names = ", ".join(f"{gpu.name} ({gib(gpu.free_bytes)} free)" for gpu in build.gpus)
        return ok(name, names)
    if not hardware.gpu:
        return skipped(name, "this machine has no GPU of NVIDIA's; torch computes on the CPU")
    if not build.built_for:
        return wrong(
            name,
            f"torch {build.version} is built for CPUs alone, and there is {hardware.gpu}",
            expected="a build for CUDA",
            remedy=_install(hardware),
        )
    return wrong(
        name,
        f"torch {build.version}, built for {build.built_for}, finds no GPU, and there is {hardware.gpu}",
        expected=f"a driver for {build.built_for}, and a process that may use the GPU",
        remedy="In a container give it the GPU (docker run --gpus all, on a Jetson --runtime nvidia), and look at "
        f"CUDA_VISIBLE_DEVICES; elsewhere bring the driver up to date, or: {_install(hardware)}",
    )


def _install(hardware: Hardware) -> str:
    if hardware.is_jetson:
        return (
            f"pip uninstall torch, and install NVIDIA's build for this JetPack (Jetson Linux {hardware.release or 'unknown'}): "
            "https://docs.nvidia.com/deeplearning/frameworks/install-pytorch-jetson-platform/"
        )
    if hardware.gpus:
        return "pip uninstall torch, and install the build for this driver's CUDA: https://pytorch.org/get-started/locally/"
    return "pip install torch --index-url https://download.pytorch.org/whl/cpu"


def _why(returncode: int, stderr: str) -> str:
    if returncode < 0:
        try:
            name = signal.Signals(-returncode).name
        except ValueError:
            name = f"signal {-returncode}"
        return f"importing it ended the process with {name}, as a build for another processor does"
    lines = stderr.strip().splitlines()
    return lines[-1] if lines else f"importing it ended the process with exit code {returncode}"
