"""Who is told how a run goes, and how a run is kept from their failures."""

from __future__ import annotations

from collections.abc import Iterable
from logging import INFO, WARNING
from typing import Any

from flwr_splitkd.callbacks import Callback
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.strategies.console import log

__all__ = ["Callbacks", "default_callbacks"]


class Callbacks:
    """Tells several callbacks, and keeps their failures from the run."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = list(callbacks)

    def tell(self, hook: str, *arguments: Any) -> None:
        """Call a hook of each callback by name.

        Raises
        ------
        ConfigError
            If `on_start` does: the run has not begun, and would go on without what was asked for.
        """
        for callback in self._callbacks:
            try:
                getattr(callback, hook)(*arguments)
            except Exception as error:  # a user's code, and whatever it calls
                if hook == "on_start" and isinstance(error, ConfigError):
                    raise
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
