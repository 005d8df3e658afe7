"""Bytes that are handed over in a turn when only LoRA adapters train, against full weights.

Measured: whole turns through the product's edge and device over the in-memory transport. Two devices take turns at one cut;
"first visit" is a device with an empty cache, "later visit" one that finds its layers trained by the other meanwhile. Bytes
are both directions together. Counted: the same for Llama-3.2-1B, from the shapes of a model without memory.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from _report import Row, report
from peft import LoraConfig
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.models import add_adapters, build_skeleton, inner_model
from flwr_splitkd.split import find_layout
from flwr_splitkd.store import CommitLog, DeviceCache
from flwr_splitkd.testing import connected_links
from flwr_splitkd.tiers import device as device_tier
from flwr_splitkd.tiers.device import DeviceData
from flwr_splitkd.tiers.edge import EdgeStudent, Objective, TurnPlan, TurnSettings, run_turn
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.tiers.units import trained_names
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

LORA = LoraConfig(r=16, target_modules="all-linear", exclude_modules=["lm_head"])
CPU = torch.device("cpu")
_WEIGHTS_AND_MOMENTS = 3  # AdamW
_DIRECTIONS = 2


def demo_size() -> nn.Module:
    """The demo's student."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, num_hidden_layers=8))


def llama_1b() -> nn.Module:
    """The shape of Llama-3.2-1B, its embeddings untied."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        dtype=torch.bfloat16,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def measured(cut: int, config: LoraConfig | None, folder: Path) -> tuple[int, int]:
    """Bytes of a first and of a later visit."""

    def whole() -> nn.Module:
        model = add_adapters(demo_size(), config)
        inner_model(model).get_input_embeddings().requires_grad_(False)  # type: ignore[operator]  # as the strategy does
        return model

    model = whole()
    student = EdgeStudent(
        model,
        find_layout(inner_model(model)),
        optimizer=OptimizerSettings(),
        handover="full",
        log=CommitLog(folder / "commits"),
    )
    objective = Objective(student.model, None, DistillationLoss(kd_ratio=0.0), "causal-lm")
    visits = [
        _turn(student, objective, whole, cut, folder / str(device), step) for step, device in enumerate((0, 1, 0))
    ]
    return visits[1], visits[2]


def _turn(
    student: EdgeStudent, objective: Objective, build: Callable[[], nn.Module], cut: int, folder: Path, step: int
) -> int:
    cache = DeviceCache(folder)
    hello = pb.Hello(cached_units=[pb.UnitVersion(unit=u, version=v) for u, v in cache.versions().items()])
    data = DeviceData([{"input_ids": torch.randint(0, 1024, (2, 16))}])
    skeleton = inner_model(build_skeleton(build))
    plan = TurnPlan(mode="train", cut=cut, local_epochs=1, first_step=step, info={})
    with connected_links() as (edge_link, device_link):
        arguments = {
            "model": skeleton,
            "layout": find_layout(skeleton),
            "data": data,
            "cache": cache,
            "compute_device": CPU,
            "begin_timeout_s": 60,
            "step_timeout_s": 60,
        }
        thread = threading.Thread(target=device_tier.run_turn, args=(device_link,), kwargs=arguments)
        thread.start()
        outcome = run_turn(edge_link, hello, student=student, objective=objective, settings=TurnSettings(), plan=plan)
        thread.join()
    return outcome.handover_bytes


def counted(cut: int, config: LoraConfig | None) -> tuple[int, int]:
    """Bytes of a first and of a later visit of Llama-3.2-1B, by shape."""
    model = inner_model(build_skeleton(llama_1b, config))
    model.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]
    layout = find_layout(model)
    units, trained = set(layout.units(cut)[0]), trained_names(model)
    held = {
        name: t.numel() * t.element_size() for name, t in model.state_dict().items() if layout.unit_of(name) in units
    }
    changing = sum(size for name, size in held.items() if name in trained)
    later = _DIRECTIONS * _WEIGHTS_AND_MOMENTS * changing
    return later + sum(size for name, size in held.items() if name not in trained), later


def main() -> None:
    """Measure, count, and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for what, cuts in (("demo's student, measured", (2, 4, 6)), ("Llama-3.2-1B, bfloat16, counted", (4, 8))):
        for cut in cuts:
            if "measured" in what:
                with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
                    full, lora = measured(cut, None, Path(one)), measured(cut, LORA, Path(two))
            else:
                full, lora = counted(cut, None), counted(cut, LORA)
            for visit, (value, reference) in zip(("first", "later"), zip(lora, full, strict=True), strict=True):
                name = f"{what}: cut {cut}, {visit} visit, LoRA r=16"
                rows.append(Row(name=name, value=value, unit="B", reference=reference, ratio=value / reference))
    report("lora_handover", rows, json_path=arguments.json, notes=["reference: full weights, input embedding frozen"])


if __name__ == "__main__":
    main()
