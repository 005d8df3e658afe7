from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
)

from flwr_splitkd.errors import ConfigError, CutError
from flwr_splitkd.split import DeviceHalf, EdgeHalf, find_layout, refuse_trainable_shared

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 96,
    "pad_token_id": 1,
}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=False))


def batch() -> dict[str, Tensor]:
    ids = torch.arange(4, 24).reshape(2, 10)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


def test_device_half_holds_exactly_its_part() -> None:
    model = llama()
    layout = find_layout(model)
    sizes = {n: t.numel() for n, t in model.state_dict().items()}
    half = DeviceHalf(model, 2, layout)
    expected = [n for n in sizes if layout.unit_of(n) in layout.units(2)[0]]
    assert list(half.state_names()) == expected
    assert [n for n, _ in half.named_parameters()] == expected
    assert sum(p.numel() for p in half.parameters()) == sum(sizes[n] for n in expected)


def test_device_half_frees_what_it_drops() -> None:
    model = llama()
    layout = find_layout(model)
    blocks = [weakref.ref(b) for b in model.model.layers]
    tensors = {n: weakref.ref(p) for n, p in model.named_parameters()}
    half = DeviceHalf(model, 2, layout)
    del model
    gc.collect()
    assert [ref() is not None for ref in blocks] == [True, True, False, False]
    alive = {n for n, ref in tensors.items() if ref() is not None}
    assert alive == set(half.state_names())


def test_nothing_after_the_cut_runs() -> None:
    model = llama()
    layout = find_layout(model)
    calls: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    half = DeviceHalf(model, 2, layout)
    half(batch())
    assert "model.layers.1" in calls
    assert not {"model.norm", "lm_head"} & set(calls)


def test_device_half_of_a_tied_model_holds_the_matrix_once() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=96))
    layout = find_layout(model)
    model.transformer.wte.requires_grad_(False)
    half = DeviceHalf(model, 1, layout)
    assert "transformer.wte.weight" in half.state_names()
    assert "lm_head.weight" not in half.state_names()


def test_trainable_tied_embeddings_are_refused_by_both_halves() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=96))
    layout = find_layout(model)
    for half in (DeviceHalf, EdgeHalf):
        with pytest.raises(CutError, match=r"`transformer\.wte\.weight` of GPT2LMHeadModel .* 'untie' or 'freeze'"):
            half(model, 2, layout)
    model.transformer.wte.requires_grad_(False)
    refuse_trainable_shared(model, layout)


@pytest.mark.parametrize("half", [DeviceHalf, EdgeHalf])
def test_cut_out_of_range(half: type[DeviceHalf | EdgeHalf]) -> None:
    model = llama()
    with pytest.raises(CutError, match=r"`cut` is 4; expected [01]\.\.3 for a 4-layer model"):
        half(model, 4, find_layout(model))


def test_device_half_cannot_be_empty() -> None:
    model = llama()
    with pytest.raises(CutError, match=r"`cut` is 0; expected 1\.\.3"):
        DeviceHalf(model, 0, find_layout(model))


def test_batch_without_the_data() -> None:
    model = llama()
    half = DeviceHalf(model, 1, find_layout(model))
    with pytest.raises(ConfigError, match=r"`inputs` has \['attention_mask'\]; expected `input_ids`"):
        half({"attention_mask": torch.ones(1, 3)})


def test_restore_brings_back_the_same_objects_bit_for_bit() -> None:
    model = llama()
    layout = find_layout(model)
    modules = dict(model.named_modules())
    before = {n: t.clone() for n, t in model.state_dict().items()}
    tensors = {n: t.data_ptr() for n, t in model.state_dict().items()}
    with EdgeHalf(model, 3, layout) as half:
        assert {n for n, _ in half.named_parameters()} == {n for n in before if layout.unit_of(n) in layout.units(3)[1]}
        loss = half(torch.randn(2, 10, 32, requires_grad=True), batch()).logits.sum()
        loss.backward()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[n], before[n]) and after[n].data_ptr() == tensors[n] for n in before)
    assert dict(model.named_modules()) == modules
    assert half.restore() is model


def test_a_model_cannot_be_cut_twice() -> None:
    model = llama()
    layout = find_layout(model)
    with EdgeHalf(model, 2, layout), pytest.raises(CutError, match=r"`model\.layers\.0` .* already cut away"):
        EdgeHalf(model, 1, layout)
    EdgeHalf(model, 1, layout).restore()


def test_edge_half_called_around() -> None:
    model = llama()
    with EdgeHalf(model, 2, find_layout(model)), pytest.raises(CutError, match="without smashed data"):
        model(**batch())


def test_training_mode_reaches_blocks_kept_aside() -> None:
    model = llama().train()
    half = EdgeHalf(model, 2, find_layout(model)).eval()
    half.restore()
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("classifier", [False, True])
def test_cut_zero_takes_input_embeddings(classifier: bool) -> None:
    torch.manual_seed(0)
    cls = LlamaForSequenceClassification if classifier else LlamaForCausalLM
    model = cls(LlamaConfig(**TINY)).eval()
    layout = find_layout(model)
    inputs = batch()
    expected = model(**inputs).logits
    half = EdgeHalf(model, 0, layout)
    got = half(model.get_input_embeddings()(inputs["input_ids"]), {"attention_mask": inputs["attention_mask"]})
    assert torch.equal(got.logits, expected)
    assert "model.embed_tokens.weight" not in {n for n, _ in half.named_parameters()}


def test_cut_zero_of_a_module_without_embeddings() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    half = EdgeHalf(model, 0, find_layout(model, ""))
    with pytest.raises(CutError, match=r"`cut` is 0 but Sequential has no get_input_embeddings"):
        half(torch.zeros(1, 2), {"data_shape": torch.tensor([1, 2]), "data_zero": torch.zeros(())})


def test_token_ids_and_labels_never_travel() -> None:
    model = llama()
    half = DeviceHalf(model, 1, find_layout(model))
    inputs = {**batch(), "labels": batch()["input_ids"], "position_ids": torch.arange(10).expand(2, 10)}
    beside = half.edge_inputs(inputs)
    assert set(beside) == {"attention_mask", "position_ids"}
    half(inputs)  # labels do not disturb the device's forward pass


def test_token_mask_travels_only_when_the_attention_mask_says_something_else() -> None:
    model = llama()
    half = DeviceHalf(model, 1, find_layout(model))
    inputs = batch()
    inputs["input_ids"][0, 3] = 1
    mask = half.edge_inputs(inputs)["token_mask"]
    assert mask.dtype == torch.bool
    assert torch.equal(mask, inputs["input_ids"] != 1)


def test_positions_derived_from_token_ids_are_right_without_them() -> None:
    torch.manual_seed(0)
    model = RobertaForMaskedLM(RobertaConfig(**TINY, tie_word_embeddings=False)).eval()
    layout = find_layout(model)
    inputs = {"input_ids": batch()["input_ids"]}  # left to itself the model attends to its padding
    expected = model(**inputs).logits
    device = DeviceHalf(copy.deepcopy(model), 2, layout, shared_gradients="sum")
    edge = EdgeHalf(model, 2, layout, shared_gradients="sum")
    beside = device.edge_inputs(inputs)
    assert set(beside) == {"token_mask"}
    assert torch.equal(edge(device(inputs), beside).logits, expected)


def test_token_types_travel() -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**TINY)).eval()
    layout = find_layout(model)
    inputs = {**batch(), "token_type_ids": (torch.arange(10) > 4).long().expand(2, 10)}
    expected = model(**inputs).logits
    device = DeviceHalf(copy.deepcopy(model), 2, layout)
    assert torch.equal(EdgeHalf(model, 2, layout)(device(inputs), device.edge_inputs(inputs)).logits, expected)


class NormedStem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.BatchNorm1d(4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def test_running_statistics_of_the_stem_are_the_devices_business() -> None:
    model = NormedStem().train()
    layout = find_layout(model, "blocks")
    assert "stem.running_mean" in layout.stem
    before = {n: t.clone() for n, t in model.state_dict().items()}
    device = DeviceHalf(copy.deepcopy(model), 1, layout)
    inputs = {"x": torch.randn(8, 4) + 3}
    sent = device(inputs)
    with EdgeHalf(model, 1, layout) as edge:
        edge.train()
        edge(sent.detach(), device.edge_inputs(inputs))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.stem.training
    assert not torch.equal(device.model.stem.running_mean, before["stem.running_mean"])


def test_a_block_that_works_in_place_after_the_cut() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 3))
    layout = find_layout(model, "")
    device = DeviceHalf(copy.deepcopy(model), 1, layout)
    inputs = {"input": torch.randn(4, 3)}
    sent = device(inputs)
    received = sent.detach().clone().requires_grad_()
    before = received.detach().clone()
    EdgeHalf(model, 1, layout)(received, device.edge_inputs(inputs)).sum().backward()
    assert torch.equal(received, before)
    assert torch.equal(received.grad != 0, before > 0)


def test_shape_of_the_data_must_travel() -> None:
    model = NormedStem()
    edge = EdgeHalf(model, 1, find_layout(model, "blocks"))
    with pytest.raises(ConfigError, match="expected `data_shape` and `data_zero`"):
        edge(torch.zeros(2, 4), {})


def test_hidden_states_must_be_a_tensor() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks[1](self.blocks[0]((x, x)))[0]

    model = Pair()
    with pytest.raises(CutError, match="first argument is a tuple"):
        DeviceHalf(model, 1, find_layout(model, "blocks"))({"x": torch.zeros(1)})
