"""Boards and GPUs, from what kernels write."""

from __future__ import annotations

from pathlib import Path

from flwr_splitkd.cli.doctor.hardware import Hardware, read_hardware


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_a_jetson(tmp_path: Path) -> None:
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    write(tmp_path, "proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0")
    write(
        tmp_path,
        "etc/nv_tegra_release",
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    )
    board = read_hardware(tmp_path)
    assert board == Hardware(model="NVIDIA Jetson Orin Nano Developer Kit", is_jetson=True, release="R36.4.3")
    assert board.gpu == "the GPU of NVIDIA Jetson Orin Nano Developer Kit"


def test_a_jetson_in_a_container_that_has_the_device_tree_alone(tmp_path: Path) -> None:
    write(tmp_path, "proc/device-tree/compatible", "nvidia,tegra234\0")
    assert read_hardware(tmp_path) == Hardware(is_jetson=True)
    assert read_hardware(tmp_path).gpu == "the GPU of a Jetson"


def test_graphics_cards(tmp_path: Path) -> None:
    write(
        tmp_path,
        "proc/driver/nvidia/gpus/0000:01:00.0/information",
        "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 120\n",
    )
    write(tmp_path, "proc/driver/nvidia/gpus/0000:02:00.0/information", "IRQ:   \t\t 121\n")
    assert read_hardware(tmp_path).gpu == "NVIDIA GeForce RTX 4090, an NVIDIA GPU"


def test_a_raspberry_has_none_of_them(tmp_path: Path) -> None:
    write(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    write(tmp_path, "proc/device-tree/compatible", "raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert read_hardware(tmp_path) == Hardware(model="Raspberry Pi 5 Model B Rev 1.0")
    assert read_hardware(tmp_path).gpu == ""
