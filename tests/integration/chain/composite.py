"""The whole of a chain as one model in one process, from torch's, transformers' and PEFT's own parts.

Encoders, projection and LLM are one graph: one call of `backward` goes from a device's loss to its encoder's first weight. Of
the package there is only what says where dropout's random numbers come from, the encoder's layout that this needs, and the
kernel of the cross-entropy; with ``own_loss`` that is torch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from chain_parts import (
    BOS,
    DEVICES,
    ENCODER_NORM,
    ENCODER_OPTIMIZER,
    MODULE_NORM,
    SCHEDULE,
    SEED,
    TASKS,
    WIDTH,
    batches,
    first_weights,
)
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from flwr_splitkd.distill import Head, distillation_loss
from flwr_splitkd.split import find_layout, seed_dropout
from flwr_splitkd.tiers.cloud.randomness import seeded
from flwr_splitkd.tiers.seeds import device_seed

__all__ = ["Composite", "Iterated"]


@dataclass
class Iterated:
    """What an iteration gave: each device's loss and reference loss, and the gradient norms before clipping."""

    losses: dict[int, float]
    reference_losses: dict[int, float]
    grad_norm: float
    encoder_norms: dict[int, float] = field(default_factory=dict)


class Composite:
    """N encoders, a projection, an LLM and its module."""

    def __init__(
        self,
        llm: Path,
        task: str,
        encoder: str,
        *,
        count: int = DEVICES,
        own_loss: bool = False,
        adapters: bool = False,
    ) -> None:
        self._task, self._own_loss = TASKS[task], own_loss
        self._llm: Any = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32).requires_grad_(False).eval()
        self._embed: nn.Embedding = self._llm.get_input_embeddings()
        self._head = Head(weight=self._llm.lm_head.weight.detach())
        self.module = dict(self._new_module())
        self.module_optimizer = _adamw(self.module.values(), self._task["learning-rate"], self._task["weight-decay"])
        self.module_steps = 0
        self.encoders = [first_weights(encoder, n, adapters=adapters) for n in range(count)]
        self.optimizers = [
            _adamw(
                [p for p in one.parameters() if p.requires_grad],
                ENCODER_OPTIMIZER.learning_rate,
                ENCODER_OPTIMIZER.weight_decay,
            )
            for one in self.encoders
        ]
        self.steps = [0] * count
        self._data = [batches(n) for n in range(count)]
        self._in_round = [0] * count
        self._open = ExitStack()
        self._seeds = [
            self._open.enter_context(seed_dropout(one, find_layout(one), device_seed(SEED, n)))
            for n, one in enumerate(self.encoders)
        ]

    def close(self) -> None:
        self._open.close()

    def begin_round(self) -> None:
        """The data begin anew."""
        self._in_round = [0] * len(self.encoders)

    def iterate(self, devices: Sequence[int], *, without_step: Sequence[int] = ()) -> Iterated:
        """One iteration of these devices; those `without_step` give the module a gradient and stay as they are."""
        losses, references, norms = {}, {}, {}
        for n in devices:
            batch = self._data[n][self._in_round[n] % len(self._data[n])]
            self._seeds[n].at(self.steps[n])
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            hidden = self.encoders[n](**inputs).last_hidden_state
            with torch.no_grad():
                references[n] = float(self._reference_loss(batch))
            with seeded(self._llm, f"peft/{self._task['seed']}/{n}/{self.steps[n]}"):
                self._llm.train()
                loss = self._chain_loss(hidden, batch["attention_mask"], batch["labels"])
                loss.backward()
                self._llm.eval()
            losses[n] = float(loss.detach())
            if n not in without_step:
                norms[n] = float(nn.utils.clip_grad_norm_(self.encoders[n].parameters(), ENCODER_NORM))
                _step(self.optimizers[n], ENCODER_OPTIMIZER.learning_rate * SCHEDULE(self.steps[n]))
            self.optimizers[n].zero_grad()
            self.steps[n] += 1
            self._in_round[n] += 1
        norm = nn.utils.clip_grad_norm_(self.module.values(), MODULE_NORM)
        warmup = self._task["warmup-steps"]
        _step(self.module_optimizer, self._task["learning-rate"] * min(self.module_steps / warmup, 1.0))
        self.module_optimizer.zero_grad()
        self.module_steps += 1
        return Iterated(losses, references, float(norm), norms)

    def weights(self, device: int) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.encoders[device].state_dict().items()}

    def moments(self, device: int) -> dict[str, dict[str, Tensor]]:
        return _moments(self.optimizers[device], dict(self.encoders[device].named_parameters()))

    def module_moments(self) -> dict[str, dict[str, Tensor]]:
        return _moments(self.module_optimizer, self.module)

    def backup(self, device: int) -> tuple[Any, Any, int]:
        return self.weights(device), _copied(self.optimizers[device].state_dict()), self.steps[device]

    def restore(self, device: int, backup: tuple[Any, Any, int]) -> None:
        weights, state, self.steps[device] = backup
        self.encoders[device].load_state_dict(weights)
        self.optimizers[device].load_state_dict(_copied(state))

    # ---- the cloud's part

    def _new_module(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Projection and module with the weights that the task's seed gives, under the cloud's names."""
        width, seed = self._embed.embedding_dim, self._task["seed"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._projection = nn.Linear(WIDTH, width)
            size = float(self._embed.weight.square().mean().sqrt())
            nn.init.normal_(self._projection.weight, std=size * WIDTH**-0.5)
            nn.init.zeros_(self._projection.bias)
            torch.manual_seed(seed)
            named = self._lora() if self._task["method"] == "lora" else self._serial(width)
        yield from ((f"projection.{name}", p) for name, p in self._projection.named_parameters())
        yield from ((f"module.{name}", p) for name, p in named)

    def _lora(self) -> list[tuple[str, nn.Parameter]]:
        config = LoraConfig(
            r=self._task["rank"],
            lora_alpha=self._task["lora-alpha"],
            lora_dropout=self._task["lora-dropout"],
            target_modules=self._task["target-modules"].split(","),
        )
        get_peft_model(self._llm, config)
        return [(n.replace(".default", ""), p) for n, p in self._llm.named_parameters() if p.requires_grad]

    def _serial(self, width: int) -> list[tuple[str, nn.Parameter]]:
        """Bottlenecks behind the layers that end attention and MLP: x + up(gelu(down(x)))."""
        named = []
        layers = [n for n, _ in self._llm.named_modules() if n.endswith(("o_proj", "down_proj"))]
        for layer in layers:
            down, up = nn.Linear(width, self._task["bottleneck"]), nn.Linear(self._task["bottleneck"], width)
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
            self._llm.get_submodule(layer).register_forward_hook(self._behind(down, up))
            for part, linear in (("down", down), ("up", up)):
                named += [(f"{layer}.{part}.{name}", p) for name, p in linear.named_parameters()]
        return named

    def _behind(self, down: nn.Linear, up: nn.Linear) -> Any:
        def hook(_layer: nn.Module, _args: Any, x: Tensor) -> Tensor:
            return x + up(nn.functional.gelu(down(x)))

        return hook

    def _chain_loss(self, hidden: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        first = self._embed(torch.full((len(hidden), 1), BOS))
        prefix = torch.cat([first, self._projection(hidden)], 1)
        mask = torch.cat([torch.ones(len(mask), 1, dtype=torch.long), mask], 1)
        return self._loss(prefix, mask, labels)

    def _reference_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The LLM's own, with its module as it is and without the encoder (equation (6) of the paper)."""
        prefix = self._embed(batch["reference_input_ids"])
        return self._loss(prefix, batch["reference_attention_mask"], batch["labels"])

    def _loss(self, prefix: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of answers behind a prefix, sample by sample put to the right of zeros."""
        length = prefix.shape[1] + labels.shape[1]
        rows, seen, targets = [], [], []
        for one, real, answer in zip(prefix, mask, labels, strict=True):
            answer = answer[answer != -100]
            there = torch.cat([one[real != 0], self._embed(answer)])
            rows.append(torch.cat([torch.zeros(length - len(there), there.shape[1]), there]))
            seen.append([0] * (length - len(there)) + [1] * len(there))
            targets.append([-100] * (length - len(answer)) + answer.tolist())
        attention, wanted = torch.tensor(seen), torch.tensor(targets)[:, 1:]
        out = self._llm.model(
            inputs_embeds=torch.stack(rows),
            attention_mask=attention,
            position_ids=(attention.cumsum(1) - 1).clamp_min(0),
        ).last_hidden_state[:, :-1]
        predicted, wanted = out[wanted != -100], wanted[wanted != -100]
        if self._own_loss:
            return nn.functional.cross_entropy(predicted @ self._head.weight.T, wanted)
        settings = {"temperature": 1.0, "kd_ratio": 0.0, "beta": 0.0}
        return distillation_loss(predicted, self._head, None, None, wanted, **settings).loss


def _adamw(parameters: Any, rate: float, decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)


def _step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _moments(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Tensor]]:
    return {name: dict(optimizer.state[p]) for name, p in named.items() if p in optimizer.state}


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state
