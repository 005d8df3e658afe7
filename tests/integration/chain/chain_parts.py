"""What the processes of a chain and its composite in one process have in common: models, data and settings, but no code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tiny_encoders import LAYERS, PAD, VOCAB, WIDTH, tiny_encoder
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from flwr_splitkd.models import add_adapters, inner_model
from flwr_splitkd.tiers.edge.chain import ChainSettings
from flwr_splitkd.tiers.optimizer import OptimizerSettings, warmup_schedule

__all__ = [
    "BOS",
    "DEVICES",
    "ENCODER_LORA",
    "ENCODER_NORM",
    "ENCODER_OPTIMIZER",
    "LAYERS",
    "LLM_VOCAB",
    "MODULE_NORM",
    "NUM_BATCHES",
    "RUN",
    "SCHEDULE",
    "SEED",
    "TASKS",
    "WIDTH",
    "batches",
    "chain_settings",
    "first_weights",
    "save_llm",
    "tiny_encoder",
    "write_cloud_config",
]

RUN, DEVICES, NUM_BATCHES = 42, 3, 10
SEED = 7
LLM_VOCAB, LLM_WIDTH, BOS = 80, 24, 1
# Both bounds are well below the norms that come up: each step is clipped.
ENCODER_NORM, MODULE_NORM = 0.2, 0.5
ENCODER_OPTIMIZER = OptimizerSettings(learning_rate=3e-3, weight_decay=0.1)
ENCODER_LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["query", "value"])
SCHEDULE = warmup_schedule("linear", num_warmup_steps=4, num_training_steps=60)

_TASK: dict[str, Any] = {
    "slm-width": WIDTH,
    "learning-rate": 1e-2,
    "weight-decay": 0.05,
    "max-grad-norm": MODULE_NORM,
    "warmup-steps": 3,
    "seed": 5,
}
_SERIAL = {"method": "serial-adapter", "bottleneck": 8, "activation": "gelu", **_TASK}
_LORA = {
    "method": "lora",
    "rank": 4,
    "lora-alpha": 8,
    "lora-dropout": 0.1,
    "target-modules": "q_proj,down_proj",
    **_TASK,
}
TASKS: dict[str, dict[str, Any]] = {
    "serial": _SERIAL,
    "lora": _LORA,
    "serial-reference": {**_SERIAL, "reference-loss": True},
    "lora-reference": {**_LORA, "reference-loss": True},
}
"""All of them are served by one cloud, on one LLM."""


def chain_settings(**changes: Any) -> ChainSettings:
    given = {
        "seed": SEED,
        "num_iterations": 20,
        "optimizer": ENCODER_OPTIMIZER,
        "lr_schedule": SCHEDULE,
        "max_grad_norm": ENCODER_NORM,
        "step_timeout_s": 60.0,
        "max_new_tokens": 3,
    }
    return ChainSettings(**{**given, **changes})


def first_weights(encoder: str, device: int, *, adapters: bool = False) -> nn.Module:
    """An encoder as a device begins with it, with new adapters or without: no two devices begin alike."""
    model = tiny_encoder(encoder)
    generator = torch.Generator().manual_seed(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    if not adapters:
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(device)
        return inner_model(add_adapters(model, ENCODER_LORA))


def batches(device: int, count: int = NUM_BATCHES) -> list[dict[str, Tensor]]:
    """Padded batches of one device; the third sample of each has no answer."""
    generator = torch.Generator().manual_seed(100 + device)
    made = []
    for _ in range(count):
        ids = torch.randint(4, VOCAB, (3, 9), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 6:] = 0
        context = torch.randint(3, LLM_VOCAB, (3, 7), generator=generator)
        seen = torch.ones_like(context)
        seen[0, :2] = 0
        labels = torch.randint(3, LLM_VOCAB, (3, 4), generator=generator)
        labels[0, 2:] = -100
        labels[2] = -100
        made.append(
            {
                "input_ids": ids.masked_fill(mask == 0, PAD),
                "attention_mask": mask,
                "labels": labels,
                "reference_input_ids": context,
                "reference_attention_mask": seen,
            }
        )
    return made


def save_llm(folder: Path) -> None:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=LLM_VOCAB,
        hidden_size=LLM_WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=BOS,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
        attention_dropout=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_cloud_config(folder: Path, *, port: int, token: str, commit_every_steps: int) -> Path:
    """What `flwr-splitkd cloud` reads, beside the LLM in the folder ``llm``."""
    (folder / "token").write_text(token)
    lines = [
        f'address = "127.0.0.1:{port}"',
        f"commit-every-steps = {commit_every_steps}",
        'state-folder = "state"',
        "[llm]",
        'name = "llm"',
        "[edges.here]",
        'token-file = "token"',
    ]
    for name, task in TASKS.items():
        lines.append(f"[tasks.{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in task.items()]
    path = folder / "cloud.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
