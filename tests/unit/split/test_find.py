from __future__ import annotations

import types

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from flwr_splitkd.errors import CutError, UncuttableModelError
from flwr_splitkd.split import find_layout

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 96,
    "pad_token_id": 0,
}


def test_llama_with_its_own_projection() -> None:
    layout = find_layout(LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=False)))
    assert layout.blocks == "model.layers"
    assert layout.block_names == tuple(f"model.layers.{i}" for i in range(4))
    assert layout.stem == ("model.embed_tokens.weight",)
    assert layout.head == ("model.norm.weight", "lm_head.weight")
    assert layout.shared == ()
    assert layout.arity == 0


def test_tied_embedding_is_shared_under_the_embeddings_name() -> None:
    layout = find_layout(GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=96)))
    assert layout.shared == ("transformer.wte.weight",)
    assert layout.stem == ("transformer.wpe.weight",)
    assert "lm_head.weight" in layout.head


def test_a_pooler_that_is_not_called_belongs_to_the_edge() -> None:
    layout = find_layout(BertForSequenceClassification(BertConfig(**TINY)))
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= set(layout.head)
    assert "bert.embeddings.token_type_embeddings.weight" in layout.stem


def test_a_billion_parameters_on_the_meta_device() -> None:
    config = LlamaConfig(
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=8192,
        vocab_size=128256,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert find_layout(model).num_blocks == 16
    assert all(p.is_meta for p in model.parameters())


def test_probing_leaves_the_model_and_the_generator_alone() -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    find_layout(model)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.config.num_hidden_layers == 4
    assert model.config.vocab_size == 96


def test_layers_that_share_weights() -> None:
    model = AlbertForMaskedLM(AlbertConfig(**TINY, embedding_size=16))
    with pytest.raises(UncuttableModelError, match=r"AlbertForMaskedLM cannot be cut: `num_hidden_groups` is 1"):
        find_layout(model)


def test_layers_that_read_token_ids() -> None:
    with torch.device("meta"):
        model = Gemma3nForCausalLM(
            Gemma3nTextConfig(
                **{**TINY, "intermediate_size": [48] * 4},
                num_key_value_heads=2,
                head_dim=8,
                vocab_size_per_layer_input=96,
                hidden_size_per_layer_input=8,
                num_kv_shared_layers=0,
                layer_types=["sliding_attention", "full_attention"] * 2,
                activation_sparsity_pattern=[0.0] * 4,
                laurel_rank=4,
                altup_num_inputs=2,
            )
        )
    with pytest.raises(UncuttableModelError, match=r"Gemma3nForCausalLM .* `hidden_size_per_layer_input` is 8"):
        find_layout(model)


def test_layers_that_share_keys_and_values() -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    model.config.num_kv_shared_layers = 2
    with pytest.raises(UncuttableModelError, match=r"`num_kv_shared_layers` is 2"):
        find_layout(model)


def test_router_logits_in_the_loss() -> None:
    model = MixtralForCausalLM(
        MixtralConfig(**TINY, num_key_value_heads=2, num_local_experts=2, output_router_logits=True)
    )
    with pytest.raises(UncuttableModelError, match=r"`output_router_logits` is True .* Set it to False"):
        find_layout(model)


def test_layers_that_are_left_out_at_random() -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    model.config.layerdrop = 0.1
    with pytest.raises(UncuttableModelError, match=r"`layerdrop` is 0\.1 .* Set it to 0"):
        find_layout(model)


def test_encoder_decoder() -> None:
    config = BartConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=96,
    )  # fmt: skip
    with pytest.raises(UncuttableModelError, match=r"BartForSequenceClassification .* encoder-decoder"):
        find_layout(BartForSequenceClassification(config))


def test_two_lists_of_layers_are_ambiguous() -> None:
    model = BertForMaskedLM(BertConfig(**TINY))
    model.second = nn.ModuleList(model.bert.encoder.layer)
    with pytest.raises(CutError, match=r"2 candidates \['bert\.encoder\.layer', 'second'\].*blocks="):
        find_layout(model)


def test_one_block_is_not_enough() -> None:
    model = LlamaForCausalLM(LlamaConfig(**{**TINY, "num_hidden_layers": 1}))
    with pytest.raises(CutError, match=r"has 1 block\(s\); expected at least 2"):
        find_layout(model)


class Tangled(nn.Module):
    """Looks like a transformers model; `skip` leaves a block out."""

    def __init__(self, config: types.SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(config.num_hidden_layers)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        for layer in self.layers[1:]:
            hidden = layer(hidden)
        return hidden


def test_a_model_that_leaves_blocks_out() -> None:
    model = Tangled(types.SimpleNamespace(num_hidden_layers=3, vocab_size=50, pad_token_id=0))
    with pytest.raises(UncuttableModelError, match=r"Tangled ran its blocks as \['layers\.1', 'layers\.2'\]"):
        find_layout(model)


def test_a_class_that_cannot_be_built_from_its_config() -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    model.config.hidden_act = "no_such_activation"
    with pytest.raises(UncuttableModelError, match=r"LlamaForCausalLM cannot be probed: .*no_such_activation"):
        find_layout(model)


def test_blocks_of_an_unknown_module_must_be_named() -> None:
    with pytest.raises(CutError, match=r"`blocks` is None and Sequential has no config"):
        find_layout(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


def test_a_path_that_does_not_exist() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(CutError, match=r"`blocks` is 'features', .* expected one of \['', '1'\]"):
        find_layout(model, "features")
    with pytest.raises(CutError, match="`blocks` names '7'"):
        find_layout(model, ["0", "7"])
    with pytest.raises(CutError, match="`stem` names '9'"):
        find_layout(model, "1", stem=["9"])


def test_stem_of_an_unknown_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    by_order = find_layout(model, "1")
    assert by_order.stem == ("0.weight", "0.bias")
    assert by_order.head == ("2.weight", "2.bias")
    by_name = find_layout(model, "1", stem=["2"])
    assert by_name.stem == ("2.weight", "2.bias")
