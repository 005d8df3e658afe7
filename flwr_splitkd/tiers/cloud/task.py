"""One task of the cloud: gradients of many devices, and steps over their sums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flwr_splitkd.distill import LossTerms
from flwr_splitkd.errors import NonFiniteError, ProtocolError
from flwr_splitkd.models.prefix import PrefixedLLM
from flwr_splitkd.split import export_optimizer_state, grad_norms, import_optimizer_state
from flwr_splitkd.tiers.cloud.checks import check_hidden, check_inputs, check_labels
from flwr_splitkd.tiers.cloud.modules import TaskModule
from flwr_splitkd.tiers.cloud.randomness import new_projection, seeded
from flwr_splitkd.tiers.cloud.settings import TaskSettings
from flwr_splitkd.tiers.cloud.state import NEXT_STEP, check_state
from flwr_splitkd.tiers.optimizer import set_learning_rate
from flwr_splitkd.tiers.units import pack, require_finite, unpack

__all__ = ["CloudTask", "Differentiated", "Key", "StepResult"]

Key = tuple[int, int]
"""A device and its own step."""

_REMEDY = "Nothing was applied; lower the learning rate, clip gradients, or check the labels."


class Differentiated(NamedTuple):
    """What one device's data gave.

    Attributes
    ----------
    gradient
        Of the loss by `hidden`, in its dtype and on the LLM's device; None for tokens.
    loss
        Mean cross-entropy over the answer's tokens, equation (7).
    reference_loss
        The same for the context's tokens in place of the encoder's output, to be subtracted as in (8); None unless asked for.
    num_tokens
        Tokens of the answer.
    """

    gradient: Float[Tensor, "batch positions slm"] | None
    loss: float
    reference_loss: float | None
    num_tokens: int


class StepResult(NamedTuple):
    """One optimiser step: its number from 0, its rate, and the norm of the summed gradient before clipping."""

    step: int
    learning_rate: float
    grad_norm: float


class CloudTask:
    """A task's module and projection on the shared LLM; made by `CloudLLM.add_task`.

    Gradients of a device stay apart until a step names them, so the sum over devices does not depend on who came first. Each
    takes the memory of the module. Module and projection are float32 whatever the LLM is in.
    """

    def __init__(self, name: str, llm: PrefixedLLM, module: TaskModule, settings: TaskSettings) -> None:
        self.name, self.settings = name, settings
        self._llm, self._module = llm, module
        self._projection = new_projection(settings, llm)
        self._parameters: dict[str, nn.Parameter] = {
            **{f"projection.{n}": p for n, p in self._projection.named_parameters()},
            **{f"module.{n}": p for n, p in module.parameters_by_name().items()},
        }
        self._optimizer = settings.optimizer.build(self._parameters.values())
        self._pending: dict[Key, dict[str, Tensor]] = {}
        self._next_step = 0

    @property
    def next_step(self) -> int:
        """Steps that were taken."""
        return self._next_step

    @property
    def pending(self) -> tuple[Key, ...]:
        """Keys of the gradients that wait for a step, in the order of their arrival."""
        return tuple(self._pending)

    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """What trains: ``projection.<name>`` first, then ``module.<layer>...``."""
        return dict(self._parameters)

    # ---- training

    def differentiate(
        self,
        hidden: Float[Tensor, "batch positions slm"],
        mask: Int[Tensor, "batch positions"],
        labels: Int[Tensor, "batch answer"],
        *,
        key: Key,
        reference: Mapping[str, Tensor] | None = None,
    ) -> Differentiated:
        """Forward and backward pass for one device.

        Parameters
        ----------
        hidden, mask
            Its encoder's output m_n; 0 in the mask marks padding.
        labels
            Tokens of the answers; -100 is padding.
        key
            Device and its step: seeds dropout, and names the gradient for `step`.
        reference
            ``input_ids`` and ``attention_mask`` of context and question, with what special tokens the LLM's tokenizer gave
            them. Looked at only if the task's `reference_loss` is on; without dropout, and without effect on anything else.

        Raises
        ------
        ProtocolError
            If a gradient of this key waits already, or the reference is missing.
        TensorError
            If a tensor does not fit.
        NonFiniteError
            If data, loss or gradients have NaN or infinity; nothing is kept.
        """
        self._check_new(key)
        check_hidden(hidden, mask, self.settings.slm_width)
        check_labels(labels, len(hidden), self._llm.vocab_size)
        reference_loss = self._reference_loss(reference, labels)
        leaf = hidden.detach().to(self._llm.device).requires_grad_()
        with self._training(key):
            terms = self._llm.loss(*self._projected(leaf, mask), labels)
            gradients = self._backward(terms, key)
        gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        require_finite(gradient, f"The gradient of {_words(key)} by its data", _REMEDY)
        self._pending[key] = gradients
        return Differentiated(gradient, float(terms.loss.detach()), reference_loss, terms.num_tokens)

    def differentiate_tokens(
        self, inputs: Mapping[str, Tensor], labels: Int[Tensor, "batch answer"], *, key: Key
    ) -> Differentiated:
        """Train the module alone, from tokens in place of an encoder's output (the paper's baseline CloudO).

        Parameters
        ----------
        inputs
            ``input_ids`` and ``attention_mask`` of context and question, special tokens included.
        labels, key
            As in `differentiate`, and with the same errors.
        """
        self._check_new(key)
        tokens, mask = check_inputs("inputs", inputs, self._llm.vocab_size)
        check_labels(labels, len(tokens), self._llm.vocab_size)
        with self._training(key):
            # Checkpointed layers get no gradients unless their input asks for one.
            prefix = self._llm.embed(tokens).detach().requires_grad_()
            terms = self._llm.loss(prefix, mask.to(prefix.device), labels)
            self._pending[key] = self._backward(terms, key)
        return Differentiated(None, float(terms.loss.detach()), None, terms.num_tokens)

    def step(self, keys: Sequence[Key]) -> StepResult:
        """One optimiser step over the sum of some gradients, equation (9), which are then forgotten.

        Parameters
        ----------
        keys
            In the order of summation.

        Raises
        ------
        ProtocolError
            If there are none, one is named twice, or one does not wait; nothing is applied.
        NonFiniteError
            If their sum is not finite; nothing is applied, and the gradients still wait.
        """
        unknown = [key for key in keys if key not in self._pending]
        if not keys or unknown or len(set(keys)) != len(keys):
            what = f"names {_words(unknown[0])}" if unknown else f"names {list(keys)}"
            raise ProtocolError(
                f"Step {self._next_step} of task {self.name!r} {what}; expected at least one key, each once, of the "
                f"{len(self._pending)} gradients that wait. Nothing was applied."
            )
        try:
            for name, parameter in self._parameters.items():
                parameter.grad = _sum(self._pending[key][name] for key in keys if name in self._pending[key])
            bound = self.settings.max_grad_norm or float("inf")
            norm = nn.utils.clip_grad_norm_(self._parameters.values(), bound)
            require_finite(norm, f"The gradient norm of step {self._next_step} of task {self.name!r}", _REMEDY)
            rate = self.settings.optimizer.learning_rate * self.settings.lr_schedule(self._next_step)
            set_learning_rate(self._optimizer, rate)
            self._optimizer.step()
        finally:
            self._clear_gradients()
        self.discard(keys)
        self._next_step += 1
        return StepResult(self._next_step - 1, rate, float(norm))

    def discard(self, keys: Iterable[Key]) -> None:
        """Forget gradients that wait; keys of others are passed over."""
        for key in keys:
            self._pending.pop(key, None)

    # ---- inference

    def evaluate(
        self,
        hidden: Float[Tensor, "batch positions slm"],
        mask: Int[Tensor, "batch positions"],
        labels: Int[Tensor, "batch answer"],
    ) -> tuple[float, int]:
        """Sum of the cross-entropy over the answers' tokens in nats, and their number; errors as in `differentiate`."""
        check_hidden(hidden, mask, self.settings.slm_width)
        check_labels(labels, len(hidden), self._llm.vocab_size)
        with self._inference():
            return self._sums(self._llm.loss(*self._projected(hidden, mask), labels))

    def evaluate_tokens(self, inputs: Mapping[str, Tensor], labels: Int[Tensor, "batch answer"]) -> tuple[float, int]:
        """As `evaluate`, for tokens as in `differentiate_tokens`."""
        tokens, mask = check_inputs("inputs", inputs, self._llm.vocab_size)
        check_labels(labels, len(tokens), self._llm.vocab_size)
        with self._inference():
            return self._sums(self._llm.loss(self._llm.embed(tokens), mask.to(self._llm.device), labels))

    def generate(
        self,
        hidden: Float[Tensor, "batch positions slm"],
        mask: Int[Tensor, "batch positions"],
        max_new_tokens: int | None = None,
    ) -> Int[Tensor, "batch new"]:
        """Greedy answers in the form of labels: the end-of-text token included, -100 behind it.

        Parameters
        ----------
        hidden, mask
            As in `differentiate`, and with the same errors.
        max_new_tokens
            At least 1; None for the settings' own.
        """
        check_hidden(hidden, mask, self.settings.slm_width)
        with self._inference():
            prefix, real = self._projected(hidden, mask)
            return self._llm.generate(prefix, real, max_new_tokens=self._most(max_new_tokens))

    def generate_tokens(
        self, inputs: Mapping[str, Tensor], max_new_tokens: int | None = None
    ) -> Int[Tensor, "batch new"]:
        """As `generate`, for tokens as in `differentiate_tokens`."""
        tokens, mask = check_inputs("inputs", inputs, self._llm.vocab_size)
        with self._inference():
            prefix = self._llm.embed(tokens)
            return self._llm.generate(prefix, mask.to(prefix.device), max_new_tokens=self._most(max_new_tokens))

    # ---- hand-over

    def state(self) -> dict[str, Tensor]:
        """Copies of weights and moments as `tiers.units.pack` names them, and the scalar ``next_step``, on the CPU.

        Gradients that wait are no part of it.
        """
        named = self._parameters.items()
        flat = pack(dict(named), export_optimizer_state(self._optimizer, named))
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in flat.items()}
        return {**copies, NEXT_STEP: torch.tensor(self._next_step)}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a state; gradients that wait are forgotten.

        Weights alone will do: then the optimiser begins anew, and without ``next_step`` the schedule does. Nothing is loaded
        unless everything fits.

        Raises
        ------
        ProtocolError
            If a name is missing or unknown.
        TensorError
            If a tensor has another shape or dtype.
        NonFiniteError
            If one has NaN or infinity.
        """
        rest = dict(tensors)
        next_step = rest.pop(NEXT_STEP, torch.tensor(0))
        weights, moments = unpack(rest)
        check_state(self._parameters, self.settings.optimizer.moment_keys, weights, moments, next_step)
        optimizer = self.settings.optimizer.build(self._parameters.values())
        import_optimizer_state(optimizer, self._parameters.items(), moments)
        for name, tensor in weights.items():
            self._parameters[name].copy_(tensor)
        self._optimizer, self._next_step = optimizer, int(next_step)
        self._pending.clear()

    # ---- inside

    def _projected(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        inside = hidden.to(self._llm.device)
        prefix: Tensor = self._projection(inside.to(self._projection.weight.dtype))
        mask = mask.to(inside.device)
        return self._llm.with_bos(prefix, mask) if self.settings.add_bos else (prefix, mask)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        # Every time: the layers of a LoRA module that was just added are in training mode, and would draw dropout.
        self._llm.llm.eval()
        with torch.no_grad(), self._module.active():
            yield

    @contextmanager
    def _training(self, key: Key) -> Iterator[None]:
        """The module takes part, dropout is on and drawn for this key alone; the generators get their states back."""
        llm: nn.Module = self._llm.llm
        with self._module.active(), seeded(llm, f"peft/{self.settings.seed}/{key[0]}/{key[1]}"):
            llm.train()
            try:
                yield
            finally:
                llm.eval()
                self._clear_gradients()

    def _backward(self, terms: LossTerms, key: Key) -> dict[str, Tensor]:
        """Gradients by name, which are nobody else's; parameters that took no part are left out."""
        require_finite(terms.loss.detach(), f"The loss of {_words(key)}", _REMEDY)
        torch.autograd.backward(terms.loss)
        found = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        # One number that tells of all: a look at each would wait for the device each time.
        norms = grad_norms(self._parameters.items())
        total = sum((float(part) for part in _norms_by_device(norms.values())), 0.0)
        if not torch.isfinite(torch.tensor(total)):
            for name, gradient in found.items():
                require_finite(gradient, f"The gradient of {_words(key)} by {name!r}", _REMEDY)
            raise NonFiniteError(f"The gradient of {_words(key)} has the norm {total}; expected a number. {_REMEDY}")
        return found

    def _reference_loss(self, reference: Mapping[str, Tensor] | None, labels: Tensor) -> float | None:
        if not self.settings.reference_loss:
            return None
        if reference is None:
            raise ProtocolError(
                f"Task {self.name!r} computes the reference loss and got no tokens for it; expected 'input_ids' and "
                "'attention_mask'. Set `reference_loss` to False, or let the edge send them."
            )
        tokens, mask = check_inputs("reference", reference, self._llm.vocab_size)
        check_labels(labels, len(tokens), self._llm.vocab_size)
        with self._inference():
            terms = self._llm.loss(self._llm.embed(tokens), mask.to(self._llm.device), labels)
        return float(require_finite(terms.loss, "The reference loss", _REMEDY))

    def _sums(self, terms: LossTerms) -> tuple[float, int]:
        total = require_finite(terms.cross_entropy_sum, f"The loss of task {self.name!r}", _REMEDY)
        return float(total), terms.num_tokens

    def _most(self, max_new_tokens: int | None) -> int:
        most = self.settings.max_new_tokens if max_new_tokens is None else max_new_tokens
        if most < 1:
            raise ProtocolError(f"`max_new_tokens` is {most}; expected at least 1.")
        return most

    def _check_new(self, key: Key) -> None:
        if key in self._pending:
            raise ProtocolError(
                f"A gradient of {_words(key)} waits already in task {self.name!r}; expected one each. Name it in a step, or "
                "discard it."
            )

    def _clear_gradients(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None


def _words(key: Key) -> str:
    return f"device {key[0]}'s step {key[1]}"


def _sum(gradients: Iterator[Tensor]) -> Tensor | None:
    total: Tensor | None = None
    for gradient in gradients:
        total = gradient.clone() if total is None else total.add_(gradient)
    return total


def _norms_by_device(norms: Iterable[Tensor]) -> Iterator[Tensor]:
    by_device: dict[torch.device, list[Tensor]] = {}
    for norm in norms:
        by_device.setdefault(norm.device, []).append(norm)
    return (torch.stack(part).sum() for part in by_device.values())
