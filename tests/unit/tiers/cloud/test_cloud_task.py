from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional

from flwr_splitkd.errors import ConfigError, NonFiniteError, ProtocolError, TensorError
from flwr_splitkd.models import SerialAdapterConfig
from flwr_splitkd.tiers.cloud import CloudLLM, CloudTask, TaskSettings
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from tiny_llms import BOS, EOS, VOCAB, WIDTH, tiny_llm

# peft 0.18 says so of any model
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")

SLM = 24
SERIAL = SerialAdapterConfig(bottleneck=4)
LORA = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.2)
LORA_GPT2 = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
MODULES = {"serial": SERIAL, "lora": LORA}
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
LABELS = torch.tensor([[11, 12, 13, EOS], [21, EOS, -100, -100], [31, 32, EOS, -100]])
TOKENS = {"input_ids": torch.tensor([[BOS, 5, 6, 7], [BOS, 8, 0, 0], [BOS, 9, 10, 0]])}
TOKENS["attention_mask"] = (TOKENS["input_ids"] > 0).long()


def hidden(device: int = 0, step: int = 0) -> Tensor:
    return torch.randn(3, 5, SLM, generator=torch.Generator().manual_seed(100 * device + step))


def settings(peft: SerialAdapterConfig | LoraConfig = SERIAL, **changes: object) -> TaskSettings:
    given = {"optimizer": OptimizerSettings(learning_rate=1e-2), **changes}
    return TaskSettings(slm_width=SLM, peft=peft, **given)  # type: ignore[arg-type]


def new_task(peft: SerialAdapterConfig | LoraConfig = SERIAL, *, llm: str = "llama", **changes: object) -> CloudTask:
    return trained(CloudLLM(tiny_llm(llm)).add_task("qa", settings(peft, **changes)))


def trained(task: CloudTask) -> CloudTask:
    """A module of which all parts matter: new ones begin with a factor of 0."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in task.parameters_by_name().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return task


def weights(task: CloudTask) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in task.state().items() if name.startswith("weight/")}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- one device


def serial_hooks(llm: nn.Module, own: dict[str, nn.Parameter]) -> list[object]:
    """The serial adapter once more, from the formula."""

    def hook(name: str) -> Callable[[object, object, Tensor], Tensor]:
        def change(_layer: object, _args: object, x: Tensor) -> Tensor:
            down, up = (
                (own[f"module.{name}.{part}.weight"], own[f"module.{name}.{part}.bias"]) for part in ("down", "up")
            )
            return x + functional.linear(functional.gelu(functional.linear(x, *down)), *up)

        return change

    layers = {name.rpartition(".down.weight")[0][7:] for name in own if name.endswith("down.weight")}
    return [llm.get_submodule(name).register_forward_hook(hook(name)) for name in layers]


def lora_hooks(llm: nn.Module, own: dict[str, nn.Parameter]) -> list[object]:
    """LoRA with PEFT's default scale, alpha / r = 8 / 2."""

    def hook(name: str) -> Callable[[object, tuple[Tensor], Tensor], Tensor]:
        a, b = own[f"module.{name}.lora_A.weight"], own[f"module.{name}.lora_B.weight"]
        return lambda _layer, args, x: x + args[0] @ a.T @ b.T * 4

    layers = {name.rpartition(".lora_A.weight")[0][7:] for name in own if name.endswith("lora_A.weight")}
    return [llm.get_submodule(name).register_forward_hook(hook(name)) for name in layers]


def reference_loss(llm: nn.Module, own: dict[str, nn.Parameter], given: Tensor) -> Tensor:
    """Projection, first token, prefix and answer: row by row, from whole logits."""
    embed, losses = llm.get_input_embeddings(), []  # type: ignore[operator]
    for row, mask, labels in zip(given, MASK, LABELS, strict=True):
        projected = functional.linear(row[mask.bool()], own["projection.weight"], own["projection.bias"])
        answer = labels[labels >= 0]
        sequence = torch.cat([embed(torch.tensor([BOS])), projected, embed(answer)]).unsqueeze(0)
        logits = llm(inputs_embeds=sequence, use_cache=False).logits[0, len(projected) : -1]
        losses.append(functional.cross_entropy(logits, answer, reduction="none"))
    return torch.cat(losses).mean()


@pytest.mark.parametrize(
    ("llm", "peft", "hooks"),
    [
        ("llama", SERIAL, serial_hooks),
        ("gpt2", SERIAL, serial_hooks),
        ("qwen2", SERIAL, serial_hooks),
        ("llama", LoraConfig(r=2, target_modules=["q_proj", "down_proj"]), lora_hooks),
        ("qwen2", LoraConfig(r=2, target_modules=["o_proj"]), lora_hooks),
    ],
)
def test_loss_and_gradients_are_those_of_plain_autograd(
    llm: str, peft: LoraConfig, hooks: Callable[..., object]
) -> None:
    model = tiny_llm(llm)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    sgd = OptimizerSettings(name="sgd", learning_rate=1.0, weight_decay=0.0)
    task = trained(CloudLLM(model).add_task("qa", settings(peft, optimizer=sgd)))
    plain = tiny_llm(llm).requires_grad_(False)
    own = {name: nn.Parameter(p.detach().clone()) for name, p in task.parameters_by_name().items()}
    hooks(plain, own)
    given = hidden().requires_grad_()
    expected = reference_loss(plain, own, given)
    torch.autograd.backward(expected)

    done = task.differentiate(hidden(), MASK, LABELS, key=(0, 0))
    assert done.num_tokens == 9 and done.reference_loss is None
    assert done.loss == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(done.gradient, given.grad, rtol=1e-4, atol=1e-6)
    assert task.evaluate(hidden(), MASK, LABELS) == (pytest.approx(9 * float(expected), rel=1e-5), 9)
    # With SGD at rate 1 the step is the gradient.
    before = {name: p.detach().clone() for name, p in task.parameters_by_name().items()}
    task.step([(0, 0)])
    for name, parameter in task.parameters_by_name().items():
        assert own[name].grad is not None and own[name].grad.any(), name
        torch.testing.assert_close(before[name] - parameter.detach(), own[name].grad, rtol=1e-3, atol=2e-6)


def test_a_half_precision_llm_trains_a_module_in_full() -> None:
    cloud = CloudLLM(tiny_llm().to(torch.bfloat16))
    for name, peft in MODULES.items():
        task = trained(cloud.add_task(name, settings(peft)))
        assert {p.dtype for p in task.parameters_by_name().values()} == {torch.float32}
        for dtype in (torch.bfloat16, torch.float32):
            gradient = task.differentiate(hidden().to(dtype), MASK, LABELS, key=(0, 0)).gradient
            assert gradient is not None and gradient.dtype == dtype and gradient.any()
            task.step([(0, 0)])


def test_layers_that_are_loaded_as_they_run(tmp_path: Path) -> None:
    """As the device map of an LLM that does not fit does: hooks on every module, weights on no device in between."""
    places = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "model.layers.0", "lm_head"], "cpu")
    spread = {**places, "model.layers.1": "disk"}
    outcomes = []
    for llm in (
        tiny_llm(),
        dispatch_model(tiny_llm(), spread, main_device="cpu", offload_dir=str(tmp_path)),
    ):
        cloud = CloudLLM(llm)
        task = trained(cloud.add_task("qa", settings()))
        done = task.differentiate(hidden(), MASK, LABELS, key=(0, 0))
        outcomes.append((done, task.step([(0, 0)]), weights(task), task.generate(hidden(), MASK, 4)))
    (plain, plain_step, plain_weights, plain_tokens), (other, step, after, tokens) = outcomes
    assert plain.loss == other.loss and torch.equal(plain.gradient, other.gradient)
    assert plain_step == step and same(plain_weights, after) and torch.equal(plain_tokens, tokens)
    assert next(llm.get_submodule("model.layers.1").parameters()).is_meta
    with pytest.raises(ConfigError, match="on no device until they run; .* or take a SerialAdapterConfig"):
        cloud.add_task("lora", settings(LORA))


def test_an_embedding_that_is_on_no_device() -> None:
    with pytest.raises(ConfigError, match="on no device until it runs"):
        CloudLLM(cpu_offload(tiny_llm(), execution_device=torch.device("cpu")))


def test_what_trains_has_names_that_say_nothing_of_the_task() -> None:
    cloud = CloudLLM(tiny_llm())
    for name, peft in MODULES.items():
        one, other = cloud.add_task(f"{name}-a", settings(peft)), cloud.add_task(f"{name}.b", settings(peft))
        names = list(one.parameters_by_name())
        assert names == list(other.parameters_by_name())
        assert names[:2] == ["projection.weight", "projection.bias"]
        assert all(name.startswith("module.model.layers.") for name in names[2:])
        assert same(weights(one), weights(other)), "the seed alone decides"
    assert list(cloud.tasks) == ["serial-a", "serial.b", "lora-a", "lora.b"]


def test_a_configuration_of_peft_stays_as_it_was_given() -> None:
    cloud, config = CloudLLM(tiny_llm()), LoraConfig(r=2, target_modules="all-linear")
    for name in ("a", "b"):
        task = cloud.add_task(name, settings(config))
        assert config.target_modules == "all-linear"
        assert len(task.parameters_by_name()) == 2 + 2 * 7 * 2, "seven layers of two blocks, in two parts each"


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_checkpointed_layers_give_the_same(name: str, use_reentrant: bool) -> None:
    """Also their dropout, which is drawn again; and from tokens, whose embeddings train nothing."""
    outcomes = []
    for checkpointing in (False, True):
        cloud = CloudLLM(tiny_llm())
        if checkpointing:
            cloud.llm.gradient_checkpointing_enable({"use_reentrant": use_reentrant})  # type: ignore[operator]
        task = trained(cloud.add_task("qa", settings(MODULES[name])))
        done = task.differentiate(hidden(), MASK, LABELS, key=(0, 0))
        task.differentiate_tokens(TOKENS, LABELS, key=(1, 0))
        outcomes.append((done, task.step([(0, 0), (1, 0)]), weights(task)))
    (plain, plain_step, plain_weights), (again, again_step, again_weights) = outcomes
    assert plain.loss == again.loss and torch.equal(plain.gradient, again.gradient)
    assert plain_step == again_step and same(plain_weights, again_weights)


def test_dropout_is_for_training_alone() -> None:
    """Also before the first step: the layers of a new LoRA module are in training mode."""
    for task in (new_task(LORA), new_task(llm="gpt2")):
        before = torch.get_rng_state()
        outcomes = [task.evaluate(hidden(), MASK, LABELS) for _ in range(2)]
        task.differentiate(hidden(), MASK, LABELS, key=(0, 0))
        outcomes.append(task.evaluate(hidden(), MASK, LABELS))
        assert outcomes[0] == outcomes[1] == outcomes[2]
        assert torch.equal(torch.get_rng_state(), before)


def test_dropout_depends_on_the_key_alone() -> None:
    """GPT-2's own dropout and LoRA's."""
    for task in (new_task(LORA), new_task(llm="gpt2"), new_task(LORA_GPT2, llm="gpt2")):
        first = task.differentiate(hidden(), MASK, LABELS, key=(3, 5))
        torch.rand(17)
        task.differentiate(hidden(1), MASK, LABELS, key=(4, 5))
        task.discard([(3, 5)])
        again = task.differentiate(hidden(), MASK, LABELS, key=(3, 5))
        other = task.differentiate(hidden(), MASK, LABELS, key=(3, 6))
        assert first.loss == again.loss and torch.equal(first.gradient, again.gradient)
        assert first.loss != other.loss


@pytest.mark.parametrize("name", MODULES)
def test_the_reference_loss_disturbs_nothing(name: str) -> None:
    states = []
    for on in (False, True):
        torch.manual_seed(9)
        task = new_task(MODULES[name], reference_loss=on)
        torch.manual_seed(10)
        done = task.differentiate(hidden(), MASK, LABELS, key=(0, 0), reference=TOKENS)
        states.append((done, torch.get_rng_state(), task.step([(0, 0)]), weights(task)))
    (off, off_rng, off_step, off_weights), (on_, on_rng, on_step, on_weights) = states
    assert off.reference_loss is None and on_.reference_loss is not None
    assert off.loss == on_.loss and torch.equal(off.gradient, on_.gradient)
    assert torch.equal(off_rng, on_rng) and off_step == on_step and same(off_weights, on_weights)
    # It is the loss of the same answers after the context's tokens.
    task = new_task(MODULES[name])
    total, tokens = task.evaluate_tokens(TOKENS, LABELS)
    assert on_.reference_loss == pytest.approx(total / tokens, rel=1e-6)


# ---- many devices


@pytest.mark.parametrize("name", MODULES)
def test_the_sum_does_not_depend_on_the_order_of_arrival(name: str) -> None:
    keys = [(0, 4), (1, 2), (2, 4)]
    outcomes = []
    for order in itertools.permutations(keys):
        task = new_task(MODULES[name], max_grad_norm=0.5)
        for key in order:
            task.differentiate(hidden(*key), MASK, LABELS, key=key)
            if key == (1, 2):  # something else in between
                task.evaluate(hidden(9), MASK, LABELS)
                task.generate(hidden(9), MASK, 2)
        assert task.pending == order
        outcomes.append((task.step(keys), weights(task)))
        assert task.pending == () and task.next_step == 1
    assert all(result == outcomes[0][0] and same(after, outcomes[0][1]) for result, after in outcomes)


def test_a_step_is_torchs_own_over_the_sum() -> None:
    """Clipping, AdamW and the schedule, against torch's over one backward pass of the summed loss."""
    schedule = lambda step: 1 / (1 + step)  # noqa: E731
    task, plain = new_task(max_grad_norm=0.3, lr_schedule=schedule), new_task()
    parameters = plain.parameters_by_name()
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.01)
    llm = tiny_llm().requires_grad_(False)
    serial_hooks(llm, parameters)
    for step in range(3):
        keys = [(device, step) for device in range(3)]
        for key in keys:
            task.differentiate(hidden(*key), MASK, LABELS, key=key)
        result = task.step(keys)
        optimizer.zero_grad()
        torch.autograd.backward(sum(reference_loss(llm, parameters, hidden(*key)) for key in keys))
        norm = nn.utils.clip_grad_norm_(parameters.values(), 0.3)
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimizer.step()
        assert (result.step, result.learning_rate) == (step, pytest.approx(1e-2 / (1 + step)))
        assert result.grad_norm == pytest.approx(float(norm), rel=1e-4) and result.grad_norm > 0.3
    for name, parameter in task.parameters_by_name().items():
        torch.testing.assert_close(parameter, parameters[name], rtol=1e-3, atol=1e-4)


def test_a_step_takes_what_it_names_and_no_more() -> None:
    task = new_task()
    before = weights(task)
    for device in range(3):
        task.differentiate(hidden(device), MASK, LABELS, key=(device, 0))
    for keys in ([], [(0, 0), (0, 0)], [(0, 0), (7, 0)]):
        with pytest.raises(ProtocolError, match="expected at least one key, each once, of the 3 gradients that wait"):
            task.step(keys)
    with pytest.raises(ProtocolError, match="device 1's step 0 waits already"):
        task.differentiate(hidden(1), MASK, LABELS, key=(1, 0))
    assert same(weights(task), before) and len(task.pending) == 3 and task.next_step == 0
    task.step([(1, 0)])
    task.discard([(2, 0), (5, 5)])
    assert task.pending == ((0, 0),)
    alone = new_task()
    alone.differentiate(hidden(1), MASK, LABELS, key=(1, 0))
    alone.step([(1, 0)])
    assert same(weights(task), weights(alone))


@pytest.mark.parametrize("pair", [("serial", "serial"), ("lora", "lora"), ("serial", "lora"), ("lora", "serial")])
def test_tasks_keep_out_of_each_others_way(pair: tuple[str, str]) -> None:
    cloud = CloudLLM(tiny_llm())
    frozen = {name.replace("base_layer.", ""): p.clone() for name, p in cloud.llm.state_dict().items()}
    one = trained(cloud.add_task("one", settings(MODULES[pair[0]])))
    other = trained(cloud.add_task("other", settings(MODULES[pair[1]], seed=1)))
    alone, other_alone = new_task(MODULES[pair[0]]), new_task(MODULES[pair[1]], seed=1)
    untouched = other.state()
    for step in range(3):
        for task in (one, alone):
            done = task.differentiate(hidden(0, step), MASK, LABELS, key=(0, step))
            if task is one:
                other.differentiate(hidden(1, step), MASK, LABELS, key=(1, step))
                assert all(p.grad is None for each in (one, other) for p in each.parameters_by_name().values())
                together = done
        assert together.loss == done.loss and torch.equal(together.gradient, done.gradient)
        assert one.step([(0, step)]) == alone.step([(0, step)])
        assert all(p.grad is None for p in cloud.llm.parameters())
    assert same(one.state(), alone.state())
    assert same(other.state(), untouched)
    other_alone.differentiate(hidden(1, 0), MASK, LABELS, key=(1, 0))
    assert other.step([(1, 0)]) == other_alone.step([(1, 0)])
    assert same(one.state(), alone.state()) and same(other.state(), other_alone.state())
    after = {name.replace("base_layer.", ""): p for name, p in cloud.llm.state_dict().items() if "lora_" not in name}
    assert same(after, frozen)
    ids = torch.arange(4, 14).unsqueeze(0)
    assert torch.equal(cloud.llm(input_ids=ids).logits, tiny_llm()(input_ids=ids).logits), "no module outside its task"


# ---- tokens, answers


def test_training_from_tokens_leaves_the_projection_alone() -> None:
    for name, peft in MODULES.items():
        task = new_task(peft, optimizer=OptimizerSettings(name="sgd", learning_rate=0.1))
        before = weights(task)
        loss, _ = task.evaluate_tokens(TOKENS, LABELS)
        for step in range(8):
            mean, tokens = task.differentiate_tokens(TOKENS, LABELS, key=(0, step))
            assert tokens == 9 and mean > 0
            task.step([(0, step)])
        changed = {key for key, tensor in weights(task).items() if not torch.equal(tensor, before[key])}
        assert changed == {key for key in before if "projection" not in key}, name
        assert task.evaluate_tokens(TOKENS, LABELS)[0] < loss


@pytest.mark.parametrize("name", MODULES)
def test_answers_end_as_they_were_learnt(name: str) -> None:
    task = new_task(MODULES[name], optimizer=OptimizerSettings(learning_rate=3e-2), max_new_tokens=6)
    for step in range(40):
        task.differentiate(hidden(), MASK, LABELS, key=(0, step))
        task.step([(0, step)])
    assert torch.equal(task.generate(hidden(), MASK), LABELS)
    assert task.generate(hidden(), MASK, 2).shape == (3, 2)
    assert task.generate_tokens(TOKENS, 3).shape[1] <= 3
    with pytest.raises(ProtocolError, match="`max_new_tokens` is 0"):
        task.generate(hidden(), MASK, 0)


def test_nothing_is_something_too() -> None:
    """No position before the first token, and no answer."""
    task = new_task()
    nothing = task.differentiate(hidden(), MASK, LABELS[:, :0], key=(0, 0))
    assert (nothing.loss, nothing.num_tokens) == (0, 0) and not nothing.gradient.any()
    empty = task.differentiate(hidden()[:, :0], MASK[:, :0], LABELS, key=(1, 0))
    assert empty.num_tokens == 9 and empty.gradient.shape == (3, 0, SLM)
    assert task.generate(hidden()[:, :0], MASK[:, :0], 2).shape == (3, 2)
    assert task.step([(0, 0), (1, 0)]).grad_norm > 0


# ---- hand-over


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("optimizer", [OptimizerSettings(), OptimizerSettings(name="sgd", momentum=0.9)])
def test_training_goes_on_from_a_state_as_if_nothing_had_been(name: str, optimizer: OptimizerSettings) -> None:
    def run(task: CloudTask, first: int, last: int) -> None:
        for step in range(first, last):
            for device in (0, 1):
                task.differentiate(hidden(device, step), MASK, LABELS, key=(device, step))
            task.step([(0, step), (1, step)])

    given = {"optimizer": optimizer, "lr_schedule": lambda step: 1 / (1 + step)}
    whole = new_task(MODULES[name], **given)
    initial = whole.state()
    run(whole, 0, 2)
    state = whole.state()
    assert {key.split("/")[0] for key in state} == {"weight", "moment", "next_step"}
    later = CloudLLM(tiny_llm()).add_task("later", settings(MODULES[name], seed=8, **given))
    later.differentiate(hidden(), MASK, LABELS, key=(0, 0))
    later.load_state(state)
    assert same(later.state(), state) and later.pending == () and later.next_step == 2
    run(whole, 2, 4)
    # Dropout follows the settings' seed, which differs: only without it do both go on alike.
    if name == "serial":
        run(later, 2, 4)
        assert same(later.state(), whole.state())
    again = new_task(MODULES[name], **given)
    again.load_state(state)
    run(again, 2, 4)
    assert same(again.state(), whole.state())
    again.load_state(initial)
    assert same(again.state(), initial) and again.next_step == 0


def test_weights_alone_begin_anew() -> None:
    task, fresh = new_task(), new_task()
    task.differentiate(hidden(), MASK, LABELS, key=(0, 0))
    task.step([(0, 0)])
    task.load_state(weights(fresh))
    assert task.next_step == 0 and same(task.state(), fresh.state())


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    task = new_task()
    task.differentiate(hidden(), MASK, LABELS, key=(0, 0))
    task.step([(0, 0)])
    task.differentiate(hidden(), MASK, LABELS, key=(0, 1))
    state = task.state()
    last = list(task.parameters_by_name())[-1]
    wrong: list[tuple[dict[str, Tensor], type[Exception], str]] = [
        ({f"weight/{last}": torch.zeros(3)}, TensorError, r"of shape \(3,\); expected torch.float32"),
        ({f"weight/{last}": state[f"weight/{last}"].double()}, TensorError, "is torch.float64"),
        ({f"weight/{last}": state[f"weight/{last}"] + torch.nan}, NonFiniteError, "NaN or infinite"),
        ({"weight/other": torch.zeros(3)}, ProtocolError, "The first name that differs is 'other'"),
        ({f"moment/odd/{last}": torch.zeros(3)}, ProtocolError, r"has the moments .*'odd'.*; expected \['exp_avg'"),
        ({f"moment/exp_avg/{last}": torch.zeros(3)}, TensorError, "moment/exp_avg"),
        ({"moment/exp_avg/other": torch.zeros(3)}, ProtocolError, "'other'"),
        ({"next_step": torch.tensor(-1)}, TensorError, "`next_step` of the state is -1"),
        ({"nothing": torch.tensor(-1)}, ProtocolError, "'nothing'"),
    ]
    for change, kind, message in wrong:
        with pytest.raises(kind, match=message):
            task.load_state({**state, **change})
        assert same(task.state(), state) and task.pending == ((0, 1),)
    del state[f"weight/{last}"]
    with pytest.raises(ProtocolError, match="differs is"):
        task.load_state(state)


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"hidden": hidden()[..., :-1]}, TensorError, r"expected floats of shape \[batch, positions, 24\]"),
        ({"hidden": hidden()[0]}, TensorError, "`hidden` is torch.float32 of shape"),
        ({"hidden": hidden().long()}, TensorError, "`hidden` is torch.int64"),
        ({"hidden": hidden()[:0], "mask": MASK[:0], "labels": LABELS[:0]}, TensorError, "a batch of at least 1"),
        ({"hidden": hidden() + torch.inf}, NonFiniteError, "`hidden` has 360 of 360 values NaN or infinite"),
        ({"mask": MASK[:, :-1]}, TensorError, r"`mask` is torch.int64 of shape \(3, 4\); expected .* \(3, 5\)"),
        ({"mask": MASK.float()}, TensorError, "`mask` is torch.float32"),
        ({"labels": LABELS[:-1]}, TensorError, "`labels` has 2 rows; expected 3"),
        ({"labels": LABELS.float()}, TensorError, "`labels` is torch.float32"),
        ({"labels": LABELS > 0}, TensorError, "`labels` is torch.bool"),
        ({"labels": LABELS[0]}, TensorError, r"`labels` is torch.int64 of shape \(4,\)"),
        ({"labels": LABELS + VOCAB}, TensorError, r"`labels` has the token 107; expected 0\.\.95, or -100"),
        ({"labels": LABELS - 5}, TensorError, r"`labels` has the token -3; expected"),
        ({"labels": LABELS.new_zeros(3, 60)}, TensorError, "66 positions long; expected at most 64"),
        ({"reference": None}, ProtocolError, "computes the reference loss and got no tokens"),
        (
            {"reference": {"input_ids": MASK}},
            ProtocolError,
            r"`reference` has \['input_ids'\]; expected .*'attention_mask'",
        ),
        ({"reference": {**TOKENS, "attention_mask": MASK}}, TensorError, "`attention_mask` is"),
        (
            {"reference": {**TOKENS, "input_ids": TOKENS["input_ids"] + VOCAB}},
            TensorError,
            "`input_ids` has the token 97",
        ),
        (
            {"reference": {"input_ids": MASK - 101 + MASK, "attention_mask": MASK}},
            TensorError,
            "`input_ids` has the token -99",
        ),
        (
            {"reference": {"input_ids": MASK * 0 - 100, "attention_mask": MASK}},
            TensorError,
            "-100 where its mask is 1",
        ),
    ],
)
def test_tensors_that_do_not_fit(change: dict[str, object], kind: type[Exception], message: str) -> None:
    task = new_task(reference_loss=True)
    before = task.state()
    given = {"hidden": hidden(), "mask": MASK, "labels": LABELS, "reference": TOKENS, **change}
    with pytest.raises(kind, match=message):
        task.differentiate(
            given.pop("hidden"), given.pop("mask"), given.pop("labels"), key=(0, 0), reference=given["reference"]
        )
    assert task.pending == () and same(task.state(), before)


def test_numbers_that_are_none() -> None:
    task = new_task(max_grad_norm=1.0)
    for key in ((0, 0), (1, 0)):
        task.differentiate(hidden(*key), MASK, LABELS, key=key)
    before = task.state()
    # Two gradients that are finite, and whose sum is not.
    for gradients in task._pending.values():
        gradients["projection.bias"].fill_(3e38)
    kept = [{name: g.clone() for name, g in gradients.items()} for gradients in task._pending.values()]
    with pytest.raises(NonFiniteError, match="gradient norm of step 0 of task 'qa'"):
        task.step([(0, 0), (1, 0)])
    assert same(task.state(), before) and len(task.pending) == 2 and task.next_step == 0
    assert all(same(gradients, was) for gradients, was in zip(task._pending.values(), kept, strict=True))
    task.discard(task.pending)
    with torch.no_grad():
        task.parameters_by_name()["projection.weight"].fill_(torch.nan)
    for method in (
        lambda: task.differentiate(hidden(), MASK, LABELS, key=(2, 0)),
        lambda: task.evaluate(hidden(), MASK, LABELS),
    ):
        with pytest.raises(NonFiniteError, match="The loss of"):
            method()
    assert task.pending == ()


def test_a_gradient_that_is_none_is_not_kept() -> None:
    """A finite loss whose gradient is not."""
    task = new_task()
    parameter = task.parameters_by_name()["projection.bias"]
    handle = parameter.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteError, match="device 0's step 0 by 'projection.bias'"):
        task.differentiate(hidden(), MASK, LABELS, key=(0, 0))
    handle.remove()
    assert task.pending == () and parameter.grad is None
    task.differentiate(hidden(), MASK, LABELS, key=(0, 0))


def test_an_error_in_the_midst_leaves_the_llm_as_it_was() -> None:
    cloud = CloudLLM(tiny_llm("gpt2"))
    tasks = [cloud.add_task(str(place), settings(peft)) for place, peft in enumerate((SERIAL, LORA_GPT2))]
    ids = torch.arange(4, 14).unsqueeze(0)
    before = cloud.llm(input_ids=ids).logits
    for task in map(trained, tasks):
        rng = torch.get_rng_state()
        with pytest.raises(TensorError, match="66 positions"):
            task.differentiate(hidden(), MASK, LABELS.new_zeros(3, 60), key=(0, 0))
        assert not cloud.llm.training and torch.equal(torch.get_rng_state(), rng)
        assert torch.equal(cloud.llm(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slm_width": 0}, "`slm_width` is 0; expected an integer of at least 1"),
        ({"max_new_tokens": True}, "`max_new_tokens` is True"),
        ({"max_grad_norm": 0.0}, "`max_grad_norm` is 0.0; expected a finite number above 0, or None"),
        ({"peft": None}, "`peft` is a NoneType; expected a SerialAdapterConfig or a LoraConfig"),
        ({"peft": LoraConfig(bias="all")}, "`bias` of the LoraConfig is 'all'"),
        ({"peft": LoraConfig(init_lora_weights="pissa")}, "`init_lora_weights` is 'pissa'"),
        ({"peft": LoraConfig(modules_to_save=["lm_head"])}, "`modules_to_save` of the LoraConfig"),
        ({"peft": LoraConfig(inference_mode=True)}, "`inference_mode` of the LoraConfig is True"),
    ],
)
def test_settings_that_are_out_of_range(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskSettings(**{"slm_width": SLM, **change})  # type: ignore[arg-type]


def test_tasks_that_cannot_be() -> None:
    cloud = CloudLLM(tiny_llm())
    cloud.add_task("qa", settings())
    with pytest.raises(ConfigError, match=r"`name` of the task is 'qa'; expected names other than \['qa'\]"):
        cloud.add_task("qa", settings())
    for targets, message in [
        (["no_such"], "`peft` does not fit LlamaForCausalLM"),
        (["q_proj", "lm_head"], "takes in 'lm_head'"),
        (r".*embed_tokens|.*q_proj", "takes in 'model.embed_tokens'"),
    ]:
        for _ in range(2):  # with and without a task of its kind before
            with pytest.raises(ConfigError, match=message):
                cloud.add_task("lora", settings(LoraConfig(target_modules=targets)))
        if "lora-good" not in cloud.tasks:
            cloud.add_task("lora-good", settings(LORA))
    assert list(cloud.tasks) == ["qa", "lora-good"]
    with pytest.raises(ConfigError, match="has no such layer"):
        cloud.add_task("serial", settings(SerialAdapterConfig(target_modules=("c_proj",))))
    bad = tiny_llm()
    bad.config.bos_token_id = bad.generation_config.bos_token_id = VOCAB  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="`bos_token_id` of the LLM is 96"):
        CloudLLM(bad).add_task("qa", settings())
    CloudLLM(bad).add_task("qa", settings(add_bos=False))


def test_projected_data_have_the_size_of_embeddings() -> None:
    cloud = CloudLLM(tiny_llm())
    task = cloud.add_task("qa", settings())
    own = task.parameters_by_name()
    projected = functional.linear(torch.randn(400, SLM), own["projection.weight"], own["projection.bias"])
    embeddings = cloud.llm.get_input_embeddings().weight  # type: ignore[operator]
    assert projected.shape == (400, WIDTH)
    assert float(projected.detach().std()) == pytest.approx(float(embeddings.std()), rel=0.15)
