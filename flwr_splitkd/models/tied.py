"""What to do about a matrix that is both the input embedding and the output projection."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from flwr_splitkd.errors import ConfigError, CutError

__all__ = ["TiedEmbeddings", "embeddings_are_tied", "set_tied_embeddings"]

TiedEmbeddings = Literal["refuse", "untie", "freeze"]


def embeddings_are_tied(model: nn.Module) -> bool:
    """Whether the model's input and output embeddings are one parameter."""
    return _tied_weight(model) is not None


def _tied_weight(model: nn.Module) -> Tensor | None:
    weights = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        method = getattr(model, getter, None)
        weights.append(getattr(method() if callable(method) else None, "weight", None))
    first, second = weights
    return first if isinstance(first, Tensor) and first is second else None


def set_tied_embeddings(model: nn.Module, policy: TiedEmbeddings) -> None:
    """Make a model with tied embeddings fit to be cut, by an explicit choice.

    The device would see only the input side's gradient of the matrix and the edge only the output side's.

    Parameters
    ----------
    model
        The whole model or its skeleton; changed in place. Nothing happens when its embeddings are not tied.
    policy
        ``"refuse"`` raises, unless the matrix does not train anyway, as under LoRA. ``"untie"`` gives the output
        projection its own copy, so that each side trains its own matrix: one more matrix in memory and on disk, two more
        optimiser moments, and from the first step on another model than tied training gives. ``"freeze"`` keeps one matrix
        that does not train: no cost in memory, and neither side moves it, but the vocabulary's vectors stay as they are.

    Raises
    ------
    CutError
        The embeddings are tied and train, and `policy` is ``"refuse"``.
    ConfigError
        `policy` is unknown.
    """
    if policy not in ("refuse", "untie", "freeze"):
        raise ConfigError(f"`tied_embeddings` is {policy!r}; expected 'refuse', 'untie' or 'freeze'.")
    weight = _tied_weight(model)
    if weight is None or (policy == "refuse" and not weight.requires_grad):
        return
    if policy == "refuse":
        mebibytes = weight.numel() * weight.element_size() / 2**20
        raise CutError(
            f"`tied_embeddings` is 'refuse' but {type(model).__name__} uses one {tuple(weight.shape)} matrix "
            f"as input embedding and output projection; expected 'untie' (one more matrix, {mebibytes:.1f} "
            "MiB, and its optimiser state; both sides train) or 'freeze' (no extra memory; the matrix does "
            "not train)."
        )
    if policy == "freeze":
        weight.requires_grad_(False)
        return
    _untie(model)


def _untie(model: nn.Module) -> None:
    # Every second name gets its own copy, not only the projection's: BERT ties a bias as well, and a
    # checkpoint written with tie_word_embeddings=False must hold all of them.
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    seen: set[int] = {id(embedding)}
    embedding_module = model.get_input_embeddings()  # type: ignore[operator]
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is None or (module is embedding_module and parameter is embedding):
                continue
            if id(parameter) in seen:
                module._parameters[leaf] = nn.Parameter(
                    parameter.detach().clone(), requires_grad=parameter.requires_grad
                )
            seen.add(id(parameter))
    # Only after the copies exist: told earlier, transformers would initialise the projection at random.
    config: Any = model.config
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        part.tie_word_embeddings = False
    for submodule in model.modules():
        if hasattr(submodule, "all_tied_weights_keys"):
            submodule.__dict__["all_tied_weights_keys"] = {}  # read by save_pretrained and tie_weights
