"""An encoder is tried in halves on a tiny copy before the real one is touched."""

from __future__ import annotations

import types

import pytest
import torch
from tiny_encoders import ENCODERS, encoder_config, tiny_encoder
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM

from flwr_splitkd.errors import CutError, UncuttableModelError
from flwr_splitkd.split import find_layout, verify_encoder


@pytest.mark.parametrize("name", ENCODERS)
def test_every_split_point_of_a_skeleton(name: str) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(encoder_config(name))
    report = verify_encoder(model)
    assert report.architecture == type(model).__name__
    assert report.bit_equal
    assert [check.cut for check in report.checks] == [1, 2, 3, 4]
    assert all(p.is_meta for p in model.parameters())


def test_chosen_split_points() -> None:
    model = tiny_encoder("bert")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    assert [check.cut for check in verify_encoder(model, split_points=[4, 2]).checks] == [4, 2]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with pytest.raises(CutError, match=r"`split_point` is 5; expected 1\.\.4"):
        verify_encoder(model, split_points=[1, 5])


def test_a_table_that_only_the_stem_seems_to_need() -> None:
    """RoFormer's blocks read a table of positions in which no gradient shows; without it the edge's part is another."""
    model = tiny_encoder("roformer", embedding_size=16)
    with pytest.raises(UncuttableModelError, match=r"RoFormerModel cannot be cut: at split point 1 .* another encoder"):
        verify_encoder(model)


@pytest.mark.parametrize("trainable", [True, False])
def test_shared_tensors_must_be_frozen(trainable: bool) -> None:
    model = tiny_encoder("deberta", relative_attention=True, pos_att_type=["c2p", "p2c"])
    model.get_submodule("encoder.rel_embeddings").requires_grad_(trainable)
    if trainable:
        with pytest.raises(CutError, match=r"`encoder\.rel_embeddings\.weight` of DebertaModel is used by both halves"):
            verify_encoder(model)
    else:
        assert verify_encoder(model).bit_equal


def test_a_model_with_a_head() -> None:
    with pytest.raises(UncuttableModelError, match="BertForMaskedLM is no encoder: it puts a head on a BertModel"):
        verify_encoder(AutoModelForMaskedLM.from_config(encoder_config("bert")))


class Plain(nn.Module):
    """Reads tokens as a model of transformers does, and returns a bare tensor."""

    def __init__(self, config: types.SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(config.num_hidden_layers)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def test_a_model_without_a_last_hidden_state() -> None:
    model = Plain(types.SimpleNamespace(num_hidden_layers=3, vocab_size=50, pad_token_id=0))
    with pytest.raises(UncuttableModelError, match=r"Plain is no encoder: .* its Tensor has none\. Use a base model"):
        verify_encoder(model)


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_an_encoder_whose_pooler_was_left_out(name: str) -> None:
    model = AutoModel.from_config(encoder_config(name), add_pooling_layer=False)
    assert model.pooler is None
    assert verify_encoder(model).bit_equal
    assert not [name for name in find_layout(model).head if "pooler" in name]
