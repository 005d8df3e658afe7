"""The optimiser of what trains on the edge."""

from __future__ import annotations

from torch import nn

from flwr_splitkd.split import EdgeHalf, export_optimizer_state, import_optimizer_state
from flwr_splitkd.tiers.edge.student import EdgeStudent
from flwr_splitkd.tiers.optimizer import set_learning_rate
from flwr_splitkd.tiers.units import Moments

__all__ = ["EdgeOptimizer"]


class EdgeOptimizer:
    """The optimiser of the edge's half, for as long as a turn or a cluster lasts; none when nothing trains there.

    Parameters
    ----------
    half
        Whose parameters it takes; of a cluster, that of the lowest cut.
    student
        Has the moments to begin with.
    training
        Whether anything trains.
    """

    def __init__(self, half: EdgeHalf, student: EdgeStudent, *, training: bool) -> None:
        self.trainable: list[tuple[str, nn.Parameter]] = (
            [(n, p) for n, p in half.named_parameters() if p.requires_grad] if training else []
        )
        self._optimizer = (
            student.optimizer.build((p for _, p in self.trainable), fused=student.fused_optimizer)
            if self.trainable
            else None
        )
        if self._optimizer:
            import_optimizer_state(self._optimizer, self.trainable, student.moments_of_half(half))

    def step(self, learning_rate: float) -> None:
        """Take a step at this rate, and drop the gradients."""
        if self._optimizer:
            set_learning_rate(self._optimizer, learning_rate)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        if self._optimizer:
            self._optimizer.zero_grad(set_to_none=True)

    def moments(self) -> Moments:
        """The moments as they are now."""
        return export_optimizer_state(self._optimizer, self.trainable) if self._optimizer else {}
