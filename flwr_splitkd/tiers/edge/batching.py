"""Micro-batches of several devices through one half: in one batch where that gives the same, else one after another.

What is joined are the student's blocks, whose matrices grow with the batch. The loss is computed device by device: it works through
chunks of tokens anyway, and so each device's sums are its own. The teacher has worked on each device's data when they came.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flwr_splitkd.errors import ConfigError, CutError, SplitKDError
from flwr_splitkd.split import EdgeHalf
from flwr_splitkd.split.surgery import DATA_SHAPE
from flwr_splitkd.tiers.edge.exchange import Microbatch, not_through
from flwr_splitkd.tiers.edge.objective import Objective, StepLoss
from flwr_splitkd.tiers.units import require_finite

__all__ = ["Answered", "Batching", "Item", "differentiate", "join_inputs"]

_log = logging.getLogger(__name__)

_LOSS_REMEDY = "The turn is undone; lower the learning rate, clip gradients, or check the labels."
_SAME = 1e-5
"""Relative distance of outputs up to which a joined batch is the same: kernels round otherwise for other batch sizes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """A device's micro-batch with its part in the step.

    Parameters
    ----------
    microbatch
        On the edge's compute device.
    peer
        The device's name in errors.
    weight
        Factor on the gradient of the device's mean loss in that of the edge's parameters.
    at
        Places dropout where this micro-batch stands.
    """

    microbatch: Microbatch
    peer: str
    weight: float
    at: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answered:
    """What became of an item: its loss and the gradient at the cut of the device's own mean loss, or why there is none."""

    loss: StepLoss | None = None
    gradient: Tensor | None = None
    error: SplitKDError | None = None


class Batching:
    """Which items go through a half together. Tried at each cut on the first batch that could; remembered over clusters.

    A half may mix the samples of a batch (batch normalisation, experts of limited capacity) or draw its dropout for the batch
    as a whole; then a joined batch would train something else.

    Parameters
    ----------
    enabled
        Whether to join at all.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._same: dict[int, bool] = {}

    def groups(self, objective: Objective, half: EdgeHalf, items: Sequence[Item]) -> list[list[Item]]:
        """Part items into those that go through together, in their order."""
        groups: list[list[Item]] = []
        for item in items:
            joined = self._enabled and groups and _fit([*groups[-1], item])
            if joined and self._is_same(objective, half, [*groups[-1], item]):
                groups[-1].append(item)
            else:
                groups.append([item])
        return groups

    def _is_same(self, objective: Objective, half: EdgeHalf, items: Sequence[Item]) -> bool:
        if half.cut not in self._same:
            self._same[half.cut] = same = _gives_the_same(objective, half, items)
            if not same:
                _log.warning(
                    "Devices of a cluster go through the edge's half at cut %d one after another: in one batch the student "
                    "gives something else (batch normalisation, dropout, or experts of limited capacity)",
                    half.cut,
                )
        return self._same[half.cut]


def differentiate(objective: Objective, half: EdgeHalf, items: Sequence[Item]) -> list[Answered]:
    """Forward, loss and backward of items together; the edge's parameters' gradients grow by the weighted sum.

    An item that fails by itself leaves the others and the gradients alone.

    Parameters
    ----------
    objective, half
        What they go through.
    items
        As `Batching.groups` parts them.

    Returns
    -------
    list of Answered
        One for each item.
    """
    if len(items) == 1:
        return [_one(objective, half, items[0])]
    try:
        return _joined(objective, half, items)
    except (ConfigError, CutError):
        raise
    except SplitKDError:
        # Somebody's own fault, and nothing was added yet: find out whose.
        return [_one(objective, half, item) for item in items]


def _one(objective: Objective, half: EdgeHalf, item: Item) -> Answered:
    microbatch = item.microbatch
    item.at()
    smashed = microbatch.smashed.detach().requires_grad_()
    try:
        with torch.enable_grad():
            outputs = _outputs(objective, half, smashed, microbatch.inputs, [item])
            loss = _loss(objective, outputs, item)
    except (ConfigError, CutError):
        raise
    except SplitKDError as error:
        return Answered(error=error)
    _backward(loss, item.weight)
    return Answered(loss=loss, gradient=_own(smashed.grad, smashed, item.weight))


def _joined(objective: Objective, half: EdgeHalf, items: Sequence[Item]) -> list[Answered]:
    items[0].at()
    microbatches = [item.microbatch for item in items]
    sizes = [microbatch.num_samples for microbatch in microbatches]
    smashed = torch.cat([microbatch.smashed.detach() for microbatch in microbatches]).requires_grad_()
    with torch.enable_grad():
        outputs = _outputs(objective, half, smashed, join_inputs([m.inputs for m in microbatches], sizes), items)
    # Each device's loss ends at a leaf of its own, so that no more than one gradient of the head is held at a time.
    leaves = [part.detach().requires_grad_() for part in torch.split(outputs, sizes)]
    losses: list[StepLoss | SplitKDError] = []
    for item, leaf in zip(items, leaves, strict=True):
        try:
            with torch.enable_grad():
                losses.append(_loss(objective, leaf, item))
        except (ConfigError, CutError):
            raise
        except SplitKDError as error:
            losses.append(error)
            continue
        _backward(losses[-1], item.weight)  # type: ignore[arg-type]  # it is a loss
    torch.autograd.backward(outputs, torch.cat([_gradient(leaf) for leaf in leaves]))
    gradients = torch.split(_gradient(smashed), sizes)
    return [
        Answered(error=loss)
        if isinstance(loss, SplitKDError)
        else Answered(loss=loss, gradient=_own(gradient, gradient, item.weight))
        for item, loss, gradient in zip(items, losses, gradients, strict=True)
    ]


def _outputs(
    objective: Objective, half: EdgeHalf, smashed: Tensor, inputs: dict[str, Tensor], items: Sequence[Item]
) -> Tensor:
    try:
        return objective.outputs(half, smashed, inputs)
    except SplitKDError:
        raise
    except Exception as error:  # torch's own words for shapes and kinds that do not go together
        raise not_through(items[0].microbatch, ", ".join(item.peer for item in items), error) from error


def _loss(objective: Objective, outputs: Tensor, item: Item) -> StepLoss:
    microbatch = item.microbatch
    try:
        loss = objective.loss_of(outputs, microbatch.taught, microbatch.labels, microbatch.step_num_tokens)
    except SplitKDError:
        raise
    except Exception as error:
        raise not_through(microbatch, item.peer, error) from error
    require_finite(loss.terms.loss.detach(), f"The loss of step {microbatch.step}", _LOSS_REMEDY)
    return loss


def _backward(loss: StepLoss, weight: float) -> None:
    scale = None if weight == 1 else torch.full_like(loss.terms.loss, weight)
    torch.autograd.backward(loss.terms.loss, scale)


def _gradient(leaf: Tensor) -> Tensor:
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)


def _own(gradient: Tensor | None, like: Tensor, weight: float) -> Tensor:
    """The gradient of the device's own mean loss: what came back was that of its part in the edge's."""
    if gradient is None:
        return torch.zeros_like(like)
    return gradient / weight if weight not in (0.0, 1.0) else gradient


# ---- joining


def join_inputs(inputs: Sequence[Mapping[str, Tensor]], sizes: Sequence[int]) -> dict[str, Tensor]:
    """Join what goes beside the smashed data: row by row where there is a row for each sample; the rest is common to all."""
    joined: dict[str, Tensor] = {}
    for name, first in inputs[0].items():
        every = [one[name] for one in inputs]
        if name == DATA_SHAPE:
            joined[name] = torch.cat([torch.tensor([sum(sizes)], dtype=first.dtype, device=first.device), first[1:]])
        elif _has_rows(name, every, sizes):
            joined[name] = torch.cat(every)
        else:
            joined[name] = first
    return joined


def _has_rows(name: str, every: Sequence[Tensor], sizes: Sequence[int]) -> bool:
    return name != DATA_SHAPE and all(one.dim() and len(one) == size for one, size in zip(every, sizes, strict=True))


def _fit(items: Sequence[Item]) -> bool:
    """Whether the tensors of the last item go with those of the first: same names, kinds and shapes but for the rows."""
    first, last = items[0].microbatch, items[-1].microbatch
    pairs: list[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = [
        ({"smashed": first.smashed, "labels": first.labels}, {"smashed": last.smashed, "labels": last.labels}),
        (first.inputs, last.inputs),
    ]
    sizes = (first.num_samples, last.num_samples)
    return all(_alike(one, other, sizes) for one, other in pairs)


def _alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor], sizes: tuple[int, int]) -> bool:
    if one.keys() != other.keys():
        return False
    for name, a in one.items():
        b = other[name]
        if a.dtype != b.dtype or a.dim() != b.dim():
            return False
        rows = _has_rows(name, (a, b), sizes)
        if rows and a.shape[1:] != b.shape[1:]:
            return False
        if name == DATA_SHAPE:
            if not torch.equal(a[1:], b[1:]):
                return False
        elif not rows and not torch.equal(a, b):
            return False
    return True


@torch.no_grad()
def _gives_the_same(objective: Objective, half: EdgeHalf, items: Sequence[Item]) -> bool:
    """Try a half on a joined batch and on its parts; buffers that the trial moves are put back."""
    kept = {name: buffer.clone() for name, buffer in half.model.named_buffers()}
    microbatches = [item.microbatch for item in items]
    sizes = [microbatch.num_samples for microbatch in microbatches]
    try:
        items[0].at()
        smashed = torch.cat([microbatch.smashed for microbatch in microbatches])
        joined = objective.outputs(half, smashed, join_inputs([m.inputs for m in microbatches], sizes))
        if len(joined) != sum(sizes):
            return False
        for item, part in zip(items, torch.split(joined, sizes), strict=True):
            item.at()
            alone = objective.outputs(half, item.microbatch.smashed, item.microbatch.inputs)
            tolerance = max(_SAME, 4 * objective.precision(part))
            if alone.shape != part.shape or not bool((alone - part).norm() <= tolerance * alone.norm()):
                return False
        return True
    except Exception as error:  # whatever the student finds wrong with it, one after another is right
        _log.info("A joined batch does not go through the edge's half: %s", error)
        return False
    finally:
        for name, buffer in half.model.named_buffers():
            buffer.copy_(kept[name])
