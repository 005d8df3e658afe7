"""The end of a run on a device that is to have the whole student: receive what it lacks, write a folder."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from flwr_splitkd.models import inner_model, materialize, save_student
from flwr_splitkd.store import DeviceCache
from flwr_splitkd.tiers.device.units import collect_units
from flwr_splitkd.tiers.units import encode_all, unpack
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["receive_student"]


def receive_student(
    link: Link, begin: WireMessage, *, whole: nn.Module, cache: DeviceCache, folder: Path, timeout_s: float
) -> pb.TurnResult:
    """Fill the student's skeleton and save it; return the edge's word.

    Parameters
    ----------
    begin
        A plan in ``MODE_DELIVER``, with units of the whole student.
    whole
        The student's skeleton, a `PeftModel` if it has adapters. It is of no other use afterwards.
    folder
        Where the student is saved; see `save_student`.

    Raises
    ------
    StoreError
        If the folder cannot be written.
    """
    units = collect_units(begin, cache, keep=lambda _: False)  # the folder is where it is kept
    weights, _ = unpack({name: tensor for unit in units.values() for name, tensor in unit.items()})
    materialize(inner_model(whole), weights)
    save_student(whole, folder)
    link.send(pb.TurnDone(num_steps=0, num_examples=0), encode_all({}))
    result: pb.TurnResult = link.receive("TurnResult", timeout_s).body
    return result
