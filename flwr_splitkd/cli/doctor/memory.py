"""Free memory of the machine and of its GPU against what the role's part of the models takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flwr_splitkd.cli.doctor.finding import Finding, gib, ok, skipped, warning, wrong
from flwr_splitkd.cli.doctor.hardware import Hardware
from flwr_splitkd.cli.doctor.needs import Need
from flwr_splitkd.cli.doctor.torch_build import TorchBuild

__all__ = ["Memory", "check_memory", "read_memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The machine's memory at this moment.

    Parameters
    ----------
    available_bytes
        What new processes can have without swapping, within the control group's bound.
    total_bytes
        All of it.
    limit
        What bounds it, if not the machine: the control group; empty otherwise.
    swap_bytes
        Free swap on disks.
    zram_bytes
        Swap in compressed memory, all of it: it takes the memory that it gives.
    """

    available_bytes: float
    total_bytes: float
    limit: str = ""
    swap_bytes: float = 0.0
    zram_bytes: float = 0.0


def read_memory(root: Path) -> Memory | None:
    """Read Linux's ``/proc/meminfo`` and ``/proc/swaps``, and the bound of the control group (version 2); elsewhere ask psutil.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` lie.

    Returns
    -------
    memory
        None if neither tells.
    """
    lines = (line.split() for line in _read(root / "proc/meminfo").splitlines())
    told = {words[0].rstrip(":"): 1024.0 * int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
    if "MemAvailable" not in told:
        return _ask_psutil() if root == Path("/") else None
    available, limit = told["MemAvailable"], ""
    group = root / "sys/fs/cgroup"
    bound, used = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
    if bound.isdecimal() and used.isdecimal():
        # Pages of files that nobody uses just now are given back when memory is wanted.
        caches = [
            line.split()[1] for line in _read(group / "memory.stat").splitlines() if line.startswith("inactive_file ")
        ]
        left = float(bound) - (float(used) - sum(map(float, caches)))
        if left < available:
            available, limit = max(left, 0.0), f"the control group's {gib(float(bound))}"
    swap = zram = 0.0
    for line in _read(root / "proc/swaps").splitlines()[1:]:
        words = line.split()
        if len(words) >= 4 and "zram" in words[0]:
            zram += 1024.0 * float(words[2])
        elif len(words) >= 4:
            swap += 1024.0 * (float(words[2]) - float(words[3]))
    return Memory(
        available_bytes=available, total_bytes=told["MemTotal"], limit=limit, swap_bytes=swap, zram_bytes=zram
    )


def check_memory(need: Need | None, memory: Memory | None, hardware: Hardware, build: TorchBuild) -> Iterator[Finding]:
    """Whether the role's part of the models fits.

    Parameters
    ----------
    need
        None if no model was named.
    memory
        From `read_memory`.
    hardware
        A Jetson's GPU has the machine's memory.
    build
        Torch computes on its first GPU, if there is one.
    """
    gpu = build.gpus[0] if build.gpus and not hardware.is_jetson else None
    if memory is None:
        yield skipped("memory", "not known: there is no /proc/meminfo, and no psutil to ask")
    else:
        yield _check_machine(need, memory, hardware, has_gpu=gpu is not None)
        yield from _swap(memory)
    if gpu is None:
        return
    name, seen = f"memory of {gpu.name}", f"{gib(gpu.free_bytes)} free of {gib(gpu.total_bytes)}"
    if need is None:
        yield ok(name, seen)
    elif gpu.free_bytes >= need.model_bytes:
        yield ok(name, seen, f"{gib(need.model_bytes)} for {need.what}")
    else:
        process = need.memory_bytes - need.model_bytes
        yield wrong(
            name,
            seen,
            expected=f"{gib(need.model_bytes)} for {need.what}",
            remedy=_joined(need.cuts_within(gpu.free_bytes + process), f"End what else is on the GPU. {need.remedy}"),
        )


def _check_machine(need: Need | None, memory: Memory, hardware: Hardware, *, has_gpu: bool) -> Finding:
    shared = ", which CPU and GPU share" if hardware.is_jetson else ""
    within = f", within {memory.limit}" if memory.limit else ""
    seen = f"{gib(memory.available_bytes)} free of {gib(memory.total_bytes)}{shared}{within}"
    if need is None:
        return ok("memory", f"{seen}; name the models to compare it with what they take")
    needed = need.memory_bytes - (need.model_bytes - need.loading_bytes if has_gpu else 0.0)
    what = "the process, through which models go to the GPU's memory" if has_gpu else need.what
    # RUNTIME_BYTES was measured with a build for CPUs.
    expected = f"{gib(needed)} for {what}{'; CUDA takes some more' if hardware.gpu else ''}"
    if memory.available_bytes >= needed:
        fits = "" if has_gpu else need.cuts_within(memory.available_bytes)
        return ok("memory", f"{seen}; {fits}" if fits else seen, expected)
    fits = "" if has_gpu else need.cuts_within(memory.available_bytes)
    if memory.available_bytes + memory.swap_bytes >= needed:
        remedy = _joined(fits, f"It fits with swap alone, and is slow then. End what else runs. {need.remedy}")
        return warning("memory", seen, expected=expected, remedy=remedy)
    return wrong("memory", seen, expected=expected, remedy=_joined(fits, f"End what else runs. {need.remedy}"))


def _swap(memory: Memory) -> Iterator[Finding]:
    if memory.swap_bytes:
        yield ok("swap", f"{gib(memory.swap_bytes)} free; training that needs it is slow")
    if memory.zram_bytes:
        yield ok(
            "zram", f"{gib(memory.zram_bytes)}; not counted, since it is memory itself, and weights compress badly"
        )


def _ask_psutil() -> Memory | None:
    try:
        import psutil
    except ImportError:
        return None
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return Memory(available_bytes=float(memory.available), total_bytes=float(memory.total), swap_bytes=float(swap.free))


def _joined(fits: str, rest: str) -> str:
    return f"{fits[0].upper()}{fits[1:]}. {rest}" if fits else rest


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
