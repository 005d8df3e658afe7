"""When a run has reached its aim before its last round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from flwr_splitkd.errors import ConfigError

__all__ = ["NeverStop", "StopPolicy", "TargetMetric"]


class StopPolicy(Protocol):
    """Decides after each round."""

    def reason(self, metrics: Mapping[str, float]) -> str | None:
        """Return why to stop, or None to go on.

        Parameters
        ----------
        metrics
            The round's metrics; evaluation on the server overrides that on the devices, which overrides training.
        """


class NeverStop:
    """Go on to the last round."""

    def reason(self, metrics: Mapping[str, float]) -> str | None:
        """Return None."""
        return None


class TargetMetric:
    """Stop once a metric is good enough.

    Parameters
    ----------
    name
        Key of the metric, e.g. ``"perplexity"``.
    at_most, at_least
        The target; exactly one of the two.
    """

    def __init__(self, name: str, *, at_most: float | None = None, at_least: float | None = None) -> None:
        if (at_most is None) == (at_least is None):
            raise ConfigError(
                f"TargetMetric({name!r}) has at_most={at_most} and at_least={at_least}; expected exactly one of them."
            )
        self.name, self.at_most, self.at_least = name, at_most, at_least

    def reason(self, metrics: Mapping[str, float]) -> str | None:
        """Compare the metric with the target.

        Raises
        ------
        ConfigError
            If no such metric was reported.
        """
        if self.name not in metrics:
            raise ConfigError(
                f"The target metric is {self.name!r}; expected one of {sorted(metrics)}. "
                "Have `evaluate_fn` or the devices report it."
            )
        value = metrics[self.name]
        if self.at_most is not None and value <= self.at_most:
            return f"{self.name} {value:.4g} is at most {self.at_most:g}"
        if self.at_least is not None and value >= self.at_least:
            return f"{self.name} {value:.4g} is at least {self.at_least:g}"
        return None
