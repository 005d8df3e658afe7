"""The edge's half of one device's encoder, for the time of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import NonFiniteError, ProtocolError
from flwr_splitkd.models import materialize
from flwr_splitkd.split import (
    Layout,
    ServerEncoder,
    clip_coefficient,
    encoder_units,
    export_optimizer_state,
    grad_norms,
    import_optimizer_state,
    scale_gradients,
    seed_dropout,
)
from flwr_splitkd.tiers.optimizer import OptimizerSettings, set_learning_rate
from flwr_splitkd.tiers.units import FROZEN, Moments, pack, require_finite, trained_names, unpack, versioned_units

__all__ = ["ServerHalf", "held_units"]

Units = Mapping[str, Mapping[str, Tensor]]


def held_units(names: Mapping[str, Sequence[str]], layout: Layout, split_point: int, *, device: bool) -> list[str]:
    """Versioned units of one half at a split point.

    Parameters
    ----------
    names
        What `versioned_units` returned for the encoder's skeleton.
    device
        Whether the device's half is meant, or the edge's.
    """
    units = encoder_units(layout, split_point)[0 if device else 1]
    return [unit for one in units for unit in (one, one + FROZEN) if unit in names]


class ServerHalf:
    """Forward, backward and optimiser of the last blocks of one device's encoder.

    Parameters
    ----------
    skeleton
        The encoder without memory; taken over.
    layout
        Of the encoder.
    split_point
        Blocks that the device runs.
    units
        Tensors of each versioned unit that the edge holds, as they travel.
    optimizer
        Of both halves.
    moments_travel
        Whether `units` bring the optimiser's moments, and take them along.
    seed
        Of the device's dropout.
    compute_device
        Where torch computes.

    Raises
    ------
    ProtocolError, TensorError, NonFiniteError
        If the units are not those of this half.
    """

    def __init__(
        self,
        skeleton: nn.Module,
        layout: Layout,
        split_point: int,
        units: Units,
        *,
        optimizer: OptimizerSettings,
        moments_travel: bool,
        seed: int,
        compute_device: torch.device,
    ) -> None:
        self._layout, self._device, self._moments_travel = layout, compute_device, moments_travel
        self.parameter_order = [name for name, _ in skeleton.named_parameters()]
        self.dtype = next(skeleton.parameters()).dtype
        names = versioned_units(skeleton, layout)
        self.names = {unit: names[unit] for unit in held_units(names, layout, split_point, device=False)}
        own = set(held_units(names, layout, split_point, device=True))
        trained = trained_names(skeleton)
        parameters = {name for name, _ in skeleton.named_parameters()}
        self.device_trainable = [
            name
            for name in self.parameter_order
            if name in trained and any(name in names[unit] for unit in own) and name in parameters
        ]
        weights, moments = self._checked(units, dict(skeleton.named_parameters()), optimizer)
        self._half = ServerEncoder(skeleton, split_point, layout)
        materialize(self._half, weights, device=compute_device)
        self._trainable = [(name, p) for name, p in self._half.named_parameters() if p.requires_grad]
        self._optimizer = optimizer.build(p for _, p in self._trainable) if self._trainable else None
        if self._optimizer and moments:
            import_optimizer_state(self._optimizer, self._trainable, moments)
        self._smashed: Tensor | None = None
        self._hidden: Tensor | None = None
        self._open = ExitStack()
        self._seeds = self._open.enter_context(seed_dropout(self._half.model, layout, seed)) if self.names else None

    def forward(self, step: int, smashed: Tensor, inputs: Mapping[str, Tensor], *, training: bool) -> Tensor:
        """Finish the encoder's forward pass; what is returned is a leaf."""
        self._half.train(training)
        if self._seeds is not None:
            self._seeds.at(step)
        smashed = smashed.to(self._device)
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        with torch.set_grad_enabled(training):
            self._smashed = smashed.requires_grad_(training)
            self._hidden = self._half(self._smashed, inputs)
        return self._hidden.detach()

    def backward(self, gradient: Tensor) -> Tensor:
        """Go back from the gradient at the encoder's output to that at the cut."""
        if self._hidden is None or self._smashed is None:
            raise ValueError("Nothing was computed to go back from.")
        hidden, smashed = self._hidden, self._smashed
        self._hidden = self._smashed = None
        if hidden is smashed:
            return gradient
        torch.autograd.backward(hidden, gradient.to(self._device))
        return smashed.grad if smashed.grad is not None else torch.zeros_like(smashed)

    def clip(self, device_norms: Sequence[float], max_norm: float) -> float:
        """Clip this half's gradients by the norm of both; return the factor for the device's."""
        norms = {
            name: torch.tensor(norm, dtype=self.dtype)
            for name, norm in zip(self.device_trainable, device_norms, strict=True)
            if not norm < 0
        }
        norms.update(grad_norms(self._trainable))
        factor, total = clip_coefficient(norms, self.parameter_order, max_norm)
        require_finite(total, "The gradient norm", "The iteration is undone; lower the learning rate.")
        scale_gradients((parameter for _, parameter in self._trainable), factor)
        return float(factor)

    def step(self, learning_rate: float) -> None:
        """Take the optimiser step (equation (10))."""
        if self._optimizer is not None:
            set_learning_rate(self._optimizer, learning_rate)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def units(self) -> dict[str, dict[str, Tensor]]:
        """The trained units as they travel.

        Raises
        ------
        NonFiniteError
            If the half has become NaN or infinite.
        """
        moments: Moments = {}
        if self._optimizer is not None and self._moments_travel:
            moments = export_optimizer_state(self._optimizer, self._trainable)
        state = self._half.model.state_dict() if self.names else {}
        units = {
            unit: pack({name: state[name].detach() for name in names}, moments) for unit, names in self.names.items()
        }
        for unit, tensors in units.items():
            for name, tensor in tensors.items():
                require_finite(
                    tensor, f"{name!r} of {unit} at the round's end", "Lower the learning rate or clip gradients."
                )
        return units

    def close(self) -> None:
        """Give torch's generator back."""
        self._open.close()

    def _checked(
        self, units: Units, parameters: Mapping[str, nn.Parameter], optimizer: OptimizerSettings
    ) -> tuple[dict[str, Tensor], Moments]:
        """Weights and moments of exactly this half's units."""
        if set(units) != set(self.names):
            odd = sorted(set(units) ^ set(self.names))
            raise ProtocolError(f"The edge's half got other units than it needs; the first that differs is {odd[0]!r}.")
        weights, moments = unpack({name: tensor for tensors in units.values() for name, tensor in tensors.items()})
        expected = {name for names in self.names.values() for name in names}
        if set(weights) != expected:
            odd = sorted(set(weights) ^ expected)
            raise ProtocolError(
                f"The device's layers lack or have too many tensors; the first that differs is {odd[0]!r}."
            )
        for name, entries in moments.items():
            fits = name in expected and name in parameters and set(entries) == optimizer.moment_keys
            if not fits or any(not _is_moment(key, tensor, parameters[name]) for key, tensor in entries.items()):
                raise ProtocolError(
                    f"The device's layers bring the moments {sorted(entries)} of {name!r}; expected names, shapes and dtypes of "
                    f"the optimiser's, {sorted(optimizer.moment_keys)}. Install the same torch on the device and on the edge."
                )
        for name, tensor in weights.items():
            if not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(
                    f"{name!r} of the device's layers is not finite; expected numbers. Restore its backup."
                )
        return weights, moments


def _is_moment(key: str, tensor: Tensor, parameter: nn.Parameter) -> bool:
    if key == "step":
        return tensor.shape == torch.Size([]) and tensor.is_floating_point()
    return tensor.shape == parameter.shape and tensor.dtype == parameter.dtype
