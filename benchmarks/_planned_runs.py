"""What the benchmarks of the planner share: models, a fleet file for this machine, a run's turns and how far off they were."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from flwr_splitkd.costs import BlockTimes, DeviceProfile, ServerProfile, to_json
from flwr_splitkd.telemetry import device_profile, edge_profile, read_machine, sample_blocks

__all__ = [
    "BATCH_SIZE",
    "DEMO_APP",
    "PLANNED_APP",
    "SEQUENCE_LENGTH",
    "STAGES",
    "environment",
    "faster",
    "load",
    "make_models",
    "measure_machine",
    "median_errors",
    "relative_errors",
    "turns_of",
    "write_fleet",
]

DEMO_APP = Path(__file__).resolve().parents[1] / "apps" / "split_kd"
PLANNED_APP = Path(__file__).with_name("planned_app")
BATCH_SIZE, SEQUENCE_LENGTH = 4, 128
# The teacher's weights do not matter here, only its size: that of the demo's, as the student's is.
STUDENT = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 8, "num_attention_heads": 4}
TEACHER = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
# Nobody measures watts here: numbers like those of a small board and a server, so that cuts differ in energy.
_DEVICE_W, _EDGE_W = 5.0, 30.0

STAGES = {
    "device": ("predicted_device_s", "device_s"),
    "edge": ("predicted_server_s", "edge_s"),
    "uplink": ("predicted_uplink_s", "uplink_s"),
    "downlink": ("predicted_downlink_s", "downlink_s"),
    "other": ("predicted_other_s", "measured_other_s"),
    "total": ("predicted_s", "duration_s"),
}
"""What was predicted and what was measured of each stage, in a turn's line of ``metrics.jsonl``."""


def environment(folder: Path) -> dict[str, str]:
    """Variables of the processes: a cache of their own, one thread each, and the demo's package on the path."""
    path = os.pathsep.join(filter(None, (str(DEMO_APP), os.environ.get("PYTHONPATH", ""))))
    return {"FLWR_SPLITKD_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def make_models(folder: Path, *, share: int = 1) -> dict[str, str]:
    """Write a student and a teacher with random weights; return where, as keys of the run config.

    Parameters
    ----------
    folder
        Where to.
    share
        They are the demo's with one in so many of its layers.
    """
    tokenizer = AutoTokenizer.from_pretrained(DEMO_APP / "split_kd_app" / "tokenizer")
    for seed, (name, sizes) in enumerate({"student": STUDENT, "teacher": TEACHER}.items()):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            num_key_value_heads=sizes["num_attention_heads"] // 2,
            pad_token_id=tokenizer.pad_token_id,
            **sizes | {"num_hidden_layers": sizes["num_hidden_layers"] // share},
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("student", "teacher")}


def measure_machine(student: str, repeats: int = 7) -> tuple[DeviceProfile, ServerProfile]:
    """Profile this machine on one thread, as a device and as an edge.

    Parameters
    ----------
    student
        Folder of the model.
    repeats
        Passes that count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        samples = sample_blocks(
            LlamaForCausalLM.from_pretrained(student),
            batch_size=BATCH_SIZE,
            sequence_length=SEQUENCE_LENGTH,
            repeats=repeats,
            name="student",
        )
        machine = read_machine(torch.device("cpu"))
        # The clock stays as it is; only its product with the FLOPs of a cycle matters.
        machine = machine.told(max_frequency_hz=machine.max_frequency_hz or 1e9)
    finally:
        torch.set_num_threads(threads)
    return device_profile(samples, machine, power_w=_DEVICE_W), edge_profile(samples, machine, power_w=_EDGE_W)


def faster(device: DeviceProfile, server: ServerProfile, claim: float) -> tuple[DeviceProfile, ServerProfile]:
    """Profiles that claim `claim` times the speed."""
    blocks: BlockTimes | None = device.blocks
    if blocks is not None:
        blocks = replace(
            blocks,
            forward_s=tuple(seconds / claim for seconds in blocks.forward_s),
            backward_s=tuple(seconds / claim for seconds in blocks.backward_s),
            embedding_s=blocks.embedding_s / claim,
        )
    return (
        replace(device, flops_per_cycle=claim * device.flops_per_cycle, blocks=blocks),
        replace(server, flops_per_cycle=claim * server.flops_per_cycle),
    )


def write_fleet(path: Path, device: DeviceProfile, server: ServerProfile, link: str) -> str:
    """Write a fleet file in which every device is alike; return its path."""
    fleet = {"server": to_json(server), "default": {"profile": to_json(device), "link": link}}
    path.write_text(json.dumps(fleet, indent=2) + "\n", encoding="utf-8")
    return str(path)


def turns_of(runs: Path) -> list[dict[str, Any]]:
    """The turns of the one run below a folder, so far, as its ``metrics.jsonl`` has them."""
    found = list(runs.glob("*/metrics.jsonl"))
    if len(found) > 1:
        raise ValueError(f"{runs} holds {len(found)} runs; expected one.")
    # What follows the last line break is still being written.
    text = found[0].read_text(encoding="utf-8").rpartition("\n")[0] if found else ""
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if line["kind"] == "turn"]


def relative_errors(turn: Mapping[str, Any]) -> dict[str, float]:
    """``|predicted - measured| / |measured|`` of each stage; NaN where nothing was measured."""
    errors = {}
    for stage, (predicted, measured) in STAGES.items():
        real = turn[measured]
        errors[stage] = abs((turn[predicted] - real) / real) if real else math.nan
    return errors


def median_errors(turns: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Median over the turns of each stage's relative error; NaN without turns."""
    every = [relative_errors(turn) for turn in turns]
    return {stage: _median(errors[stage] for errors in every) for stage in STAGES}


def load() -> str:
    """The machine's load, beside which figures are to be read."""
    return ", ".join(f"{value:.1f}" for value in os.getloadavg()) + f" on {os.cpu_count()} cores"


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan
