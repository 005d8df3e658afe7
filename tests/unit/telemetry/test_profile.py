"""Times of blocks, and the profiles that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MixtralConfig,
    MixtralModel,
)

from flwr_splitkd.costs import ModelShape, Workload, cut_terms, device_from_json, server_from_json, to_json
from flwr_splitkd.errors import ConfigError, CutError
from flwr_splitkd.split import find_layout
from flwr_splitkd.telemetry import (
    BlockSamples,
    Machine,
    count_block_flops,
    device_profile,
    edge_profile,
    measure_blocks,
    sample_blocks,
)
from flwr_splitkd.telemetry.passes import marks, place, reach_the_top, step

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
MACHINE = Machine(name="a board", cores=4, min_frequency_hz=1e8, max_frequency_hz=1e9, memory_bytes=2.0**30)


def llama(**settings: object) -> nn.Module:
    return LlamaModel(LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **settings}))


def llama_shape(blocks: int) -> ModelShape:
    return ModelShape(
        name="tiny",
        hidden_size=32,
        embedding_width=32,
        vocab_size=96,
        block_parameters=np.ones(blocks),
        block_flops_per_token=np.ones(blocks),
        block_flops_per_pair=np.ones(blocks),
        embedding_parameters=96 * 32,
        head_parameters=32,
        head_flops_per_token=0.0,
    )


def made_up(passes: int = 3) -> BlockSamples:
    """Two blocks of 1 and 2 s forward, twice that backward; the middle pass is the median."""
    offsets = np.linspace(-0.5, 0.5, passes)[:, None]
    return BlockSamples(
        model="made up",
        batch_size=2,
        sequence_length=8,
        forward_s=np.array([1.0, 2.0]) + offsets,
        backward_s=np.array([2.0, 4.0]) + offsets,
        embedding_s=np.full(passes, 0.25),
        forward_flops=np.array([3e9, 6e9]),
    )


class Counting:
    """A clock that ticks once each time that it is looked at, and remembers what was there to be seen."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.ticks, self.with_gradients = model, 0, []

    def mark(self) -> int:
        self.ticks += 1
        blocks = self.model.layers  # type: ignore[union-attr]
        self.with_gradients.append(
            [all(p.grad is not None for p in block.parameters()) for block in blocks]  # type: ignore[union-attr]
        )
        return self.ticks


def test_each_block_is_timed_forward_and_backward() -> None:
    samples = sample_blocks(llama(), batch_size=2, sequence_length=8, repeats=4, warmup=1, name="tiny")
    assert samples.forward_s.shape == samples.backward_s.shape == (4, 3)
    assert samples.embedding_s.shape == (4,)
    for array in (samples.forward_s, samples.backward_s, samples.embedding_s):
        assert np.isfinite(array).all() and (array > 0).all()
    assert np.isfinite(samples.flops) and samples.flops > 0
    assert (samples.spread >= 0).all() and samples.spread.shape == (3,)
    assert samples.times().model == "tiny"


def test_a_gradient_reaches_a_block_once_all_above_it_are_done() -> None:
    """So the time between two marks is that of one block's backward pass, with the gradients of its weights."""
    model = llama()
    clock = Counting(model)
    layout = find_layout(model)
    with marks(model, layout, clock.mark) as (forward, backward):
        top = reach_the_top(model, layout, torch.zeros((1, 4), dtype=torch.int64))
        top.backward(torch.ones_like(top))  # type: ignore[no-untyped-call]
    assert forward == [1, 2, 3, 4]
    assert backward == [5, 6, 7]
    assert clock.with_gradients[4:] == [[False, False, True], [False, True, True], [True, True, True]]
    assert model.embed_tokens.weight.grad is None  # type: ignore[union-attr]


def test_each_block_is_given_its_own_times() -> None:
    """On a clock that goes faster and faster, so that every difference is another."""

    class Squares:
        ticks = 0

        def mark(self) -> int:
            self.ticks += 1
            return self.ticks**2

        def differences(self, moments: Sequence[int]) -> list[float]:
            return [float(then - first) for first, then in pairwise(moments)]

    model = llama()
    forward, backward = step(model, find_layout(model), torch.zeros((1, 4), dtype=torch.int64), Squares())
    assert forward == [3, 5, 7, 9]  # the embedding, then block 0 to 2
    assert backward == [17, 15, 13]  # block 2 comes first in time


def test_the_model_is_left_as_it_was() -> None:
    model = llama().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    seen: list[tuple[int, int]] = []
    measure_blocks(
        model,
        batch_size=1,
        sequence_length=4,
        repeats=2,
        warmup=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert torch.equal(torch.rand(1), expected)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_only_what_runs_is_given_memory() -> None:
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    model.model.rotary_emb = LlamaModel(model.config).rotary_emb  # a buffer, which a skeleton would have
    place(model, find_layout(model), torch.device("cpu"))
    assert model.lm_head.weight.is_meta
    held = [
        parameter for name, parameter in model.named_parameters() if name.startswith(("model.layers", "model.embed"))
    ]
    assert held and all(not parameter.is_meta and torch.isfinite(parameter).all() for parameter in held)
    assert model.model.layers[0].self_attn.q_proj.weight.std() > 0


@pytest.mark.parametrize(
    ("model", "per_sample"),
    [
        # 2 S (q + k + v + o + 3 d m) + 4 S^2 d
        (llama(), 2 * 8 * (1024 + 512 + 512 + 1024 + 3 * 32 * 64) + 4 * 64 * 32),
        # ... with two of the experts and the router in the place of one MLP
        (
            MixtralModel(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)),
            2 * 8 * (3072 + 2 * 3 * 32 * 64 + 4 * 32) + 4 * 64 * 32,
        ),
        # ... with a plain MLP
        (BertModel(BertConfig(**SIZES)), 2 * 8 * (4 * 1024 + 2 * 32 * 64) + 4 * 64 * 32),
        (
            GPT2Model(GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=96, bos_token_id=1, eos_token_id=1)),
            2 * 8 * (4 * 1024 + 2 * 32 * 128) + 4 * 64 * 32,
        ),
    ],
    ids=["llama", "mixtral", "bert", "gpt2"],
)
def test_flops_are_those_of_the_formulas(model: nn.Module, per_sample: int) -> None:
    experts = getattr(model.config, "_experts_implementation", None)
    flops = count_block_flops(model, find_layout(model), sequence_length=8)
    np.testing.assert_allclose(flops, [per_sample] * 3, rtol=1e-12)
    assert getattr(model.config, "_experts_implementation", None) == experts


def test_medians_speed_and_spread() -> None:
    samples = made_up()
    times = samples.times()
    assert times.forward_s == (1.0, 2.0) and times.backward_s == (2.0, 4.0) and times.embedding_s == 0.25
    assert samples.flops == pytest.approx(3 * 9e9 / 9)
    np.testing.assert_allclose(samples.spread, [1.0 / 3, 1.0 / 6])  # of -1, 0, 1 around 3 and 6


def test_blocks_that_were_not_measured_are_like_those_of_their_kind() -> None:
    times = made_up().times([[0], [1], [1], [0, 1], [0]])
    assert times.forward_s == (1.0, 2.0, 2.0, 1.5, 1.0)
    assert times.backward_s == (2.0, 4.0, 4.0, 3.0, 2.0)


def test_the_planner_reads_a_measured_device() -> None:
    samples = sample_blocks(llama(), batch_size=2, sequence_length=8, repeats=3, warmup=0, name="tiny")
    device = device_profile(samples, MACHINE, power_w=20.0)
    assert device_from_json(to_json(device)) == device
    assert device.flops == pytest.approx(samples.flops)
    assert device.compute_power_w == pytest.approx(20.0)
    workload = Workload(batch_size=2, sequence_length=8, num_batches=5, local_epochs=2)
    times = samples.times()
    both = np.add(times.forward_s, times.backward_s)
    expected = 10 * (np.cumsum(both)[:2] + times.embedding_s)
    np.testing.assert_allclose(cut_terms(llama_shape(3), None, workload, device).device_s, expected)


def test_a_device_without_a_known_clock() -> None:
    """Its speed and its power are what they are, whatever the clock."""
    silent = Machine(name="a box", cores=4, memory_bytes=1e9)
    device = device_profile(made_up(), silent, power_w=15.0)
    assert device.frequency_hz == 1.0
    assert device.flops == pytest.approx(made_up().flops)
    assert device.compute_power_w == pytest.approx(15.0)


def test_an_edge() -> None:
    edge = edge_profile(made_up(), MACHINE, power_w=100.0, static_power_w=30.0)
    assert server_from_json(to_json(edge)) == edge
    assert (edge.min_frequency_hz, edge.max_frequency_hz, edge.cores) == (1e8, 1e9, 4)
    assert edge.flops_at(1e9) == pytest.approx(made_up().flops)
    assert edge.power_coefficient * 1e9**3 == pytest.approx(100.0)
    other = MACHINE.told(max_frequency_hz=2e9, min_frequency_hz=5e8, cores=2, memory_bytes=5e9)
    given = edge_profile(made_up(), other)
    assert (given.min_frequency_hz, given.max_frequency_hz, given.cores, given.memory_bytes) == (5e8, 2e9, 2, 5e9)
    assert given.flops_at(2e9) == pytest.approx(made_up().flops)


def test_what_nobody_tells_is_asked_for() -> None:
    silent = Machine(name="a box", cores=4)
    with pytest.raises(ConfigError, match="`max_frequency_hz` of a box is not known"):
        edge_profile(made_up(), silent.told(memory_bytes=1e9))
    for describe in (device_profile, edge_profile):
        with pytest.raises(ConfigError, match="`memory_bytes` of a box is not known"):
            describe(made_up(), silent.told(max_frequency_hz=1e9))
    with pytest.raises(ConfigError, match="is 2e\\+09; expected at most 1e\\+09"):
        edge_profile(made_up(), MACHINE.told(min_frequency_hz=2e9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "`batch_size` is 0; expected at least 1"),
        ({"sequence_length": 0}, "`sequence_length` is 0; expected at least 1"),
        ({"repeats": 0}, "`repeats` is 0; expected at least 1"),
        ({"warmup": -1}, "`warmup` is -1; expected at least 0"),
        ({"sequence_length": 65}, "`sequence_length` is 65; expected at most 64"),
        ({"device": "meta"}, "The compute device is 'meta', whose work cannot be timed"),
        ({"device": "abacus"}, "The compute device is 'abacus'; expected 'cpu'"),
        ({"device": "cuda:99"}, "The compute device is 'cuda:99', and torch .* finds [0-9]+ CUDA devices"),
    ],
)
def test_numbers_out_of_range(settings: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"batch_size": 1, "sequence_length": 4, **settings}
    with pytest.raises(ConfigError, match=message):
        sample_blocks(llama(max_position_embeddings=64), **arguments)  # type: ignore[arg-type]


def test_models_that_cannot_be_measured() -> None:
    with pytest.raises(ConfigError, match="Linear does not read tokens"):
        sample_blocks(nn.Linear(2, 2), batch_size=1, sequence_length=4)
    with pytest.raises(CutError, match="1 block"):
        sample_blocks(llama(num_hidden_layers=1), batch_size=1, sequence_length=4)
