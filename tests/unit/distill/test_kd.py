"""The chunked loss against a dense one in float64, written with torch's own functions and autograd."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flwr_splitkd.distill import (
    DistillationLoss,
    Head,
    LogitTransform,
    LossTerms,
    distillation_loss,
    distillation_loss_from_logits,
)
from flwr_splitkd.errors import ConfigError, DataError

TOLERANCE = 1e-5
IGNORE = -100
TOKENS, VOCAB, STUDENT_WIDTH, TEACHER_WIDTH = 13, 211, 24, 40
PLAIN, CAPPED, SCALED = LogitTransform(), LogitTransform(softcap=3.0), LogitTransform(scale=0.3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Case:
    """A batch, the heads and the settings; ``dense`` and ``chunked`` compute the same loss."""

    def __init__(
        self,
        *,
        tokens: int = TOKENS,
        teacher_vocab: int = VOCAB,
        ignored: str = "some",
        bias: bool = False,
        trainable: bool = True,
        student: LogitTransform = PLAIN,
        teacher: LogitTransform = PLAIN,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> None:
        draw = torch.Generator().manual_seed(7)

        def normal(*shape: int, std: float = 1.0) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64).mul(std).to(dtype)

        self.settings = {"temperature": 1.0, "kd_ratio": 0.5, "beta": 0.0, "chunk_size": 5} | settings
        self.transforms = student, teacher
        self.hidden = normal(tokens, STUDENT_WIDTH).requires_grad_()
        self.weight = normal(VOCAB, STUDENT_WIDTH, std=0.5).requires_grad_(trainable)
        self.bias = normal(VOCAB).requires_grad_(trainable) if bias else None
        self.teacher_hidden = normal(tokens, TEACHER_WIDTH)
        self.teacher_weight = normal(teacher_vocab, TEACHER_WIDTH, std=0.4)
        self.teacher_bias = normal(teacher_vocab) if bias else None
        self.labels = torch.randint(VOCAB, (tokens,), generator=draw)
        if ignored == "all":
            self.labels[:] = IGNORE
        elif ignored == "some":
            self.labels[1::3] = IGNORE

    @property
    def inputs(self) -> list[Tensor]:
        candidates = (self.hidden, self.weight, self.bias)
        return [x for x in candidates if x is not None and x.requires_grad]

    def chunked(self, **more: Any) -> LossTerms:
        student, teacher = self.transforms
        return distillation_loss(
            self.hidden,
            Head(weight=self.weight, bias=self.bias, transform=student),
            self.teacher_hidden,
            Head(weight=self.teacher_weight, bias=self.teacher_bias, transform=teacher),
            self.labels,
            **(self.settings | {"teacher_vocab": "slice"} | more),
        )

    def dense(self, num_tokens: int | None = None) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return loss, sum of CE, sum of the divergence and gradients, all in float64."""
        leaves = {id(x): x.detach().double().requires_grad_() for x in self.inputs}

        def wide(x: Tensor | None) -> Tensor | None:
            return None if x is None else leaves.get(id(x), x.double())

        student, teacher = self.transforms
        kept = self.labels != IGNORE
        logits = _model(wide(self.hidden), wide(self.weight), wide(self.bias), student)[kept]
        target = _model(wide(self.teacher_hidden), wide(self.teacher_weight), wide(self.teacher_bias), teacher)
        ce, kl = _dense_sums(logits, target[kept, :VOCAB], self.labels[kept], self.settings)
        ratio, temperature = self.settings["kd_ratio"], self.settings["temperature"]
        total = (1 - ratio) * ce + ratio * temperature**2 * kl
        loss = total / max(1, int(kept.sum()) if num_tokens is None else num_tokens)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return loss.detach(), ce.detach(), kl.detach(), list(gradients)


def _model(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    logits = F.linear(hidden, weight, bias) * transform.scale
    return logits if transform.softcap is None else torch.tanh(logits / transform.softcap) * transform.softcap


def _dense_sums(logits: Tensor, target: Tensor, labels: Tensor, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    ce = F.cross_entropy(logits, labels, reduction="sum")
    q = F.softmax(logits / settings["temperature"], dim=-1)
    p = F.softmax(target / settings["temperature"], dim=-1)
    beta = settings["beta"]
    if beta == 0:
        return ce, (p * (p / q).log()).sum()
    if beta == 1:
        return ce, (q * (q / p).log()).sum()
    m = beta * p + (1 - beta) * q
    return ce, beta * (p * (p / m).log()).sum() + (1 - beta) * (q * (q / m).log()).sum()


def _relative(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.double() - expected).norm()
    return float(difference / expected.norm()) if expected.norm() > 0 else float(difference)


def _assert_equal(case: Case, num_tokens: int | None = None, tolerance: float = TOLERANCE) -> None:
    expected_loss, expected_ce, expected_kl, expected_gradients = case.dense(num_tokens)
    terms = case.chunked(num_tokens=num_tokens)
    gradients = torch.autograd.grad(terms.loss, case.inputs)
    assert _relative(terms.loss.detach(), expected_loss) <= tolerance
    assert _relative(terms.cross_entropy_sum, expected_ce) <= tolerance
    if case.settings["kd_ratio"] > 0:
        assert _relative(terms.kl_sum, expected_kl) <= tolerance
    for actual, expected, leaf in zip(gradients, expected_gradients, case.inputs, strict=True):
        assert actual.shape == leaf.shape
        assert actual.dtype == leaf.dtype
        assert _relative(actual, expected) <= tolerance


SETTINGS = list(itertools.product((0.5, 1.0, 4.0), (0.0, 0.3, 1.0), (0.0, 0.4, 1.0)))


@pytest.mark.parametrize(("temperature", "beta", "kd_ratio"), SETTINGS)
@pytest.mark.parametrize("chunk_size", [1, 5, 9, 64])
def test_settings_and_chunks(temperature: float, beta: float, kd_ratio: float, chunk_size: int) -> None:
    # 9 of 13 labels count: 9 divides evenly, 5 leaves a rest, 64 is more than there are.
    _assert_equal(Case(temperature=temperature, beta=beta, kd_ratio=kd_ratio, chunk_size=chunk_size))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("student", [PLAIN, CAPPED, SCALED, LogitTransform(scale=0.7, softcap=5.0)])
@pytest.mark.parametrize("teacher", [PLAIN, CAPPED, SCALED])
@pytest.mark.parametrize("bias", [False, True])
def test_transforms_and_bias(beta: float, student: LogitTransform, teacher: LogitTransform, bias: bool) -> None:
    _assert_equal(Case(beta=beta, student=student, teacher=teacher, bias=bias, temperature=2.0))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("tokens", "ignored"), [(1, "none"), (13, "none"), (13, "some"), (13, "all"), (1, "all")])
def test_batches_and_heads(beta: float, trainable: bool, bias: bool, tokens: int, ignored: str) -> None:
    _assert_equal(Case(beta=beta, trainable=trainable, bias=bias, tokens=tokens, ignored=ignored))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("bias", [False, True])
def test_larger_teacher_vocabulary_is_sliced(beta: float, bias: bool) -> None:
    _assert_equal(Case(beta=beta, bias=bias, teacher_vocab=VOCAB + 37))


def test_all_ignored_is_exactly_zero() -> None:
    case = Case(ignored="all", bias=True, temperature=2.0)
    terms = case.chunked()
    terms.loss.backward()
    assert terms.loss.item() == 0
    assert terms.num_tokens == 0
    for leaf in case.inputs:
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_micro_batches_add_up_to_the_step() -> None:
    whole = Case(tokens=12, bias=True, temperature=2.0)
    expected_loss, expected_ce, expected_kl, expected = whole.dense()
    total = int((whole.labels != IGNORE).sum())
    parts = []
    for rows in (slice(0, 2), slice(2, 12)):
        part = Case(tokens=12, bias=True, temperature=2.0)
        part.labels = torch.full_like(whole.labels, IGNORE)
        part.labels[rows] = whole.labels[rows]
        terms = part.chunked(num_tokens=total)
        parts.append((terms, torch.autograd.grad(terms.loss, part.inputs)))
    assert sum(terms.num_tokens for terms, _ in parts) == total
    assert _relative(sum(terms.loss.detach() for terms, _ in parts), expected_loss) <= TOLERANCE
    assert _relative(sum(terms.cross_entropy_sum for terms, _ in parts), expected_ce) <= TOLERANCE
    assert _relative(sum(terms.kl_sum for terms, _ in parts), expected_kl) <= TOLERANCE
    for (first, second), target in zip(zip(*(g for _, g in parts), strict=True), expected, strict=True):
        assert _relative(first + second, target) <= TOLERANCE


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gradcheck_float64(beta: float) -> None:
    case = Case(tokens=4, bias=True, dtype=torch.float64, student=LogitTransform(scale=0.5, softcap=4.0))
    hidden, weight, bias = (x.detach()[: 6 if x.shape[0] == VOCAB else None] for x in case.inputs)
    teacher = Head(weight=case.teacher_weight[:6])
    labels = torch.tensor([0, IGNORE, 5, 2])

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        head = Head(weight=weight, bias=bias, transform=case.transforms[0])
        settings = {"temperature": 1.7, "kd_ratio": 0.6, "beta": beta, "chunk_size": 2}
        terms = distillation_loss(hidden, head, case.teacher_hidden, teacher, labels, **settings)
        assert terms.loss.dtype == torch.float64
        return terms.loss

    assert torch.autograd.gradcheck(loss, [x.clone().requires_grad_() for x in (hidden, weight, bias)])


@pytest.mark.parametrize("factor", [1.0, -0.25, 1024.0])
def test_scaled_loss_scales_gradients(factor: float) -> None:
    case = Case(bias=True)
    expected = case.dense()[3]
    (case.chunked().loss * factor).backward()
    for leaf, target in zip(case.inputs, expected, strict=True):
        assert leaf.grad is not None
        assert _relative(leaf.grad, target * factor) <= TOLERANCE


def test_backward_twice_on_a_retained_graph() -> None:
    case = Case(bias=True)
    loss = case.chunked().loss
    loss.backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in case.inputs if leaf.grad is not None]
    loss.backward()
    for leaf, gradient in zip(case.inputs, once, strict=True):
        assert torch.equal(leaf.grad, 2 * gradient)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_half_precision(dtype: torch.dtype, tolerance: float, beta: float) -> None:
    case = Case(dtype=dtype, bias=True, beta=beta, temperature=2.0)
    _assert_equal(case, tolerance=tolerance)
    assert case.chunked().loss.dtype == torch.float32


def test_float16_gradients_do_not_underflow() -> None:
    # A mean over 10^7 tokens is below float16's smallest number unless the loss scale arrives in time.
    case = Case(dtype=torch.float16, kd_ratio=0.0)
    scale = 2.0**20
    gradients = torch.autograd.grad(case.chunked(num_tokens=10_000_000).loss * scale, case.inputs)
    for actual, expected in zip(gradients, case.dense(10_000_000)[3], strict=True):
        assert _relative(actual, expected * scale) <= 0.003


def test_float64_stays_float64() -> None:
    _assert_equal(Case(dtype=torch.float64, bias=True, beta=0.3, student=CAPPED), tolerance=1e-12)


def test_autocast_does_not_narrow() -> None:
    case = Case(bias=True, temperature=2.0)
    plain = torch.autograd.grad(case.chunked().loss, case.inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.chunked().loss
    for narrowed, expected in zip(torch.autograd.grad(loss, case.inputs), plain, strict=True):
        assert torch.equal(narrowed, expected)


def test_extreme_logits_stay_finite() -> None:
    # The two distributions underflow float32 in each other's support, and both do in the rest.
    logits = torch.full((2, 6), -400.0)
    student, teacher = logits.clone(), logits.clone()
    student[:, 0] = teacher[:, 1] = 0.0
    for beta, temperature in itertools.product((0.0, 0.5, 1.0), (0.5, 1.0)):
        leaf = student.clone().requires_grad_()
        terms = distillation_loss_from_logits(
            leaf, teacher, torch.tensor([0, 1]), temperature=temperature, kd_ratio=0.5, beta=beta
        )
        terms.loss.backward()
        expected = 2 * (torch.tensor(2.0).log() if beta == 0.5 else 400.0 / temperature)
        assert terms.kl_sum.item() == pytest.approx(float(expected), rel=1e-5)
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_identical_models_have_no_divergence(beta: float) -> None:
    logits = Case().weight.detach()[:TOKENS]
    leaf = logits.clone().requires_grad_()
    labels = torch.zeros(TOKENS, dtype=torch.long)
    terms = distillation_loss_from_logits(leaf, logits, labels, temperature=2.0, kd_ratio=1.0, beta=beta)
    assert abs(terms.kl_sum.item()) < 1e-5
    assert torch.autograd.grad(terms.loss, leaf)[0].norm() < 1e-6
    assert terms.cross_entropy_sum > 1


@pytest.mark.parametrize(("temperature", "beta", "kd_ratio"), SETTINGS)
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
def test_from_logits(temperature: float, beta: float, kd_ratio: float, ignored: str) -> None:
    case = Case(temperature=temperature, beta=beta, kd_ratio=kd_ratio, ignored=ignored)
    logits = F.linear(case.hidden, case.weight).detach().requires_grad_()
    target = F.linear(case.teacher_hidden, case.teacher_weight)
    before = logits.detach().clone(), target.clone()
    terms = distillation_loss_from_logits(logits, target, case.labels, **case.settings)
    (gradient,) = torch.autograd.grad(terms.loss, logits)

    wide = logits.detach().double().requires_grad_()
    kept = case.labels != IGNORE
    ce, kl = _dense_sums(wide[kept], target.double()[kept], case.labels[kept], case.settings)
    expected = ((1 - kd_ratio) * ce + kd_ratio * temperature**2 * kl) / max(1, int(kept.sum()))
    assert _relative(terms.loss.detach(), expected.detach()) <= TOLERANCE
    assert _relative(gradient, torch.autograd.grad(expected, wide)[0]) <= TOLERANCE
    assert torch.equal(logits.detach(), before[0])
    assert torch.equal(target, before[1])


def test_same_inputs_same_bits() -> None:
    def run() -> list[Tensor]:
        case = Case(bias=True, beta=0.3, temperature=2.0)
        terms = case.chunked()
        return [terms.loss.detach(), *torch.autograd.grad(terms.loss, case.inputs)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_teacher_is_not_touched_without_kd() -> None:
    case = Case(kd_ratio=0.0)
    head = Head(weight=case.weight)
    terms = distillation_loss(case.hidden, head, None, None, case.labels, **case.settings)
    assert torch.equal(terms.loss, case.chunked().loss)
    assert terms.kl_sum == 0
    case.teacher_hidden.fill_(float("nan"))
    assert torch.equal(terms.loss, case.chunked().loss)


def test_teacher_gets_no_gradient() -> None:
    case = Case()
    case.teacher_hidden.requires_grad_()
    case.teacher_weight.requires_grad_()
    case.chunked().loss.backward()
    assert case.teacher_hidden.grad is None
    assert case.teacher_weight.grad is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["hidden", "weight", "teacher_hidden", "teacher_weight"])
@pytest.mark.parametrize("transform", [PLAIN, CAPPED])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_non_finite_inputs_surface(value: float, where: str, transform: LogitTransform, beta: float) -> None:
    case = Case(student=transform, teacher=transform, beta=beta)
    with torch.no_grad():
        getattr(case, where)[2, 0] = value
    assert not case.chunked().loss.isfinite()


class _Allocations(TorchDispatchMode):
    """Collects the new memory that operations return: address -> float32 elements."""

    def __init__(self, *existing: Tensor) -> None:
        super().__init__()
        self.existing = {x.untyped_storage().data_ptr() for x in existing}
        self.elements: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.existing:
                storage = tensor.untyped_storage()
                self.elements[storage.data_ptr()] = storage.nbytes() // 4
        return result


def _allocations(case: Case) -> _Allocations:
    return _Allocations(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight, case.labels)


@pytest.mark.parametrize("backward", [True, False])
def test_nothing_larger_than_a_chunk_is_allocated(backward: bool) -> None:
    # A trainable head without autograd is what evaluation looks like.
    case = Case(trainable=not backward, chunk_size=10, tokens=30)
    with _allocations(case) as allocations, torch.set_grad_enabled(backward):
        loss = case.chunked().loss
        if backward:
            loss.backward()
    assert max(allocations.elements.values()) == 10 * VOCAB


def test_trainable_head_allocates_one_gradient() -> None:
    case = Case(chunk_size=3, tokens=30)
    with _allocations(case) as allocations:
        case.chunked().loss.backward()
    large = [address for address, n in allocations.elements.items() if n >= case.weight.numel()]
    assert case.weight.grad is not None
    assert large == [case.weight.grad.untyped_storage().data_ptr()]


def _message(error: type[Exception], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def test_smaller_teacher_vocabulary_is_refused() -> None:
    for policy in ("slice", "refuse"):
        case = Case(teacher_vocab=VOCAB - 1)
        message = _message(ConfigError, lambda case=case, p=policy: case.chunked(teacher_vocab=p))
        assert str(VOCAB - 1) in message
        assert str(VOCAB) in message


def test_larger_teacher_vocabulary_is_refused_by_default() -> None:
    message = _message(ConfigError, lambda: Case(teacher_vocab=VOCAB + 1).chunked(teacher_vocab="refuse"))
    assert str(VOCAB + 1) in message
    assert str(VOCAB) in message
    assert "slice" in message


@pytest.mark.parametrize("label", [VOCAB, -1])
def test_label_out_of_range(label: int) -> None:
    case = Case()
    case.labels[2] = label
    message = _message(DataError, case.chunked)
    assert f"is {label};" in message
    assert f"0..{VOCAB - 1}" in message


def test_num_tokens_below_the_batch() -> None:
    message = _message(DataError, lambda: Case().chunked(num_tokens=8))
    assert "is 8;" in message
    assert "at least 9" in message


def test_missing_teacher() -> None:
    case = Case(kd_ratio=0.25)
    head = Head(weight=case.weight)
    for call in (
        lambda: distillation_loss(case.hidden, head, None, None, case.labels, **case.settings),
        lambda: distillation_loss_from_logits(case.hidden, None, case.labels, **case.settings),
    ):
        assert "0.25 without a teacher" in _message(ConfigError, call)


def test_shapes_and_dtypes_that_do_not_fit() -> None:
    case = Case()
    case.hidden = case.hidden.detach()[:, 1:]
    assert "23 wide; expected 24" in _message(ConfigError, case.chunked)
    case = Case()
    case.teacher_hidden = case.teacher_hidden.bfloat16()
    assert "torch.bfloat16; expected torch.float32" in _message(ConfigError, case.chunked)
    case = Case()
    case.labels = case.labels[1:]
    assert "(13, 24) and labels (12,)" in _message(DataError, case.chunked)


def test_settings_object_only_unpacks() -> None:
    case = Case(temperature=2.0, beta=0.3, kd_ratio=0.7)
    loss = DistillationLoss(temperature=2.0, beta=0.3, kd_ratio=0.7, chunk_size=5, teacher_vocab="slice")
    heads = Head(weight=case.weight), Head(weight=case.teacher_weight)
    terms = loss.from_hidden(case.hidden, heads[0], case.teacher_hidden, heads[1], case.labels, num_tokens=50)
    assert torch.equal(terms.loss, case.chunked(num_tokens=50).loss)
    logits = F.linear(case.hidden, case.weight), F.linear(case.teacher_hidden, case.teacher_weight)
    dense = loss.from_logits(*logits, case.labels, num_tokens=50)
    assert _relative(dense.loss.detach(), terms.loss.detach().double()) <= TOLERANCE
