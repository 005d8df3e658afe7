"""Devices of a pace and a link of their own, as threads of this process: they compute what the product's do, and sleep the rest.

A pass takes as long as on a machine of that pace, a message as long as its payload does at the link's rate. So many slow devices
fit on few cores. Whether they fit is counted: a pass that took longer than it should is late.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flwr_splitkd.errors import SplitKDError
from flwr_splitkd.models import build_skeleton, fingerprint
from flwr_splitkd.split import find_layout
from flwr_splitkd.store import DeviceCache
from flwr_splitkd.tiers.device import OWN_MOMENTS, DeviceData, run_turn
from flwr_splitkd.tiers.edge import EdgeService
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import supported_codecs
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.server import Session
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Pace", "Passes", "devices", "is_connected"]

RUN_ID = 1
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a device and its link are; 0 for as fast as this machine is.

    Parameters
    ----------
    forward_s, backward_s
        Of each micro-batch. The backward pass ends with the optimiser step.
    rate_bps
        Of each direction of its link.
    """

    forward_s: float = 0.0
    backward_s: float = 0.0
    rate_bps: float = 0.0

    def on_link_s(self, num_bytes: int) -> float:
        """Seconds of a payload on its way."""
        return 8 * num_bytes / self.rate_bps if self.rate_bps else 0.0


@dataclass(slots=True)
class Passes:
    """Passes of all devices, and how many took longer than their pace allows; payload bytes of a step."""

    count: int = 0
    late: int = 0
    late_s: float = 0.0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    handed_up_bytes: int = 0
    handed_down_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def took(self, seconds: float, allowed_s: float) -> None:
        """Count a pass."""
        with self.lock:
            self.count += 1
            if allowed_s and seconds > allowed_s:
                self.late += 1
                self.late_s += seconds - allowed_s


class _PacedLink:
    """A link on which messages leave and arrive when those of a device of this pace would."""

    def __init__(self, link: Link, pace: Pace, passes: Passes) -> None:
        self._link, self._pace, self._passes = link, pace, passes
        self._since_s = time.monotonic()
        self._allowed_s: float | None = (
            None  # for what is computed since then; None for what has no pace: building the half
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def send(self, body: Any, tensors: Any = None) -> None:
        num_bytes = sum(len(tensor.payload) for tensor in (tensors or {}).values())
        if isinstance(body, pb.Forward):
            self._work(self._pace.forward_s)
            self._passes.uplink_bytes = num_bytes
        elif isinstance(body, pb.GradientNorms):
            self._work(0.0)
        elif isinstance(body, pb.TurnDone):
            self._work(0.0)
            self._passes.handed_up_bytes = num_bytes
        time.sleep(self._pace.on_link_s(num_bytes))
        self._link.send(body, tensors)

    def receive(self, expected: str, timeout_s: float) -> Any:
        message = self._link.receive(expected, timeout_s)
        time.sleep(self._pace.on_link_s(message.num_bytes))
        if message.kind == "Backward":
            self._passes.downlink_bytes = message.num_bytes
        elif message.kind == "Begin":
            self._passes.handed_down_bytes = message.num_bytes
        self._since_s = time.monotonic()
        self._allowed_s = {"Backward": self._pace.backward_s, "Update": 0.0}.get(message.kind)
        return message

    def _work(self, then_s: float) -> None:
        """End what was computed since the last message: the rest of that pass, and of the one that follows it."""
        if self._allowed_s is None:
            time.sleep(then_s)
            return
        allowed_s, took_s = self._allowed_s + then_s, time.monotonic() - self._since_s
        if allowed_s:
            self._passes.took(took_s, allowed_s)
            time.sleep(max(allowed_s - took_s, 0.0))
        self._allowed_s = None


@contextmanager
def devices(
    edge: EdgeService,
    student: Callable[[], nn.Module],
    batches: Sequence[Sequence[dict[str, torch.Tensor]]],
    pace: Pace,
    folder: Path,
    passes: Passes,
) -> Iterator[list[Session]]:
    """Start a device for each list of batches and wait until all are connected; on leaving, until all have ended.

    Raises
    ------
    RuntimeError
        If one fails.
    """
    sessions = [edge.expect(run_id=RUN_ID, node_id=node, server_round=1) for node in range(1, len(batches) + 1)]
    failures: list[BaseException] = []

    def work(session: Session, own: Sequence[dict[str, torch.Tensor]]) -> None:
        try:
            _device(edge.server.address, session, student, own, pace, folder, passes)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in zip(sessions, batches, strict=True)]
    for thread in threads:
        thread.start()
    with edge.server.changed:
        edge.server.changed.wait_for(
            lambda: bool(failures) or all(session.connected for session in sessions), TIMEOUT_S
        )
    if not failures:
        yield sessions
    for thread in threads:
        thread.join(TIMEOUT_S)
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(sessions)} devices failed; expected none.") from failures[0]


def is_connected(sessions: Sequence[Session]) -> bool:
    """Whether all devices are there."""
    return all(session.connected for session in sessions)


def _device(
    address: str,
    session: Session,
    student: Callable[[], nn.Module],
    batches: Sequence[dict[str, torch.Tensor]],
    pace: Pace,
    folder: Path,
    passes: Passes,
) -> None:
    model = build_skeleton(student)
    layout = find_layout(model)
    node_id = session.ticket.node_id
    cache = DeviceCache(folder / f"device-{node_id}")
    hello = pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        session_id=session.ticket.session_id,
        token=session.ticket.token,
        run_id=RUN_ID,
        node_id=node_id,
        server_round=1,
        device_name=str(node_id),
        student=fingerprint_to_wire(fingerprint(model, layout)),
        codecs=supported_codecs(),
    )
    for unit, version in cache.versions().items():
        if not unit.startswith(OWN_MOMENTS):
            hello.cached_units.add(unit=unit, version=version)
    with connect(address, hello) as link:
        paced: Any = _PacedLink(link, pace, passes)
        try:
            run_turn(
                paced,
                model=model,
                layout=layout,
                data=DeviceData(batches),
                cache=cache,
                compute_device=torch.device("cpu"),
                begin_timeout_s=TIMEOUT_S,
                step_timeout_s=TIMEOUT_S,
            )
        except SplitKDError as error:
            link.fail(error)
            raise
