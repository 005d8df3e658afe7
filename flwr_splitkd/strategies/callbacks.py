"""Who is told how a run goes: TensorBoard, a figure, or a tracker of the user's own, such as wandb or MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import INFO, WARNING
from typing import Any

from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies.console import log
from flwr_splitkd.strategies.result import TurnRecord

__all__ = ["Callback", "Callbacks", "default_callbacks"]


class Callback:
    """Told what happens in a run; override what you need.

    The calls come one after another from the thread of the ServerApp. What a callback raises is logged, and the run goes
    on: nobody loses a night's training to a tracker that is down.
    """

    def on_start(self, run: RunFolder, config: Mapping[str, Any]) -> None:
        """A run begins: where its files are, and what ``config.json`` holds."""

    def on_turn(self, turn: TurnRecord) -> None:
        """A turn is over, completed (``turn.outcome``) or not (``turn.error``)."""

    def on_evaluation(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """The user's `evaluate_fn` has returned; round 0 is before training."""

    def on_round(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """A round is over; all its metrics, those of its evaluations included."""

    def on_end(self, error: BaseException | None) -> None:
        """The run is over, because of `error` or as planned. Always called once after `on_start`."""


class Callbacks:
    """Tells several callbacks, and keeps their failures from the run."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = list(callbacks)

    def tell(self, hook: str, *arguments: Any) -> None:
        """Call a hook of each callback by name."""
        for callback in self._callbacks:
            try:
                getattr(callback, hook)(*arguments)
            except Exception as error:  # a user's code, and whatever it calls
                name = type(callback).__name__
                log(WARNING, "%s.%s failed and is left out: %s: %s", name, hook, type(error).__name__, error)


def default_callbacks() -> list[Callback]:
    """TensorBoard events and the figure, if what they need is installed; what is left out is logged."""
    try:
        from flwr_splitkd.report.figures import FigureFile
        from flwr_splitkd.report.tensorboard import TensorBoard
    except Exception as error:  # not only ImportError: two packages may disagree about a third's version
        reason = f"{type(error).__name__}: {error}"
        log(INFO, "\t├──> No TensorBoard events and no figure; pip install 'flwr_splitkd[report]' (%s)", reason)
        return []
    return [TensorBoard(), FigureFile()]
