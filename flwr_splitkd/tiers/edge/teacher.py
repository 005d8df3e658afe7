"""The frozen teacher: its first part goes to the devices, the rest runs here."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flwr_splitkd.distill import Head, Others, top_k_logits
from flwr_splitkd.errors import ConfigError, CutError
from flwr_splitkd.models import HeadTap, find_head, token_embedding
from flwr_splitkd.split import EdgeHalf, find_layout, is_token_model, random_batch, unit_state, verify_cut
from flwr_splitkd.split.surgery import DEVICE_ONLY, accepts, has_layer_count
from flwr_splitkd.store.tensor_file import digest
from flwr_splitkd.tiers.edge.compute import EdgeCompute
from flwr_splitkd.tiers.edge.outputs import class_logits
from flwr_splitkd.tiers.units import TEACHER_UNIT, pack
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["EdgeTeacher", "TeacherData"]


class TeacherData(NamedTuple):
    """What a device sends for the teacher: embeddings, or what the teacher's first blocks gave, and what goes with them."""

    embeddings: Float[Tensor, "batch ..."]
    inputs: Mapping[str, Tensor]


class EdgeTeacher:
    """A whole teacher, fed with what its first part gave on a device.

    Parameters
    ----------
    model
        It is frozen and set to evaluation mode.
    has_head
        Whether its outputs are logits over a vocabulary, rather than classes.
    compute_device
        Where it runs.
    blocks
        Dotted paths of its blocks; found for transformers models.
    top_k
        How many logits of each token make up its outcome; None for final hidden states, from which the loss has all of them. It
        needs a head.
    temperature, beta
        Of the loss.
    cut
        Blocks that run on the device. 0 is for language models of transformers: the device has the token embedding alone, and
        needs no code of the teacher. None is 0 for these and 1 for others.
    compute
        How it computes.

    Raises
    ------
    ConfigError, CutError
        If the teacher cannot be used with these blocks and this cut.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        has_head: bool,
        compute_device: torch.device,
        blocks: Sequence[str] = (),
        cut: int | None = None,
        top_k: int | None = None,
        temperature: float = 1.0,
        beta: float = 0.0,
        compute: EdgeCompute | None = None,
    ) -> None:
        if top_k is not None and not has_head:
            raise ConfigError(
                f"`teacher_top_k` is {top_k} for a classifier; expected None: its logits are no more than its classes."
            )
        if not blocks and not has_layer_count(model):
            raise ConfigError(
                f"`teacher_blocks` is empty and the teacher is a {type(model).__name__}; expected the path of each of its "
                "blocks, in running order, because its first ones run on the devices. Pass teacher_blocks=[...]."
            )
        self.blocks = tuple(blocks)
        self.layout = find_layout(model, list(blocks) or None)
        has_tokens = is_token_model(model)
        self.cut = (0 if has_tokens else 1) if cut is None else cut
        if not has_tokens and self.cut == 0:
            raise CutError(
                f"`teacher_cut` is 0 and the teacher is a {type(model).__name__}, which has no token embedding; expected 1 or "
                "more, because raw data stay on the devices."
            )
        self.model = model.to(compute_device).eval().requires_grad_(False)
        self.layout.check_cut(self.cut, lowest=0)
        self.head: Head | None = find_head(model) if has_head else None
        self.top_k, self._temperature = top_k, temperature
        self._others: Others = "sampled" if beta == 0 else "even"
        self._compared: Head | None = self.head
        self._rest_mass_sum, self._num_tokens = 0.0, 0
        self.embedding_scale = 1.0
        self.units: dict[str, dict[str, Tensor]] = dict(self._device_units())
        self.versions = {unit: digest(tensors) for unit, tensors in self.units.items()}
        self._unchecked = not has_tokens
        self.device, self._compute = compute_device, compute or EdgeCompute()
        self._compute.prepare(self.model, self.layout)
        self._half: EdgeHalf | None = None

    def _device_units(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if self.cut == 0:
            weight, self.embedding_scale = token_embedding(self.model)
            yield TEACHER_UNIT, {"weight/embedding": weight.detach()}
            return
        for unit in self.layout.units(self.cut)[0]:
            state = unit_state(self.model, self.layout, unit)
            if state:
                yield f"{TEACHER_UNIT}.{unit}", pack(state, {})

    def into(self, begin: pb.Begin) -> None:
        """Tell a device which part of the teacher it runs."""
        begin.teacher_embedding_scale = self.embedding_scale
        begin.teacher_cut = self.cut
        if self.cut:
            begin.teacher_blocks.extend(self.blocks)

    def compare(self, vocab_size: int) -> None:
        """Compare the first entries of the vocabulary alone, as many as the student has.

        Raises
        ------
        ConfigError
            If `top_k` is not less than that.
        """
        if self.head is not None:
            self._compared = self.head.first(vocab_size)
        if self.top_k is not None and self.top_k >= vocab_size:
            raise ConfigError(
                f"`teacher_top_k` is {self.top_k}; expected 1..{vocab_size - 1} for a vocabulary of {vocab_size}, or None for all."
            )

    @torch.no_grad()
    def outputs(self, data: TeacherData) -> Float[Tensor, ...]:
        """What the loss needs of the teacher.

        Final hidden states ``[batch, sequence, hidden]`` when it has a head, or with `top_k` a packed `TopK`
        ``[batch, sequence, 2 (k + 1)]``; else class logits.
        """
        half = self._cut_half(data)
        # Meant for the student, which may know arguments that the teacher does not, such as token types.
        inputs = {name: t for name, t in data.inputs.items() if name in DEVICE_ONLY or accepts(self.model, name)}
        with ExitStack() as stack:
            tap = stack.enter_context(HeadTap(self.model)) if self.head else None
            stack.enter_context(self._compute.casting(self.device))
            output = half(data.embeddings.to(self.device), inputs)
        if tap is None:
            return self._compute.in_type_of(class_logits(output, "teacher"), data.embeddings)
        hidden = self._compute.in_type_of(tap.hidden, data.embeddings)
        return self._largest(hidden) if self.top_k else hidden

    @property
    def rest_mass(self) -> float | None:
        """Mean probability of what `top_k` does not keep exactly, over all tokens so far; None if all is exact."""
        return self._rest_mass_sum / max(self._num_tokens, 1) if self.top_k else None

    def _largest(self, hidden: Float[Tensor, "batch sequence hidden"]) -> Float[Tensor, "batch sequence columns"]:
        if self._compared is None or self.top_k is None:
            raise ValueError("Only a teacher with a head and `top_k` has largest logits.")
        largest, rest_mass = top_k_logits(
            hidden.flatten(0, -2), self._compared, k=self.top_k, temperature=self._temperature, others=self._others
        )
        self._rest_mass_sum += float(rest_mass.sum())
        self._num_tokens += len(rest_mass)
        return largest.pack().reshape(*hidden.shape[:-1], -1)

    def _cut_half(self, data: TeacherData) -> EdgeHalf:
        """The teacher's half; a module from outside transformers is tried on random data of the first batch's shape."""
        if self._half is None:
            if self._unchecked:
                tried = copy.deepcopy(self.model).requires_grad_(True)
                with torch.enable_grad():
                    verify_cut(tried, self.layout, [self.cut], inputs=random_batch(self.layout, data.inputs))
            self._half = EdgeHalf(self.model, self.cut, self.layout)
        return self._half
