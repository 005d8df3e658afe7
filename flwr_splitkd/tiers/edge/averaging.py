"""Copies of one layer become one layer: their weighted mean."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Shaped
from torch import Tensor

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.tiers.units import Moments

__all__ = ["Copies", "WeightedMean"]


class WeightedMean:
    """The mean of one tensor's copies, ``sum_i w_i x_i / sum_i w_i``, taken in one after another.

    One copy comes back as it is, bit for bit; several are summed in float64, so that equal copies come back unchanged too. Whole
    numbers, such as the count of batches of a normalisation layer, are not averaged: the largest counts.

    Parameters
    ----------
    largest
        The largest counts of these copies too.
    """

    def __init__(self, *, largest: bool = False) -> None:
        self.weight, self.count = 0.0, 0
        self._largest = largest
        self._value: Tensor | None = None
        self._dtype = torch.float32

    def add(self, weight: float, tensor: Shaped[Tensor, ...]) -> None:
        """Take a copy in.

        Parameters
        ----------
        weight
            At least 0, e.g. the samples that it was trained with; a copy of weight 0 is left out.

        Raises
        ------
        ConfigError
            If the weight is negative or no number.
        """
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"`weight` is {weight}; expected a finite number of at least 0.")
        if weight == 0:
            return
        tensor = tensor.detach().cpu()
        if self._value is None:
            self._value, self._dtype = tensor, tensor.dtype
            self._largest = self._largest or not tensor.is_floating_point()
        elif self._largest:
            self._value = torch.maximum(self._value, tensor)
        else:
            if self.count == 1:
                self._value = self._value.double() * self.weight
            self._value.add_(tensor.double(), alpha=weight)
        self.weight += weight
        self.count += 1

    def value(self) -> Shaped[Tensor, ...]:
        """The mean, in the copies' own dtype.

        Raises
        ------
        ConfigError
            If there was no copy of a weight above 0.
        """
        if self._value is None:
            raise ConfigError("There is no copy to average; expected at least one of a weight above 0.")
        if self.count == 1 or self._largest:
            return self._value
        return (self._value / self.weight).to(self._dtype)


class Copies:
    """Weights and optimiser moments of layers that several tiers hold, by name.

    A parameter's step count is the largest of its copies'. A copy that has no moments, because its parameter never had a
    gradient, counts with moments of zero.
    """

    def __init__(self) -> None:
        self._weights: dict[str, WeightedMean] = {}
        self._moments: dict[str, dict[str, WeightedMean]] = {}

    def add(self, weight: float, weights: Mapping[str, Tensor], moments: Moments) -> None:
        """Take one holder's copies in; `weight` is what they were trained with."""
        for name, tensor in weights.items():
            self._weights.setdefault(name, WeightedMean()).add(weight, tensor)
            for key, entry in moments.get(name, {}).items():
                means = self._moments.setdefault(name, {})
                means.setdefault(key, WeightedMean(largest=key == "step")).add(weight, entry)

    def num_copies(self, name: str) -> int:
        """How many copies of a tensor there are."""
        return self._weights[name].count if name in self._weights else 0

    def weights(self) -> dict[str, Tensor]:
        """The mean of every tensor."""
        return {name: mean.value() for name, mean in self._weights.items() if mean.count}

    def moments(self) -> Moments:
        """The mean of every parameter's moments."""
        return {
            name: {key: self._moment(name, key, mean) for key, mean in entries.items()}
            for name, entries in self._moments.items()
            if all(mean.count for mean in entries.values())
        }

    def _moment(self, name: str, key: str, mean: WeightedMean) -> Tensor:
        if key == "step" or mean.count == self._weights[name].count:
            return mean.value()
        return mean.value() * (mean.weight / self._weights[name].weight)
