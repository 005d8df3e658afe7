"""Split equals unsplit, per architecture and cut: outputs, every gradient, every buffer.

Equal means `torch.equal` per tensor. Where a kernel forces a difference, the worst tensor's relative norm
must be at most 1e-6 and the kernel is named in `KERNELS`. The table is printed at the end of the module.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from flwr_splitkd.split import DeviceHalf, EdgeHalf, Layout, find_layout, seed_dropout

LAYERS, VOCAB, PAD = 6, 96, 1
BASE = {
    "num_hidden_layers": LAYERS,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "tie_word_embeddings": False,
}
DROPOUT = (
    "attention_dropout attention_probs_dropout_prob attn_pdrop attn_dropout dropout embd_pdrop "
    "embedding_dropout "
    "hidden_dropout hidden_dropout_prob mlp_dropout resid_pdrop activation_dropout"
).split()
GQA = {"num_key_value_heads": 2}
MOE = {**GQA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

CAUSAL: dict[str, dict[str, Any]] = {
    "llama": GQA,
    "mistral": {**GQA, "sliding_window": 3},
    "qwen2": {**GQA, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 3},
    "qwen3": {**GQA, "head_dim": 8},
    "gemma": {**GQA, "head_dim": 8},
    "gemma2": {**GQA, "head_dim": 8, "sliding_window": 3},
    "gemma3_text": {**GQA, "head_dim": 8, "sliding_window": 3},
    "phi": {},
    "phi3": GQA,
    "gpt2": {"n_inner": 48},
    "gpt_neo": {
        "num_layers": LAYERS,
        "attention_types": [[["global", "local"], LAYERS // 2]],
        "window_size": 3,
    },
    "gptj": {"rotary_dim": 4, "n_inner": 48},
    "gpt_neox": {},
    "gpt_bigcode": {"n_inner": 48},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "bloom": {},
    "falcon": {},
    "mpt": {},
    "stablelm": GQA,
    "starcoder2": {**GQA, "sliding_window": 3},
    "olmo": GQA,
    "olmo2": GQA,
    "granite": {**GQA, "logits_scaling": 4.0, "residual_multiplier": 0.5},
    "cohere": GQA,
    "cohere2": {**GQA, "sliding_window": 3},
    "smollm3": GQA,
    "glm": {**GQA, "head_dim": 8},
    "helium": {**GQA, "head_dim": 8},
    "mixtral": {**GQA, "num_local_experts": 4},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 24},
    "qwen3_moe": {**MOE, "head_dim": 8},
    "olmoe": MOE,
    "xglm": {"ffn_dim": 48},
    "biogpt": {},
    "mamba": {},
}
MASKED: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "distilbert": {"hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "modernbert": {"local_attention": 4},
    "mpnet": {},
    "ernie": {},
    "convbert": {"embedding_size": 32},
    "roformer": {"embedding_size": 32},
}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    name: {**MASKED[name], "num_labels": 3}
    for name in ("bert", "roberta", "distilbert", "electra", "deberta-v2", "modernbert")
} | {name: {**CAUSAL[name], "num_labels": 3} for name in ("llama", "gpt2", "qwen2")}

TASKS: dict[str, tuple[Any, dict[str, dict[str, Any]]]] = {
    "causal": (AutoModelForCausalLM, CAUSAL),
    "masked": (AutoModelForMaskedLM, MASKED),
    "classifier": (AutoModelForSequenceClassification, CLASSIFIERS),
}
# A tensor that both halves use gets its gradient in two sums instead of one, and float32 addition rounds.
KERNELS = {
    "mpnet": "two-part sum of relative_attention_bias' gradient",
    "deberta": "two-part sum of rel_embeddings' gradient",
    "deberta-v2": "two-part sum of rel_embeddings' gradient",
}
MODES = {
    "train": {"dropout": 0.0, "checkpointing": False},
    "train+dropout": {"dropout": 0.1, "checkpointing": False},
    "train+dropout+checkpointing": {"dropout": 0.1, "checkpointing": True},
}
CUTS = (1, LAYERS // 2, LAYERS - 1)
CASES = [(task, name) for task, (_, table) in TASKS.items() for name in table]


@dataclass
class Row:
    case: str
    cut: int
    verdicts: dict[str, str] = field(default_factory=dict)


_rows: dict[tuple[str, int], Row] = {}


@pytest.fixture(scope="module", autouse=True)
def _table(request: pytest.FixtureRequest, covered: Callable[[str, object], None]) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print_table()
    covered("architectures cut", len({case.partition(":")[2] for case, _ in _rows}))
    covered("pairs of architecture and cut", len(_rows))


def print_table() -> None:
    print(f"\n{'architecture':28s} {'cut':>3s}  " + "  ".join(f"{mode:>28s}" for mode in MODES))
    for row in _rows.values():
        print(f"{row.case:28s} {row.cut:3d}  " + "  ".join(f"{row.verdicts.get(m, '-'):>28s}" for m in MODES))
    architectures = {case.partition(":")[2] for case, _ in _rows}
    for name in sorted(architectures & set(KERNELS)):
        print(f"{name}: {KERNELS[name]}")
    print(f"{len(architectures)} architectures, {len(_rows)} pairs of architecture and cut")


def build(task: str, name: str, dropout: float) -> nn.Module:
    auto, table = TASKS[task]
    config = CONFIG_MAPPING[name](**{**BASE, **table[name]})
    config.use_cache = False
    for attribute in DROPOUT:
        if hasattr(config, attribute):
            setattr(config, attribute, dropout)
    torch.manual_seed(0)
    model: nn.Module = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # zero biases and unit scales would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


def padded_batch(task: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, VOCAB, (3, 10), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    mask[2, 9:] = 0
    ids = ids.masked_fill(mask == 0, PAD)
    if task == "classifier":
        ids[0, 4] = PAD  # a padding token inside the text: the attention mask does not tell the edge of it
    return {"input_ids": ids, "attention_mask": mask}


def loss_of(output: Any) -> Tensor:
    logits = output if isinstance(output, Tensor) else output.logits
    return logits.float().pow(2).mean() + logits.float().logsumexp(-1).mean()


def grads(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def buffers(model: nn.Module) -> dict[str, Tensor]:
    names = {n for n, _ in model.named_buffers()}
    return {f"buffer {n}": t.clone() for n, t in model.state_dict().items() if n in names}


def unsplit(model: nn.Module, layout: Layout, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    whole = copy.deepcopy(model)
    with seed_dropout(whole, layout, seed=3) as dropout:
        dropout.at(step=5, microbatch=2)
        output = whole(**inputs)
        dropout.at(step=5, microbatch=3)  # the next micro-batch's forward may come before this one's backward
        loss_of(output).backward()
    return {
        "logits": output if isinstance(output, Tensor) else output.logits,
        **grads(whole),
        **buffers(whole),
    }


def split(model: nn.Module, layout: Layout, cut: int, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    device = DeviceHalf(copy.deepcopy(model), cut, layout, shared_gradients="sum")
    edge = EdgeHalf(copy.deepcopy(model), cut, layout, shared_gradients="sum")
    with (
        seed_dropout(device.model, layout, seed=3) as on_device,
        seed_dropout(edge.model, layout, seed=3) as on_edge,
    ):
        on_device.at(step=5, microbatch=2)
        on_edge.at(step=5, microbatch=2)
        sent = device(inputs)
        received = sent.detach().clone().requires_grad_()
        beside = device.edge_inputs(inputs)
        assert layout.data_input not in beside
        output = edge(received, beside)
        on_device.at(step=5, microbatch=3)
        on_edge.at(step=5, microbatch=3)
        loss_of(output).backward()
        sent.backward(received.grad)
    result = {"logits": output if isinstance(output, Tensor) else output.logits, **grads(device.model)}
    for name, parameter in edge.named_parameters():
        if parameter.grad is not None:
            result[name] = result[name] + parameter.grad if name in result else parameter.grad
    held_by_edge = {f"buffer {n}" for n in edge.state_names()}
    result |= buffers(device.model) | {n: t for n, t in buffers(edge.model).items() if n in held_by_edge}
    return result


def compare(
    case: str, cut: int, mode: str, layout: Layout, expected: dict[str, Tensor], got: dict[str, Tensor]
) -> None:
    row = _rows.setdefault((case, cut), Row(case, cut))
    assert set(got) == set(expected)
    assert all(torch.isfinite(t).all() for t in expected.values() if t.is_floating_point())
    differing = [n for n in expected if not torch.equal(expected[n], got[n])]
    if not differing:
        row.verdicts[mode] = "equal"
        return
    relative = {n: float((got[n] - expected[n]).double().norm() / expected[n].double().norm()) for n in differing}
    worst = max(relative, key=relative.__getitem__)
    row.verdicts[mode] = f"{relative[worst]:.1e}"
    assert case.partition(":")[2] in KERNELS, (
        f"{worst} differs by {relative[worst]:.1e}; {len(differing)} tensors differ"
    )
    assert set(differing) <= set(layout.shared)
    assert relative[worst] <= 1e-6, worst


@pytest.mark.parametrize(("task", "name"), CASES, ids=[f"{task}-{name}" for task, name in CASES])
def test_split_equals_unsplit(task: str, name: str) -> None:
    if name not in CONFIG_MAPPING:
        pytest.skip(f"{name} does not exist in this version of transformers")
    inputs = padded_batch(task)
    layout = None
    for mode, settings in MODES.items():
        model = build(task, name, dropout=settings["dropout"])
        layout = layout or find_layout(model)
        assert layout.num_blocks == LAYERS
        if settings["checkpointing"]:
            if not model.supports_gradient_checkpointing:
                continue
            model.gradient_checkpointing_enable()
        expected = unsplit(model, layout, inputs)
        for cut in CUTS:
            compare(f"{task}:{name}", cut, mode, layout, expected, split(model, layout, cut, inputs))


def test_dropout_is_on_and_depends_on_the_step() -> None:
    """Guard of the test above: with dropout its losses must move with the seed."""
    model = build("causal", "gpt2", dropout=0.1)
    layout = find_layout(model)
    inputs = padded_batch("causal")
    logits = {}
    for step in (0, 1):
        with seed_dropout(model, layout, seed=3) as dropout:
            dropout.at(step)
            logits[step] = model(**inputs).logits
    assert not torch.equal(logits[0], logits[1])


def test_at_least_thirty_architectures_exist_here() -> None:
    assert len({name for _, name in CASES if name in CONFIG_MAPPING}) >= 30


class SmallCNN(nn.Module):
    """Stem, blocks with batch normalisation, head; the blocks are three attributes, not a container."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.first = self._block(8, 8)
        self.second = self._block(8, 12)
        self.third = self._block(12, 12)
        self.fourth = self._block(12, 16)
        self.classifier = nn.Linear(16, 5)

    @staticmethod
    def _block(width: int, out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.fourth(self.third(self.second(self.first(self.stem(image)))))
        return self.classifier(hidden.mean((2, 3)))


def small_sequential() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("case", "make", "blocks", "inputs"),
    [
        ("user:cnn", SmallCNN, ["first", "second", "third", "fourth"], {"image": torch.randn(4, 3, 6, 6)}),
        ("user:sequential", small_sequential, "", {"input": torch.randn(4, 6)}),
    ],
)
def test_user_named_blocks(
    case: str, make: Callable[[], nn.Module], blocks: str | list[str], inputs: dict[str, Tensor]
) -> None:
    torch.manual_seed(0)
    model = make().train()
    layout = find_layout(model, blocks)
    if case == "user:cnn":
        assert {n.partition(".")[0] for n in layout.stem} == {"stem"}
        assert {n.partition(".")[0] for n in layout.head} == {"classifier"}
    expected = unsplit(model, layout, inputs)
    for cut in range(1, layout.num_blocks):
        compare(case, cut, "train+dropout", layout, expected, split(model, layout, cut, inputs))
