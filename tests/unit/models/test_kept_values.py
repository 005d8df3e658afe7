"""What the cost model says that blocks keep for the backward pass, beside what a backward pass asks autograd for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from flwr_splitkd.costs import shape_from_config
from flwr_splitkd.costs.memory import kept_values
from flwr_splitkd.models import measured_shape
from flwr_splitkd.split.shrink import run_forward

BATCH, LENGTH, WIDTH = 2, 32, 64

SIZES: dict[str, Any] = {
    "vocab_size": 100, "hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 4 * WIDTH, "pad_token_id": 0,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
GPT2: dict[str, Any] = {"vocab_size": 100, "n_embd": WIDTH, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
OPT = {**{key: value for key, value in SIZES.items() if key != "intermediate_size"}, "ffn_dim": 4 * WIDTH}
DISTIL = {"vocab_size": 100, "dim": WIDTH, "n_heads": 4, "hidden_dim": 4 * WIDTH}
UNDROPPED = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


@dataclass(frozen=True)
class Case:
    """A class of transformers with settings for its config."""

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    what: str = ""

    def __str__(self) -> str:
        return f"{self.model} {self.what}".strip()

    def config(self, blocks: int) -> Any:
        kind = getattr(transformers, self.model).config_class
        names = {"n_embd": "n_layer", "dim": "n_layers", "hidden_size": "num_hidden_layers"}
        (name,) = (own for width, own in names.items() if width in self.settings)
        return kind(**self.settings, **{name: blocks}, architectures=[self.model])

    def build(self, blocks: int) -> nn.Module:
        model: nn.Module = getattr(transformers, self.model)(self.config(blocks))
        return model


CASES = [
    Case("LlamaForCausalLM", GROUPED),
    Case("LlamaForCausalLM", {**SIZES, "intermediate_size": 8 * WIDTH}, "without groups, wide MLP"),
    Case("LlamaForCausalLM", {**GROUPED, "attention_dropout": 0.1}, "attention dropout"),
    Case("LlamaForCausalLM", {**GROUPED, "attn_implementation": "eager"}, "eager"),
    Case("Qwen2ForCausalLM", GROUPED),
    Case("Qwen3ForCausalLM", {**GROUPED, "head_dim": 32}),
    # By itself transformers 5.0 computes its attention in one kernel, without the cap on its logits.
    Case("Gemma2ForCausalLM", {**GROUPED, "head_dim": 32, "attn_implementation": "eager"}),
    Case("Phi3ForCausalLM", GROUPED),
    Case("PhiForCausalLM", SIZES),
    Case("Starcoder2ForCausalLM", {**GROUPED, "residual_dropout": 0.1}),
    Case("GPT2LMHeadModel", GPT2, "as published"),
    Case("GPT2LMHeadModel", {**GPT2, **UNDROPPED}, "without dropout"),
    Case("GPT2LMHeadModel", {**GPT2, **UNDROPPED, "resid_pdrop": 0.1}, "without dropout of attention"),
    Case("GPT2LMHeadModel", {**GPT2, **UNDROPPED, "activation_function": "gelu"}, "one kernel for GELU"),
    Case("GPT2LMHeadModel", {**GPT2, **UNDROPPED, "activation_function": "gelu_fast"}, "gelu_fast"),
    Case("GPT2LMHeadModel", {**GPT2, **UNDROPPED, "activation_function": "gelu_python"}, "gelu_python"),
    Case("GPT2LMHeadModel", {**GPT2, **UNDROPPED, "activation_function": "quick_gelu"}, "quick_gelu"),
    Case("GPT2LMHeadModel", {**GPT2, **UNDROPPED, "activation_function": "gelu_accurate"}, "gelu_accurate"),
    Case("GPTNeoXForCausalLM", SIZES),
    Case("GPTNeoXForCausalLM", {**SIZES, "hidden_dropout": 0.1, "attention_dropout": 0.1}, "dropout"),
    Case("OPTForCausalLM", OPT),
    Case("OPTForCausalLM", {**OPT, "attention_dropout": 0.1, "do_layer_norm_before": False}, "attention dropout, norms after"),
    Case("BertForMaskedLM", SIZES),
    Case("RobertaForMaskedLM", SIZES),
    Case("RobertaForMaskedLM", {**SIZES, "attention_probs_dropout_prob": 0.0}, "without dropout of attention"),
    Case("ElectraForMaskedLM", SIZES),
    Case("DistilBertForMaskedLM", DISTIL),
    Case("ModernBertForMaskedLM", {**SIZES, "cls_token_id": 1, "sep_token_id": 2}),
]  # fmt: skip


def _kept_bytes(model: nn.Module) -> int:
    """Memory that a backward pass asks autograd for, but for the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    asked: dict[int, Tensor] = {}

    def unpack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            asked[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        ids = torch.randint(3, 100, (BATCH, LENGTH))
        run_forward(model.train(), {"input_ids": ids}).logits.sum().backward()
    assert asked, "there was a backward pass"
    return sum(tensor.untyped_storage().nbytes() for tensor in asked.values())


def _per_block(case: Case) -> float:
    """Values per token that a block keeps: of two blocks more, so that embedding and head do not count."""
    return (_kept_bytes(case.build(4)) - _kept_bytes(case.build(2))) / 2 / (BATCH * LENGTH * 4)


_worst: dict[str, float] = {}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_what_a_backward_pass_asks_for(case: Case, covered: Callable[[str, object], None]) -> None:
    """A config tells it within 15 %, a model that is measured within 3 %."""
    kept = _per_block(case)
    told = kept_values(shape_from_config(case.config(2)), LENGTH)[1]
    measured = kept_values(measured_shape(lambda: case.build(2)), LENGTH)[1]
    assert measured == pytest.approx(kept, rel=0.03)
    assert told == pytest.approx(kept, rel=0.15)
    _worst[str(case)] = told / kept - 1
    name = max(_worst, key=lambda one: abs(_worst[one]))
    covered(
        "largest difference of what a config says that a block keeps from what autograd keeps",
        f"{_worst[name]:+.1%} ({name}) in {len(_worst)} models",
    )


def test_maps_come_apart_from_tokens() -> None:
    """GPT-2 as published: three maps a head, and without dropout none."""
    published, undropped = (measured_shape(lambda case=case: case.build(2)) for case in CASES[10:12])
    assert published.block_kept_per_pair is not None and undropped.block_kept_per_pair is not None
    assert published.block_kept_per_pair.tolist() == [3 * 4] * 2
    assert undropped.block_kept_per_pair.tolist() == [0] * 2


def test_experts_count_as_llamas() -> None:
    """The form of an expert layer that looks at no value keeps copies of weights, which training does not."""
    case = Case("MixtralForCausalLM", {**GROUPED, "num_local_experts": 4})
    shape = measured_shape(lambda: case.build(2))
    assert np.allclose(kept_values(shape, LENGTH), kept_values(shape_from_config(case.config(2)), LENGTH))
