"""What each half of a split encoder holds, and which models are refused."""

from __future__ import annotations

import copy
import gc
import types
import weakref
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from tiny_encoders import ENCODERS, LAYERS, PAD, SPLIT_POINTS, WIDTH, encoder_config, padded_tokens, tiny_encoder
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, ViTConfig

from flwr_splitkd.errors import ConfigError, CutError, TensorError, UncuttableModelError
from flwr_splitkd.models import add_adapters, build_skeleton, inner_model, materialize
from flwr_splitkd.split import (
    DeviceEncoder,
    Layout,
    ServerEncoder,
    check_encoder,
    check_split_point,
    encoder_units,
    find_layout,
    last_hidden_state,
    unit_state,
)
from flwr_splitkd.tiers.units import trained_names, versioned_units

LAYOUT = Layout("layers", tuple(f"layers.{i}" for i in range(3)), ("embed",), ("norm",))
HALVES = [DeviceEncoder, ServerEncoder]


def deberta(trainable: bool) -> nn.Module:
    model = tiny_encoder("deberta", relative_attention=True, pos_att_type=["c2p", "p2c"], hidden_dropout_prob=0.0)
    model.get_submodule("encoder.rel_embeddings").requires_grad_(trainable)
    return model


def skeleton(name: str) -> nn.Module:
    return build_skeleton(lambda: AutoModel.from_config(encoder_config(name)))


def real_bytes(model: nn.Module) -> int:
    """Bytes of every tensor that the modules hold under whatever name, but for buffers that no state dict has."""
    storages = {}
    for module in model.modules():
        buffers = {n: t for n, t in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for value in (*vars(module).values(), *module._parameters.values(), *buffers.values()):
            if isinstance(value, Tensor) and not value.is_meta:
                storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize(
    ("split_point", "device", "edge"),
    [
        (1, ("stem", "blocks.0"), ("blocks.1", "blocks.2", "head")),
        (2, ("stem", "blocks.0", "blocks.1"), ("blocks.2", "head")),
        (3, ("stem", "blocks.0", "blocks.1", "blocks.2", "head"), ()),
    ],
)
def test_units(split_point: int, device: tuple[str, ...], edge: tuple[str, ...]) -> None:
    assert encoder_units(LAYOUT, split_point) == (device, edge)


def test_shared_units_are_on_both_sides_until_the_edge_has_nothing() -> None:
    layout = Layout("layers", LAYOUT.block_names, ("embed",), ("norm",), ("table",))
    assert all("shared" in units for units in encoder_units(layout, 2))
    assert encoder_units(layout, 3) == (("stem", "shared", "blocks.0", "blocks.1", "blocks.2", "head"), ())


@pytest.mark.parametrize("split_point", [0, 4, -1, True, 1.0, "2"])
def test_split_points_out_of_range(split_point: int) -> None:
    with pytest.raises(CutError, match=rf"`split_point` is {split_point!r}; expected 1\.\.3 for a 3-layer encoder\. "):
        check_split_point(LAYOUT, split_point)


@pytest.mark.parametrize("half", HALVES)
def test_a_half_checks_its_split_point_before_it_changes_the_model(half: type[DeviceEncoder | ServerEncoder]) -> None:
    model = tiny_encoder("bert")
    names = list(model.state_dict())
    with pytest.raises(CutError, match=r"`split_point` is 5; expected 1\.\.4 .* use an encoder with 5 layers"):
        half(model, 5, find_layout(model))
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("split_point", SPLIT_POINTS)
@pytest.mark.parametrize("name", ENCODERS)
def test_each_half_holds_its_units_and_no_more(name: str, split_point: int) -> None:
    model = tiny_encoder(name)
    layout = find_layout(model)
    sizes = {n: t.numel() * t.element_size() for n, t in model.state_dict().items()}
    device, server = (
        DeviceEncoder(skeleton(name), split_point, layout),
        ServerEncoder(skeleton(name), split_point, layout),
    )
    for half, units in zip((device, server), encoder_units(layout, split_point), strict=True):
        expected = [n for n in sizes if layout.unit_of(n) in units]
        assert list(half.state_names()) == expected
        assert [n for n, _ in half.named_parameters()] == expected
        assert len(list(half.parameters())) == len(expected)
        materialize(half, {n: model.state_dict()[n].clone() for n in expected})
        assert not any(p.is_meta for p in half.parameters())
        zeros = 4 * len(layout.stem) if half is server and split_point < LAYERS else 0  # one element for each tensor
        assert real_bytes(half.model) == sum(sizes[n] for n in expected) + zeros


def test_the_edge_frees_what_the_device_has() -> None:
    model = tiny_encoder("roberta")
    layout = find_layout(model)
    blocks = [weakref.ref(model.get_submodule(name)) for name in layout.block_names]
    tensors = {n: weakref.ref(p) for n, p in model.named_parameters()}
    server = ServerEncoder(model, 2, layout)
    del model
    gc.collect()
    assert [ref() is not None for ref in blocks] == [False, False, True, True]
    assert {n for n, ref in tensors.items() if ref() is not None} == set(server.state_names())


def test_positions_come_from_real_buffers() -> None:
    real = dict(tiny_encoder("bert").named_buffers())
    server = ServerEncoder(skeleton("bert"), 1, find_layout(tiny_encoder("bert")))
    assert "embeddings.position_ids" in real
    assert {n: t.tolist() for n, t in server.model.named_buffers()} == {n: t.tolist() for n, t in real.items()}


def test_a_buffer_of_the_stem_is_kept_but_neither_sent_nor_received() -> None:
    model = tiny_encoder("bert")
    found = find_layout(model)
    model.get_submodule("embeddings").register_buffer("scale", torch.full((1,), 3.0))
    server = ServerEncoder(model, 1, replace(found, stem=(*found.stem, "embeddings.scale")))
    assert "embeddings.scale" not in server.state_names()
    assert server.model.get_buffer("embeddings.scale").item() == 3.0


def test_the_stem_is_zeros_without_a_gradient() -> None:
    model = tiny_encoder("roberta")
    table = ServerEncoder(model, 1, find_layout(model)).model.get_submodule("embeddings.word_embeddings").weight
    assert (table.shape, table.stride(), table.requires_grad) == ((96, WIDTH), (0, 0), False)
    assert not table.any()


def test_the_stem_moves_with_the_half_and_stays_small() -> None:
    model = tiny_encoder("roberta")
    server = ServerEncoder(skeleton("roberta"), 1, find_layout(model))
    table = server.model.get_submodule("embeddings.word_embeddings")
    assert table.weight.device.type == "cpu"
    materialize(server, {n: model.state_dict()[n] for n in server.state_names()}, device="meta")
    assert (table.weight.device.type, table.weight.stride()) == ("meta", (0, 0))
    assert server.to("meta") is server


def test_tensors_of_the_other_half_are_refused() -> None:
    model = tiny_encoder("bert")
    server = ServerEncoder(skeleton("bert"), 2, find_layout(model))
    with pytest.raises(
        TensorError, match=r"`embeddings\.word_embeddings\.weight` was received but BertModel does not hold"
    ):
        materialize(server, model.state_dict())
    with pytest.raises(TensorError, match=r"not received \(34 missing\)"):
        materialize(server, {})


def test_at_the_last_split_point_the_edge_passes_on_what_it_gets() -> None:
    model = tiny_encoder("bert").eval()
    layout, inputs = find_layout(model), padded_tokens()
    expected = model(**inputs).last_hidden_state
    device = DeviceEncoder(model, LAYERS, layout).eval()
    server = ServerEncoder(skeleton("bert"), LAYERS, layout).eval()
    materialize(server, {})
    smashed = device({**inputs, "labels": inputs["input_ids"]})
    assert torch.equal(smashed, expected)
    assert server(smashed, device.edge_inputs(inputs)) is smashed
    assert list(server.named_parameters()) == []
    assert server.state_names() == ()
    with pytest.raises(CutError, match="the other half holds"):
        unit_state(server.model, layout, "blocks.0")


@pytest.mark.parametrize("split_point", SPLIT_POINTS)
def test_what_travels_is_the_same_at_every_split_point(split_point: int) -> None:
    model = tiny_encoder("roberta")
    device = DeviceEncoder(model, split_point, find_layout(model))
    inputs = padded_tokens()
    beside = device.edge_inputs(inputs)
    assert beside.keys() == {"attention_mask", "token_mask"}
    assert torch.equal(beside["token_mask"], inputs["input_ids"] != PAD)


@pytest.mark.parametrize("split_point", [2, LAYERS])
def test_training_mode_reaches_every_module(split_point: int) -> None:
    model = tiny_encoder("electra")
    layout = find_layout(model)
    for half in (DeviceEncoder(copy.deepcopy(model), split_point, layout), ServerEncoder(model, split_point, layout)):
        assert half.eval() is half
        assert not any(m.training for m in half.model.modules())
        assert half.train() is half
        assert all(m.training for m in half.model.modules())


def test_a_batch_without_tokens() -> None:
    model = tiny_encoder("bert")
    device = DeviceEncoder(model, LAYERS, find_layout(model))
    with pytest.raises(ConfigError, match=r"`inputs` has \['attention_mask'\]; expected `input_ids`"):
        device({"attention_mask": torch.ones(1, 3)})


def test_a_model_cannot_be_cut_twice() -> None:
    model = tiny_encoder("bert")
    layout = find_layout(model)
    ServerEncoder(model, 2, layout)
    with pytest.raises(CutError, match="already cut away"):
        ServerEncoder(model, 1, layout)


@pytest.mark.parametrize("split_point", [2, LAYERS])
@pytest.mark.parametrize("half", HALVES)
def test_tensors_that_both_halves_train_are_refused(
    half: type[DeviceEncoder | ServerEncoder], split_point: int
) -> None:
    """At L as well, where one side trains alone: the next split point may be lower."""
    model = deberta(trainable=True)
    with pytest.raises(CutError, match=r"`encoder\.rel_embeddings\.weight` of DebertaModel is used by both halves"):
        half(model, split_point, find_layout(model))


def test_frozen_shared_tensors_are_on_both_sides() -> None:
    model = deberta(trainable=False).eval()
    layout, inputs = find_layout(model), padded_tokens()
    expected = model(**inputs).last_hidden_state
    device, server = DeviceEncoder(copy.deepcopy(model), 2, layout), ServerEncoder(copy.deepcopy(model), 2, layout)
    assert all("encoder.rel_embeddings.weight" in half.state_names() for half in (device, server))
    assert torch.equal(server(device(inputs), device.edge_inputs(inputs)), expected)


@pytest.mark.parametrize("split_point", SPLIT_POINTS)
def test_adapters(split_point: int) -> None:
    """An embedding's adapter too, which belongs to the stem and is no module but an entry of a ParameterDict."""
    config = LoraConfig(r=2, target_modules=["query", "word_embeddings"], init_lora_weights=False)
    model = inner_model(add_adapters(tiny_encoder("roberta"), config)).eval()
    layout, inputs = find_layout(model), padded_tokens()
    assert any("lora_embedding" in name for name in layout.stem)
    expected = model(**inputs).last_hidden_state
    device = DeviceEncoder(copy.deepcopy(model), split_point, layout)
    server = ServerEncoder(
        inner_model(build_skeleton(lambda: AutoModel.from_config(encoder_config("roberta")), config)),
        split_point,
        layout,
    ).eval()
    materialize(server, {n: model.state_dict()[n] for n in server.state_names()})
    assert torch.equal(server(device(inputs), device.edge_inputs(inputs)), expected)
    held = {layout.unit_of(name) for name in trained_names(server.model)}
    assert held == {f"blocks.{index}" for index in range(split_point, LAYERS)}
    assert all("lora_" in name for name, p in server.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("split_point", SPLIT_POINTS)
def test_versioned_units_are_those_of_the_half(split_point: int) -> None:
    model = tiny_encoder("modernbert")
    layout = find_layout(model)
    for half, units in zip(
        (DeviceEncoder(copy.deepcopy(model), split_point, layout), ServerEncoder(model, split_point, layout)),
        encoder_units(layout, split_point),
        strict=True,
    ):
        assert set(versioned_units(half.model, layout)) == set(units)


def test_models_with_a_head_are_refused() -> None:
    for auto, name, inner in (
        (AutoModelForMaskedLM, "roberta", "RobertaModel"),
        (AutoModelForCausalLM, "llama", "LlamaModel"),
    ):
        model = auto.from_config(encoder_config(name))
        with pytest.raises(UncuttableModelError, match=rf"is no encoder: it puts a head on a {inner} .* AutoModel"):
            check_encoder(model)
        check_encoder(model.base_model)
        for half in HALVES:
            with pytest.raises(UncuttableModelError, match="it puts a head on"):
                half(model, 1, LAYOUT)


def test_a_decoder_without_its_head_is_an_encoder() -> None:
    model = tiny_encoder("llama").eval()
    layout, inputs = find_layout(model), padded_tokens()
    expected = model(**inputs).last_hidden_state
    device, server = DeviceEncoder(copy.deepcopy(model), 2, layout), ServerEncoder(copy.deepcopy(model), 2, layout)
    assert torch.equal(server(device(inputs), device.edge_inputs(inputs)), expected)


def test_models_of_other_data_than_tokens_are_refused() -> None:
    model = AutoModel.from_config(
        ViTConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, intermediate_size=8, image_size=32)
    )
    with pytest.raises(UncuttableModelError, match=r"ViTModel is no encoder: its config lacks `vocab_size`"):
        check_encoder(model)


def test_albert_is_refused_by_name() -> None:
    model = AutoModel.from_config(encoder_config("albert", embedding_size=16))
    with pytest.raises(UncuttableModelError, match=r"AlbertModel cannot be cut: `num_hidden_groups` is 1"):
        find_layout(model)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (types.SimpleNamespace(logits=torch.zeros(1, 2, 3)), "SimpleNamespace has none"),
        (types.SimpleNamespace(last_hidden_state=torch.zeros(1, 2)), r"has one of shape \(1, 2\)"),
        ((torch.zeros(1, 2, 3),), "tuple has none"),
    ],
)
def test_outputs_that_are_no_encoding(output: object, message: str) -> None:
    with pytest.raises(
        UncuttableModelError, match=rf"Linear is no encoder: expected .*`last_hidden_state`.* {message}"
    ):
        last_hidden_state(nn.Linear(1, 1), output)
