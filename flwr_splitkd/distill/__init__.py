"""Distillation losses as functions of tensors (torch only: no Flower, no gRPC, no clock, no randomness).

How to read this room::

    settings.py     DistillationLoss: what a user sets, checked once
    head.py         Head, LogitTransform: from hidden states to logits
    formulas.py     cross-entropy and divergences per token, with closed-form gradients
    top_k.py        a teacher by some of its logits
    kd.py           the loss over a batch, chunk by chunk, attached to autograd
"""

from __future__ import annotations

from flwr_splitkd.distill.head import Head, LogitTransform, match_vocabulary
from flwr_splitkd.distill.kd import LossTerms, distillation_loss, distillation_loss_from_logits
from flwr_splitkd.distill.settings import DistillationLoss
from flwr_splitkd.distill.top_k import Others, TopK, top_k_logits

__all__ = [
    "DistillationLoss",
    "Head",
    "LogitTransform",
    "LossTerms",
    "Others",
    "TopK",
    "distillation_loss",
    "distillation_loss_from_logits",
    "match_vocabulary",
    "top_k_logits",
]
