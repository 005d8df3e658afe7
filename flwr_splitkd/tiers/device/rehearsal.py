"""Before a turn: while other devices have theirs, the teacher gets to know this device's sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from flwr_splitkd.models import inner_model
from flwr_splitkd.split import Layout
from flwr_splitkd.split.surgery import edge_inputs
from flwr_splitkd.store import DeviceCache
from flwr_splitkd.tiers.device.batches import DeviceData, check_token_ids
from flwr_splitkd.tiers.device.steps import Step
from flwr_splitkd.tiers.device.teacher import TeacherFeed, build_teacher
from flwr_splitkd.tiers.device.units import Units, collect_units
from flwr_splitkd.wire.codec import encode
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["rehearse"]


def rehearse(
    link: Link,
    begin: WireMessage,
    *,
    model: nn.Module,
    layout: Layout,
    data: DeviceData,
    cache: DeviceCache,
    compute_device: torch.device,
    timeout_s: float,
    teacher: Callable[[], nn.Module] | None,
) -> tuple[WireMessage, Units]:
    """Send what the teacher needs of one pass over the data, a micro-batch at a time, until the turn begins.

    One is on its way at a time: the edge answers when it has nothing else to do, and no answer says that the turn has begun. An
    empty one says that there are no more.

    Parameters
    ----------
    begin
        A plan in ``MODE_REHEARSE``.
    timeout_s
        Seconds to wait for each answer: as long as the turns of other devices may take.

    Others as of `run_turn`.

    Returns
    -------
    tuple
        The turn's plan, and the teacher's units: the edge does not send them again, and the cache may have had no room.

    Raises
    ------
    SplitKDError
        If the data do not go with the student, or the edge is lost.
    """
    plan: pb.Begin = begin.body
    units = collect_units(begin, cache, lambda unit: True)
    built = build_teacher(plan, units, teacher, layout.data_input, compute_device)
    if built is not None:
        feed = TeacherFeed(built, begin)
        number = 0
        for inputs in _microbatches(plan, data, layout):
            check_token_ids(inputs, model)
            placed = {name: tensor.to(compute_device) for name, tensor in inputs.items()}
            parcels = feed(number, 0, placed, edge_inputs(inner_model(model), layout, placed))
            if "embeddings" not in parcels:  # the edge has all of it
                continue
            link.send(
                pb.TeacherData(step=number),
                {name: encode(parcel.tensor, parcel.codec) for name, parcel in parcels.items()},
            )
            answer = link.receive("Begin|Backward", timeout_s)
            if answer.kind == "Begin":
                return answer, units
            feed.answered(number, 0, kept=answer.body.teacher_kept)
            if not answer.body.teacher_kept:  # no room
                return link.receive("Begin", timeout_s), units
            number += 1
    link.send(pb.TeacherData())
    return link.receive("Begin", timeout_s), units


def _microbatches(plan: pb.Begin, data: DeviceData, layout: Layout) -> Iterator[dict[str, Tensor]]:
    for batches in data.epoch(plan, 0, layout.data_input):
        for inputs, _ in Step.of(batches, plan).microbatches:
            yield inputs
