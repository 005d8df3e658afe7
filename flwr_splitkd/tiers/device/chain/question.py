"""A device's part in one question: the first blocks of its encoder, as it was last made durable."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from flwr_splitkd.errors import ProtocolError
from flwr_splitkd.models import fingerprint
from flwr_splitkd.split import Layout
from flwr_splitkd.tiers.device.batches import Batch, DeviceData
from flwr_splitkd.tiers.device.chain.own_encoder import OwnEncoder
from flwr_splitkd.tiers.device.chain.round import run_round
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.tiers.threads import compute_threads, default_threads
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import supported_codecs
from flwr_splitkd.wire.credentials import Ticket
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Asked", "Asker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An answer, and what the device had to do with it.

    Parameters
    ----------
    tokens
        Of the LLM, its end-of-text token included if it came to that.
    duration_s
        Seconds from dialling the edge to the answer.
    uplink_bytes, downlink_bytes
        To and from the edge.
    """

    tokens: tuple[int, ...]
    duration_s: float
    uplink_bytes: int
    downlink_bytes: int


class Asker:
    """An encoder on the disk of this device, which is read and left as it is.

    Parameters
    ----------
    folder
        Of the encoder, as of `OwnEncoder`.
    skeleton
        The encoder without memory.
    layout
        Of it.

    Raises
    ------
    StoreError
        If the folder holds no encoder, or another one.
    """

    def __init__(self, folder: Path, skeleton: nn.Module, layout: Layout) -> None:
        self._own = OwnEncoder(folder, skeleton, layout, None)
        self._skeleton, self._layout = skeleton, layout
        self._print = fingerprint_to_wire(fingerprint(skeleton, layout))

    @property
    def info(self) -> Mapping[str, object]:
        """``next_step`` and ``server_round`` of the encoder's last commit."""
        return self._own.info

    def ask(self, address: str, ticket: Ticket, batch: Batch, *, timeout_s: float = 600.0) -> Asked:
        """Send one question through the chain; once, since the skeleton is filled with the device's blocks.

        Parameters
        ----------
        address, ticket
            Of an edge that serves an evaluation.
        batch
            One sample; its ``labels`` may be ignored ones.
        timeout_s
            Seconds that the answer may take.

        Raises
        ------
        SplitKDError
            Why there is no answer.
        """
        hello = pb.Hello(
            protocol_version=PROTOCOL_VERSION,
            session_id=ticket.session_id,
            token=ticket.token,
            run_id=ticket.run_id,
            node_id=ticket.node_id,
            server_round=ticket.server_round,
            device_name="asker",
            student=self._print,
            codecs=supported_codecs(),
            cached_units=[pb.UnitVersion(unit=unit, version=digest) for unit, digest in self._own.versions.items()],
            num_examples=1,
            num_batches=1,
            software=f"flwr_splitkd {version('flwr_splitkd')}, torch {torch.__version__}",
        )
        answers: list[list[int]] = []

        def keep(tokens: list[list[int]], _: Batch) -> dict[str, float]:
            answers.extend(tokens)
            return {}

        started_s = time.monotonic()
        with compute_threads(default_threads(address)), connect(address, hello) as link:
            run_round(
                link,
                skeleton=self._skeleton,
                layout=self._layout,
                own=self._own,
                data=DeviceData([batch]),
                compute_device=torch.device("cpu"),
                begin_timeout_s=timeout_s,
                step_timeout_s=timeout_s,
                score=keep,
            )
        if len(answers) != 1:
            raise ProtocolError(f"The edge answered with {len(answers)} rows of tokens; expected 1, of one question.")
        return Asked(
            tokens=tuple(answers[0]),
            duration_s=time.monotonic() - started_s,
            uplink_bytes=link.bytes_sent,
            downlink_bytes=link.bytes_received,
        )
