"""The whole student on the edge: weights, optimiser moments and versions between turns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flwr_splitkd.errors import ProtocolError, StoreError
from flwr_splitkd.models import Fingerprint, fingerprint, inner_model
from flwr_splitkd.split import EdgeHalf, Layout, is_token_model, load_unit_state, random_batch, verify_cut
from flwr_splitkd.store import CommitLog, Manifest
from flwr_splitkd.store.tensor_file import digest
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.tiers.units import (
    FROZEN,
    Moments,
    pack,
    require_finite,
    trained_names,
    unpack,
    versioned_units,
)
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["HANDOVERS", "EdgeStudent", "HandoverName"]

HandoverName = Literal["full", "reset", "device"]

HANDOVERS: dict[str, pb.OptimizerHandover] = {
    "full": pb.OPTIMIZER_HANDOVER_FULL,
    "reset": pb.OPTIMIZER_HANDOVER_RESET,
    "device": pb.OPTIMIZER_HANDOVER_DEVICE,
}


class EdgeStudent:
    """The student that the edge keeps whole, as of the last commit whenever no turn is under way.

    A turn changes the edge's half in place. It ends with `commit`, which takes the device's half in and makes
    both durable, or with `roll_back`, which restores the last commit from the disk.

    Parameters
    ----------
    whole
        The whole student on its compute device; a `PeftModel` if it has adapters.
    layout
        Of the model itself, adapters included.
    optimizer
        Settings that both halves build their optimiser from.
    handover
        What becomes of the moments of layers that change hands.
    log
        Where commits go. An empty log gets the initial state as its first commit; of another one, the state of its last
        commit takes the place of the model's.
    fused_optimizer
        As of `EdgeCompute`.

    Raises
    ------
    StoreError
        If the log holds another student's commits, or cannot be read or written.
    """

    def __init__(
        self,
        whole: nn.Module,
        layout: Layout,
        *,
        optimizer: OptimizerSettings,
        handover: HandoverName,
        log: CommitLog,
        fused_optimizer: bool = False,
    ) -> None:
        self.whole, self.layout = whole, layout
        self.model = model = inner_model(whole)
        self.optimizer, self.handover, self.fused_optimizer = optimizer, handover, fused_optimizer
        self.fingerprint: Fingerprint = fingerprint(model, layout)
        self.parameter_order = [name for name, _ in model.named_parameters()]
        self.moments: Moments = {}
        self._log = log
        self._checked_cuts: set[int] = set()
        self._names = versioned_units(model, layout)
        self._versions: dict[str, str] = {}
        if log.latest is None:
            self._commit_units(self._names, {"event": "start", "next_step": 0})
        else:
            self._take_over(log.latest)

    @property
    def last_commit(self) -> str:
        """Name of the commit in force."""
        return self._log.latest.commit_id if self._log.latest else ""

    @property
    def last_info(self) -> Mapping[str, Any]:
        """What the commit in force remembers: ``next_step``, and what whoever served the turn gave it."""
        return self._log.latest.info if self._log.latest else {}

    @property
    def next_step(self) -> int:
        """Number of the optimiser step that comes after the last commit."""
        return int(self.last_info["next_step"])

    def note(self, info: Mapping[str, Any]) -> None:
        """Commit the same student with something else to remember.

        Raises
        ------
        StoreError
            If the disk is full.
        """
        self._log.commit({}, {**info, "next_step": self.next_step})

    def handover_bytes(self) -> list[int]:
        """Bytes of what trains on the device, and of its moments if they travel, for each cut ``1 .. L-1``."""
        copies = 1 + (len(self.optimizer.moment_keys - {"step"}) if self.handover == "full" else 0)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        return [
            copies * sum(parameters[name].nbytes for name in self.trainable_in(self.device_units(cut)))
            for cut in range(1, self.layout.num_blocks)
        ]

    def half(self, cut: int) -> EdgeHalf:
        """Cut the student for a turn; `EdgeHalf.restore` makes it whole again."""
        return EdgeHalf(self.model, cut, self.layout)

    def check_cut(self, cut: int, travelling: Mapping[str, Tensor]) -> None:
        """Try a cut of a module from outside transformers, once, on random data of a real batch's shape.

        Its blocks were named by a person, and what runs between them is known only when it runs. (A transformers model has
        been tried when the edge opened.)

        Raises
        ------
        UncuttableModelError
            If the two halves would not train as the whole.
        ProtocolError
            If the data of this device do not even go through the whole.
        """
        if cut in self._checked_cuts or is_token_model(self.model):
            return
        batch = random_batch(self.layout, travelling)
        try:
            with torch.no_grad():
                self.model.eval()(**batch)
        except Exception as error:  # torch's own words for shapes and kinds that do not go together
            shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
            raise ProtocolError(
                f"Data of the shapes {shapes} do not go through the student: {type(error).__name__}: {error}. Check the "
                "batches of this device."
            ) from error
        verify_cut(self.model, self.layout, [cut], inputs=batch)
        self._checked_cuts.add(cut)

    def device_units(self, cut: int) -> list[str]:
        """Versioned units that a device holds at a cut; one without tensors, such as a ReLU, is none."""
        if cut == self.layout.num_blocks:  # delivered whole
            return list(self._names)
        units = (name for unit in self.layout.units(cut)[0] for name in (unit, unit + FROZEN))
        return [unit for unit in units if unit in self._names]

    def names_in(self, unit: str) -> list[str]:
        """State-dict names of a versioned unit."""
        return list(self._names[unit])

    def version(self, unit: str) -> str:
        """Version of a unit as of the last commit."""
        return self._versions[unit]

    def travelling(self, unit: str, *, training: bool = True) -> dict[str, Tensor]:
        """A unit's tensors as a device receives them: with moments only to train on, and under ``full``."""
        moments = self.moments if training and self.handover == "full" else {}
        return pack(self._weights(unit), moments)

    def frozen_in(self, units: Iterable[str]) -> list[str]:
        """Parameters of some versioned units that do not train, in the model's order."""
        return self._parameters_in(units, trainable=False)

    def trainable_in(self, units: Iterable[str]) -> list[str]:
        """Parameters of some versioned units that train, in the model's order."""
        return self._parameters_in(units, trainable=True)

    def moments_of_half(self, half: EdgeHalf) -> Moments:
        """Moments that the edge's optimiser starts a turn with."""
        if self.handover == "reset":
            return {}
        own = {name for name, parameter in half.named_parameters() if parameter.requires_grad}
        return {name: entries for name, entries in self.moments.items() if name in own}

    def commit(
        self, cut: int, from_device: Mapping[str, Tensor], own_moments: Moments, info: Mapping[str, Any]
    ) -> Manifest:
        """End a turn: take the device's units in and make both halves durable. The model must be whole.

        Nothing is taken in unless everything fits.

        Raises
        ------
        ProtocolError
            If the device sent other tensors than those that it trained.
        TensorError
            If a tensor has another shape or dtype.
        NonFiniteError
            If either half has become NaN or infinite.
        StoreError
            If the disk is full; roll back then.
        """
        weights, moments = self.check_part(cut, from_device)
        return self.commit_copies(weights, moments, own_moments, info)

    def check_part(self, cut: int, from_device: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Moments]:
        """Look at what a device hands back before any of it is taken in.

        Returns
        -------
        weights, moments
            By parameter name.

        Raises
        ------
        ProtocolError
            If these are other tensors than those that it trained.
        NonFiniteError
            If one has become NaN or infinite.
        """
        weights, moments = unpack(from_device)
        self._check_names(set(self.layout.units(cut)[0]), weights, moments)
        own = dict(self.model.named_parameters())
        _require_all_finite({name: tensor for name, tensor in weights.items() if name in own})
        _require_all_finite({f"{key} of {name}": t for name, entries in moments.items() for key, t in entries.items()})
        return weights, moments

    def commit_copies(
        self, weights: Mapping[str, Tensor], moments: Moments, own_moments: Moments, info: Mapping[str, Any]
    ) -> Manifest:
        """Make the student durable with these weights and moments in the place of its own; the model must be whole.

        Parameters
        ----------
        weights, moments
            Of layers that devices have trained, alone or together.
        own_moments
            Of what the edge has trained.
        info
            What the commit remembers.

        Raises
        ------
        TensorError
            If a tensor has another shape or dtype.
        NonFiniteError
            If what the edge has trained has become NaN or infinite.
        StoreError
            If the disk is full; roll back then.
        """
        own = {n: p for n, p in self.model.named_parameters() if p.requires_grad and n not in weights}
        _require_all_finite(own)
        load_unit_state(self.model, weights)
        if self.handover != "reset":
            self.moments.update(own_moments)
        if self.handover == "full":
            self.moments.update(moments)
        return self._commit_units((unit for unit in self._names if not unit.endswith(FROZEN)), info)

    def roll_back(self) -> None:
        """Restore the last commit. The model must be whole.

        Raises
        ------
        StoreError
            If the commit's files are damaged.
        """
        moments: Moments = {}
        for unit in self._names:
            weights, unit_moments = unpack(self._log.read(unit))
            load_unit_state(self.model, weights)
            moments.update(unit_moments)
        self.moments = moments
        # A step that was cut short has left gradients; the next turn's first step must not add to them.
        self.model.zero_grad(set_to_none=True)

    def _parameters_in(self, units: Iterable[str], *, trainable: bool) -> list[str]:
        names = {name for unit in units for name in self._names[unit]}
        return [n for n, p in self.model.named_parameters() if p.requires_grad == trainable and n in names]

    def _weights(self, unit: str) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {name: state[name].detach() for name in self._names[unit]}

    def _take_over(self, manifest: Manifest) -> None:
        """Continue from a commit of an earlier process."""
        if set(manifest.units) != set(self._names):
            odd = sorted(set(manifest.units) ^ set(self._names))
            raise StoreError(
                f"Commit {manifest.commit_id} has {len(manifest.units)} units; expected the {len(self._names)} of this student. "
                f"The first that differs is {odd[0]!r}. Resume with the settings that the run began with."
            )
        self.roll_back()
        for unit, version in manifest.units.items():
            self._versions[unit] = version if self.handover == "full" else digest(self.travelling(unit))

    def _commit_units(self, units: Iterable[str], info: Mapping[str, Any]) -> Manifest:
        states = {unit: pack(self._weights(unit), self.moments) for unit in units}
        manifest = self._log.commit(states, info)
        for unit in states:
            full = self.handover == "full"
            # The commit's digest covers the moments too; without hand-over of these they must not matter.
            self._versions[unit] = manifest.units[unit] if full else digest(self.travelling(unit))
        return manifest

    def _check_names(self, device_units: set[str], weights: Mapping[str, Tensor], moments: Moments) -> None:
        expected = {name for name in trained_names(self.model) if self.layout.unit_of(name) in device_units}
        if set(weights) != expected:
            odd = sorted(set(weights) ^ expected)
            raise ProtocolError(
                f"The device handed back {len(weights)} tensors; expected the {len(expected)} that train in its half. "
                f"The first that differs is {odd[0]!r}."
            )
        parameters = dict(self.model.named_parameters())
        for name, entries in moments.items():
            for key, tensor in entries.items():
                fits = name in expected and name in parameters
                if not fits or tensor.shape != (torch.Size([]) if key == "step" else parameters[name].shape):
                    raise ProtocolError(
                        f"The device handed back the moment {key!r} of {name!r} with shape {tuple(tensor.shape)}; "
                        "expected only moments of its trainable parameters, in their shape."
                    )
            if set(entries) != self.optimizer.moment_keys:
                raise ProtocolError(
                    f"The device handed back the moments {sorted(entries)} of {name!r}; expected "
                    f"{sorted(self.optimizer.moment_keys)}. Install the same torch on the device and on the edge."
                )


def _require_all_finite(tensors: Mapping[str, Tensor]) -> None:
    """The last look before a turn is durable: its last step's outcome has met no loss yet."""
    for name, tensor in tensors.items():
        require_finite(tensor.detach(), f"{name!r} at the turn's end", "Lower the learning rate or clip gradients.")
