"""The output projection of a language model, taken out of its forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from flwr_splitkd.distill import Head, LogitTransform
from flwr_splitkd.errors import UncuttableModelError
from flwr_splitkd.split.shrink import build_tiny, probe_inputs, run_forward
from flwr_splitkd.split.surgery import text_config

__all__ = ["HeadTap", "find_head"]


def _projection(model: nn.Module) -> nn.Module:
    getter = getattr(model, "get_output_embeddings", None)
    module = getter() if callable(getter) else None
    weight = getattr(module, "weight", None)
    if not isinstance(module, nn.Module) or not isinstance(weight, Tensor) or weight.dim() != 2:
        raise UncuttableModelError(
            f"{type(model).__name__} has no output projection with a [vocab, hidden] weight; expected a "
            "causal or masked language model. Use an AutoModelForCausalLM or AutoModelForMaskedLM class, or "
            "task='classification' for a classifier."
        )
    if hasattr(module, "base_layer") or hasattr(module, "original_module"):
        # Its weight is only a part of what it computes.
        raise UncuttableModelError(
            f"the output projection of {type(model).__name__} is a {type(module).__name__} with adapters; expected a plain "
            "one, because the loss is computed from its weight. Leave it out of `target_modules` and `modules_to_save`."
        )
    return module


class HeadTap:
    """Keeps a model from computing its logits and catches the hidden states that they would be made of.

    Inside the ``with`` block the output projection is skipped: the model returns logits of width 0, and
    :attr:`hidden` holds what went in. Works on a whole model and on the model inside an :class:`EdgeHalf`;
    parameters and state-dict names stay as they are. Do not pass ``labels`` meanwhile.

    Parameters
    ----------
    model
        A causal or masked language model.

    Raises
    ------
    UncuttableModelError
        The model has no output projection.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model_name = type(model).__name__
        self._projection = _projection(model)
        self._hidden: Tensor | None = None
        self._own_forward: Any = None

    def __enter__(self) -> HeadTap:
        """Start catching."""
        # An attribute of the instance hides the class's forward; removing it brings that back. A model that is spread over
        # devices has such an attribute already.
        self._own_forward = self._projection.__dict__.get("forward")
        object.__setattr__(self._projection, "forward", self._catch)
        return self

    def __exit__(self, *_exc: object) -> None:
        """Give the model its projection back."""
        if self._own_forward is None:
            self._projection.__dict__.pop("forward", None)
        else:
            object.__setattr__(self._projection, "forward", self._own_forward)

    def _catch(self, hidden: Tensor) -> Tensor:
        self._hidden = hidden
        return hidden[..., :0]

    @property
    def hidden(self) -> Tensor:
        """Hidden states of the last forward pass, ``[..., hidden]``, still attached to the graph.

        Raises
        ------
        UncuttableModelError
            The model has not called its output projection.
        """
        if self._hidden is None:
            raise UncuttableModelError(
                f"{self._model_name} did not call its output projection; expected one forward pass inside "
                "the `with` block, through get_output_embeddings(). Use another model, or run it first."
            )
        return self._hidden


def _transforms(config: Any) -> Iterator[LogitTransform]:
    """Yield the transforms that a config may stand for; trying tells which one the model applies."""
    yield LogitTransform()
    softcap = getattr(config, "final_logit_softcapping", None)
    if softcap:
        yield LogitTransform(softcap=float(softcap))
    for name, inverse in (("logit_scale", False), ("logits_scaling", True), ("lm_head_multiplier", False)):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value:
            yield LogitTransform(scale=1.0 / value if inverse else float(value))


def find_head(model: nn.Module) -> Head:
    """Find the output head of a language model: weight, bias, and what happens to the logits.

    For a masked language model that is the decoder after its transform. The result is tried on a tiny copy of
    the model, with logits large enough that a soft cap or a scale shows: ``head(hidden) ==
    model(...).logits``.

    Parameters
    ----------
    model
        A whole model or its skeleton. The returned tensors are the model's own parameters.

    Raises
    ------
    UncuttableModelError
        The model has no output projection, or does something else to its logits.
    """
    projection = _projection(model)
    tiny = build_tiny(model).eval()
    tiny_projection = _projection(tiny)
    inputs = probe_inputs(tiny)
    with torch.no_grad():
        tiny_projection.weight.mul_(30.0)  # type: ignore[operator]
        logits = run_forward(tiny, inputs).logits
        with HeadTap(tiny) as tap:
            run_forward(tiny, inputs)
        raw = torch.nn.functional.linear(tap.hidden, tiny_projection.weight, tiny_projection.bias)  # type: ignore[arg-type]
    for transform in _transforms(text_config(model)):
        expected = _apply(transform, raw)
        if expected.shape == logits.shape and torch.allclose(expected, logits.float(), rtol=1e-5, atol=1e-6):
            return Head(weight=projection.weight, bias=projection.bias, transform=transform)  # type: ignore[arg-type]
    raise UncuttableModelError(
        f"{type(model).__name__} does something to its logits that is not known here; expected "
        "`linear(hidden)`, at most scaled (logit_scale, logits_scaling, lm_head_multiplier) or soft-capped "
        "(final_logit_softcapping). Use another model, or pass a Head made by hand."
    )


def _apply(transform: LogitTransform, raw: Tensor) -> Tensor:
    scaled = raw.float() * transform.scale
    return scaled if transform.softcap is None else torch.tanh(scaled / transform.softcap) * transform.softcap
