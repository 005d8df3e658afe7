"""The optimiser that both halves build alike, and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import get_scheduler

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["LearningRateSchedule", "OptimizerSettings", "constant", "set_learning_rate", "warmup_schedule"]

LearningRateSchedule = Callable[[int], float]
"""Factor on the base learning rate by optimiser step, counted over the whole run from 0; as torch's LambdaLR."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """An optimiser by name, so that the device can build the edge's without receiving code.

    Parameters
    ----------
    name
        A class of `torch.optim`: AdamW, Adam or SGD.
    learning_rate
        Base rate, > 0.
    beta1, beta2, eps
        For AdamW and Adam.
    weight_decay
        At least 0.
    momentum
        For SGD.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    momentum: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.name not in ("adamw", "adam", "sgd"):
            raise ConfigError(f"`optimizer` is {self.name!r}; expected adamw, adam or sgd.")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"`learning_rate` is {self.learning_rate}; expected a finite number above 0.")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; expected at least 0 and below 1.")
        if not self.weight_decay >= 0 or not self.eps > 0:
            raise ConfigError(
                f"`weight_decay` is {self.weight_decay} and `eps` is {self.eps}; expected at least 0 and above 0."
            )

    @property
    def moment_keys(self) -> frozenset[str]:
        """What torch keeps for each parameter that has had a gradient."""
        if self.name == "sgd":
            return frozenset({"momentum_buffer"} if self.momentum else ())
        return frozenset({"step", "exp_avg", "exp_avg_sq"})

    def build(self, parameters: Iterable[nn.Parameter], *, fused: bool = False) -> torch.optim.Optimizer:
        """Make the torch optimiser of one half; `fused` updates all weights in one kernel, which rounds otherwise."""
        own, kernel = list(parameters), True if fused else None
        if self.name == "sgd":
            return torch.optim.SGD(
                own, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay, fused=kernel
            )
        kind = torch.optim.AdamW if self.name == "adamw" else torch.optim.Adam
        return kind(
            own,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=kernel,
        )

    def to_wire(self) -> pb.OptimizerSettings:
        """As it stands in the turn's plan."""
        return pb.OptimizerSettings(
            name=self.name,
            learning_rate=self.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
        )

    @classmethod
    def from_wire(cls, settings: pb.OptimizerSettings) -> OptimizerSettings:
        """As read from the turn's plan."""
        return cls(
            name=settings.name,  # type: ignore[arg-type]  # checked in __post_init__
            learning_rate=settings.learning_rate,
            beta1=settings.beta1,
            beta2=settings.beta2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
        )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def constant(step: int) -> float:
    """Return 1: the base learning rate throughout."""
    return 1.0


def warmup_schedule(name: str, *, num_warmup_steps: int, num_training_steps: int) -> LearningRateSchedule:
    """One of transformers' schedules, e.g. ``"linear"`` or ``"cosine"``.

    Parameters
    ----------
    name
        A value of `transformers.SchedulerType`.
    num_warmup_steps, num_training_steps
        In optimiser steps over the whole run.
    """
    probe = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(name, probe, num_warmup_steps=num_warmup_steps, num_training_steps=num_training_steps)
    factor: LearningRateSchedule = scheduler.lr_lambdas[0]
    return factor
