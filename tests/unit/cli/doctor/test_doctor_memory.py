"""Memory: what Linux writes about it, and what fits."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flwr_splitkd.cli.doctor.finding import Finding, Status
from flwr_splitkd.cli.doctor.hardware import Hardware
from flwr_splitkd.cli.doctor.memory import Memory, check_memory, read_memory
from flwr_splitkd.cli.doctor.needs import Need
from flwr_splitkd.cli.doctor.torch_build import Gpu, TorchBuild

GIB = float(1 << 30)
NEED = Need(
    what="the half",
    cut=2,
    memory_bytes=4 * GIB,
    model_bytes=3 * GIB,
    loading_bytes=2 * GIB,
    disk_bytes=GIB,
    by_cut=(2 * GIB, 4 * GIB, 6 * GIB),
    remedy="Less is more.",
)
JETSON = Hardware(is_jetson=True)
CPU, NO_GPU = TorchBuild(), Hardware()


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def memory(available_gib: float, **other: float) -> Memory:
    return Memory(available_bytes=available_gib * GIB, total_bytes=16 * GIB, **other)  # type: ignore[arg-type]


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_what_a_jetson_writes(tmp_path: Path) -> None:
    write(
        tmp_path, "proc/meminfo", "MemTotal:        7802884 kB\nMemFree:          200 kB\nMemAvailable:    5242880 kB\n"
    )
    swaps = "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 650236 0 5\n/swapfile file 2097152 1048576 -2\n"
    write(tmp_path, "proc/swaps", swaps)
    found = read_memory(tmp_path)
    assert found == Memory(
        available_bytes=5 * GIB, total_bytes=7802884 * 1024.0, swap_bytes=GIB, zram_bytes=650236 * 1024.0
    )
    told = by_name(check_memory(None, found, JETSON, CPU))
    assert told["memory"].seen.startswith("5.00 GiB free of 7.44 GiB, which CPU and GPU share")
    assert told["swap"].seen.startswith("1.00 GiB free") and "not counted" in told["zram"].seen


def test_a_control_group_has_less_than_the_machine(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    for name, text in (("max", f"{int(4 * GIB)}"), ("current", f"{int(3 * GIB)}")):
        write(tmp_path, f"sys/fs/cgroup/memory.{name}", f"{text}\n")
    write(tmp_path, "sys/fs/cgroup/memory.stat", f"anon 7\ninactive_file {int(2 * GIB)}\n")
    found = read_memory(tmp_path)
    assert found is not None and found.available_bytes == 3 * GIB
    assert "within the control group's 4.00 GiB" in by_name(check_memory(None, found, NO_GPU, CPU))["memory"].seen
    write(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    unlimited = read_memory(tmp_path)
    assert unlimited is not None and unlimited.available_bytes == 8 * GIB


def test_a_machine_that_does_not_tell(tmp_path: Path) -> None:
    assert read_memory(tmp_path) is None
    assert by_name(check_memory(NEED, None, NO_GPU, CPU))["memory"].status is Status.SKIPPED
    here = read_memory(Path("/"))
    assert here is not None and 0 < here.available_bytes <= here.total_bytes


def test_what_fits() -> None:
    found = by_name(check_memory(NEED, memory(4.5), NO_GPU, CPU))["memory"]
    assert (found.status, found.expected) == (Status.OK, "4.00 GiB for the half")
    assert found.seen == "4.50 GiB free of 16.00 GiB; cuts 1..2 fit"


def test_what_does_not_fit_says_which_cuts_do() -> None:
    found = by_name(check_memory(NEED, memory(3.0), NO_GPU, CPU))["memory"]
    assert found.status is Status.WRONG
    assert found.remedy == "Cut 1 fits. End what else runs. Less is more."


def test_what_fits_with_swap_alone() -> None:
    found = by_name(check_memory(NEED, memory(3.0, swap_bytes=2 * GIB), NO_GPU, CPU))["memory"]
    assert found.status is Status.WARNING and "with swap alone, and is slow" in found.remedy
    # Compressed memory is memory.
    assert by_name(check_memory(NEED, memory(3.0, zram_bytes=2 * GIB), NO_GPU, CPU))["memory"].status is Status.WRONG


def test_with_a_graphics_card_the_model_is_in_its_memory() -> None:
    gpu = Gpu(name="RTX 4090", free_bytes=2.5 * GIB, total_bytes=24 * GIB)
    card_of = Hardware(gpus=("RTX 4090",))
    found = by_name(check_memory(NEED, memory(3.5), card_of, TorchBuild(gpus=(gpu,))))
    assert found["memory"].status is Status.OK
    # One of the process, and two through which models come there.
    assert found["memory"].expected.startswith("3.00 GiB for the process, through which models go to the GPU's memory")
    small = by_name(check_memory(NEED, memory(2.5), card_of, TorchBuild(gpus=(gpu,))))["memory"]
    assert small.status is Status.WRONG and small.remedy == "End what else runs. Less is more."
    card = found["memory of RTX 4090"]
    assert (card.status, card.seen) == (Status.WRONG, "2.50 GiB free of 24.00 GiB")
    assert card.expected == "3.00 GiB for the half" and card.remedy.startswith(
        "Cut 1 fits. End what else is on the GPU."
    )


def test_a_jetson_s_gpu_has_no_memory_of_its_own() -> None:
    gpu = Gpu(name="Orin", free_bytes=1 * GIB, total_bytes=8 * GIB)
    found = by_name(check_memory(NEED, memory(4.5), JETSON, TorchBuild(gpus=(gpu,))))
    assert set(found) == {"memory"} and found["memory"].status is Status.OK
