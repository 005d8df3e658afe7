from __future__ import annotations

import types

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from flwr_splitkd.errors import ConfigError, UncuttableModelError
from flwr_splitkd.split import find_layout, verify_cut

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 96,
    "pad_token_id": 0,
}


def test_report_of_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    report = verify_cut(model)
    assert report.architecture == "LlamaForCausalLM"
    assert report.bit_equal
    assert [c.cut for c in report.checks] == [1, 2, 3]
    assert all(p.is_meta for p in model.parameters())


def test_the_named_difference_of_shared_position_embeddings() -> None:
    config = DebertaV2Config(**TINY, relative_attention=True, pos_att_type=["c2p", "p2c"])
    report = verify_cut(DebertaV2ForMaskedLM(config))
    assert not report.bit_equal
    worst = max(report.checks, key=lambda check: check.worst)
    assert "rel_embeddings" in worst.worst_name or "encoder.LayerNorm" in worst.worst_name
    assert 0 < worst.worst <= 1e-6


def test_a_convolution_between_two_blocks_is_found_out() -> None:
    config = DebertaV2Config(**TINY, relative_attention=True, pos_att_type=["c2p"], conv_kernel_size=3)
    with pytest.raises(UncuttableModelError, match=r"DebertaV2ForMaskedLM cannot be cut: at cut 1 .* differs"):
        verify_cut(DebertaV2ForMaskedLM(config))


class Shortcut(nn.Module):
    """Adds the embeddings again after the last block, as a cut cannot know."""

    def __init__(self, config: types.SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(config.num_hidden_layers)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        start = hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden + start


def test_a_shortcut_around_the_cut_is_found_out() -> None:
    model = Shortcut(types.SimpleNamespace(num_hidden_layers=3, vocab_size=50, pad_token_id=0))
    with pytest.raises(UncuttableModelError, match=r"Shortcut cannot be cut: at cut 1 .* at most 1e-06"):
        verify_cut(model)


def test_the_model_is_not_changed() -> None:
    model = BertForMaskedLM(BertConfig(**TINY))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    verify_cut(model, cuts=[2])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_any_module_is_tried_on_a_batch() -> None:
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3)) for _ in range(3)]
    model = nn.Sequential(*blocks)
    layout = find_layout(model, "")
    report = verify_cut(model, layout, inputs={"input": torch.randn(8, 4)})
    assert report.bit_equal
    assert len(report.checks) == 2
    with pytest.raises(ConfigError, match="`inputs` is None; expected a batch to try Sequential on"):
        verify_cut(model, layout)


def test_a_tolerance_is_kept() -> None:
    config = DebertaV2Config(**TINY, relative_attention=True, pos_att_type=["c2p", "p2c"])
    with pytest.raises(UncuttableModelError, match="expected at most 0e"):
        verify_cut(DebertaV2ForMaskedLM(config), tolerance=0.0)
