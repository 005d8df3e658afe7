"""An edge for one question: a process of its own that serves one device's evaluation, and asks the cloud without changing it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from flwr_splitkd.errors import ConfigError, PeerLostError
from flwr_splitkd.tiers.child import Child, Parent, beside, packed
from flwr_splitkd.tiers.edge.chain.cloud_link import CloudAccess, CloudLink
from flwr_splitkd.tiers.edge.chain.plan import ChainSettings, DeviceOutcome, DevicePlan
from flwr_splitkd.tiers.edge.chain.service import ChainEdge, ChainSetup
from flwr_splitkd.wire.credentials import Ticket
from flwr_splitkd.wire.server import Session
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["Answered", "OpenDoor", "QuestionEdge", "serve_question"]

_COME_S = 60.0
"""Seconds that the device has to come; it is on the same machine, and waits already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What the edge knows about a question once it is answered.

    Parameters
    ----------
    device
        The device's part, as of an evaluation.
    duration_s
        Seconds from the device's arrival to its leave.
    uplink_bytes, downlink_bytes
        To and from the cloud.
    cloud_process_id
        On the cloud's machine.
    cloud_step
        Steps that this edge had trained the module when it answered.
    """

    device: DeviceOutcome
    duration_s: float
    uplink_bytes: int
    downlink_bytes: int
    cloud_process_id: int
    cloud_step: int


class OpenDoor:
    """The listening edge, as seen from the process that started it: where a device goes, and what came of it."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.process_id = child.process_id
        self.address: str
        self.ticket: Ticket
        self.address, self.ticket = child.receive()

    def outcome(self) -> Answered:
        """Wait until the device has left.

        Raises
        ------
        SplitKDError
            Why it came to nothing.
        """
        answered: Answered = self._child.receive()
        return answered


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionEdge:
    """The edge between a device and the cloud for as long as one question takes.

    Parameters
    ----------
    slm
        Builds the encoder; a function of a module or a `PretrainedModel`, since it is called in a process of its own.
    access
        Where the cloud is. Whatever it says, the session only reads: a run of the same edge and task goes on beside it.
    split_point
        Blocks of the encoder on the device, 1 to all.
    max_new_tokens
        Tokens of the answer, at most.
    compute_device
        A torch device, for the edge's blocks.
    slm_peft
        Adapters of the encoder.
    """

    slm: Callable[[], nn.Module]
    access: CloudAccess
    split_point: int
    max_new_tokens: int = 32
    compute_device: str = "cpu"
    slm_peft: PeftConfig | None = None

    @contextmanager
    def running(self) -> Iterator[OpenDoor]:
        """Run the process for the ``with`` block.

        Raises
        ------
        ConfigError
            If the encoder's builder cannot be sent to a process.
        SplitKDError
            If the encoder cannot be cut, or the cloud cannot be reached or refuses.
        """
        try:
            parcel = packed(serve_question, self, num_threads=1)
        except Exception as error:  # whatever the user's objects raise
            raise ConfigError(
                f"The edge is a process of its own, and what it was given cannot be sent there: {error}. Expected an `slm` "
                "that is a function of a module, a functools.partial of one or a PretrainedModel."
            ) from error
        with beside("The edge", parcel) as child:
            yield OpenDoor(child)


def serve_question(parent: Parent, asked: QuestionEdge) -> None:
    """Serve one device's evaluation, say what came of it, and end."""
    setup = ChainSetup(
        slm=asked.slm,
        settings=ChainSettings(max_new_tokens=asked.max_new_tokens),
        data_address="127.0.0.1:0",
        advertised_address=None,
        tls=None,
        insecure=False,
        compute_device=torch.device(asked.compute_device),
        grace_period_s=0.0,
        slm_peft=asked.slm_peft,
    )
    edge = setup.open(lambda width: _open_cloud(asked.access, width), ticket_lifetime_s=_COME_S)
    try:
        session = edge.expect(run_id=0, node_id=0, server_round=1)
        parent.say((edge.server.address, session.ticket))
        _wait_for_device(edge, session)
        started_s = time.monotonic()
        plan = DevicePlan(position=0, server_round=1, split_point=asked.split_point, training=False)
        outcome = edge.serve(session, plan, None)
        duration_s = time.monotonic() - started_s
        uplink, downlink = edge.cloud.bytes
        parent.say(
            Answered(
                device=outcome,
                duration_s=duration_s,
                uplink_bytes=uplink,
                downlink_bytes=downlink,
                cloud_process_id=edge.cloud.opened.process_id,
                cloud_step=edge.cloud.opened.next_step,
            )
        )
    finally:
        edge.close()


def _open_cloud(access: CloudAccess, width: int) -> CloudLink:
    # Someone waits at a terminal: a cloud that is lost is said to be lost, not waited for.
    link = CloudLink(replace(access, reads_only=True, patience_s=min(access.patience_s, 60.0)), encoder_width=width)
    try:
        link.open(pb.TASK_START_CONTINUE)
    except BaseException:
        link.close()
        raise
    return link


def _wait_for_device(edge: ChainEdge, session: Session) -> None:
    deadline_s = time.monotonic() + _COME_S
    with edge.server.changed:
        while not session.connected:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise PeerLostError(f"The device did not come to the edge within {_COME_S:g} s.")
            edge.server.changed.wait(min(left_s, 0.1))
