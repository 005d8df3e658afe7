"""The edge of the chain as a strategy sees it: open it, hand out tickets, serve all devices of a round at once, close it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from torch import nn

from flwr_splitkd.errors import ConfigError, PeerLostError
from flwr_splitkd.models import build_skeleton, fingerprint, inner_model
from flwr_splitkd.split import Layout, check_encoder, find_layout, verify_encoder
from flwr_splitkd.tiers.edge.chain.cloud_link import CloudLink
from flwr_splitkd.tiers.edge.chain.device_round import KeptUnits, Stage, serve_device
from flwr_splitkd.tiers.edge.chain.iterations import Iterations
from flwr_splitkd.tiers.edge.chain.meter import Meter
from flwr_splitkd.tiers.edge.chain.plan import ChainSettings, DeviceOutcome, DevicePlan
from flwr_splitkd.tiers.fair import FairExecutor
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.wire.codec import codec_code
from flwr_splitkd.wire.credentials import TlsFiles, new_ticket
from flwr_splitkd.wire.framing import Limits
from flwr_splitkd.wire.server import DataPlaneServer, Session

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["ChainEdge", "ChainSetup"]

_MIN_MESSAGE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainSetup:
    """Everything that the edge of a chain needs to open; parameters as in `SCCT`."""

    slm: Callable[[], nn.Module]
    settings: ChainSettings
    data_address: str
    advertised_address: str | None
    tls: TlsFiles | None
    insecure: bool
    compute_device: torch.device
    grace_period_s: float = 15.0
    max_message_bytes: int | None = None
    slm_peft: PeftConfig | None = None

    def __post_init__(self) -> None:
        """Check the choices.

        Raises
        ------
        ConfigError
            If one is out of range.
        """
        if not self.grace_period_s >= 0:
            raise ConfigError(f"`grace_period_s` is {self.grace_period_s}; expected 0 or more seconds.")
        if self.max_message_bytes is not None and self.max_message_bytes < 1:
            raise ConfigError(f"`max_message_bytes` is {self.max_message_bytes}; expected at least 1, or None.")

    def skeleton(self) -> nn.Module:
        """The encoder without memory, with its adapters if there are any."""
        return inner_model(build_skeleton(self.slm, self.slm_peft))

    def open(self, cloud: Callable[[int], CloudLink], *, ticket_lifetime_s: float) -> ChainEdge:
        """Check the encoder, bind the port and begin to listen.

        Parameters
        ----------
        cloud
            Opens the stream to the cloud for an encoder of this width.
        ticket_lifetime_s
            Seconds that a called device has to come.

        Raises
        ------
        ConfigError, CutError
            If the settings or the encoder cannot be used.
        SplitKDError
            If the cloud cannot be reached, or refuses.
        """
        skeleton = self.skeleton()
        check_encoder(skeleton)
        layout = find_layout(skeleton)
        verify_encoder(skeleton, layout)
        num_bytes: int = sum(tensor.nbytes for tensor in skeleton.state_dict().values())
        server = DataPlaneServer(
            data_address=self.data_address,
            advertised_address=self.advertised_address,
            tls=self.tls,
            insecure=self.insecure,
            grace_period_s=self.grace_period_s,
            # Weights with both moments of AdamW, and room for a large batch.
            limits=Limits(max_message_bytes=self.max_message_bytes or max(_MIN_MESSAGE_BYTES, 4 * num_bytes)),
            software=f"flwr_splitkd {version('flwr_splitkd')}, torch {torch.__version__}",
        )
        try:
            link = cloud(fingerprint(skeleton, layout).hidden_size)
            return ChainEdge(server, self, skeleton, layout, link, ticket_lifetime_s=ticket_lifetime_s)
        except BaseException:
            server.stop()
            raise


class ChainEdge:
    """A listening data plane with one half of an encoder for each device, and the stream to the cloud behind it.

    Made by `ChainSetup.open`.
    """

    def __init__(
        self,
        server: DataPlaneServer,
        setup: ChainSetup,
        skeleton: nn.Module,
        layout: Layout,
        cloud: CloudLink,
        *,
        ticket_lifetime_s: float,
    ) -> None:
        self.server, self.cloud, self.layout = server, cloud, layout
        self._setup, self._ticket_lifetime_s = setup, ticket_lifetime_s
        self._print = fingerprint(skeleton, layout)
        self._compute = FairExecutor("splitkd-edge-compute")
        self._kept: dict[int, KeptUnits] = {}
        codes = {codec_code(codec) for codec in (setup.settings.uplink_codec, setup.settings.downlink_codec)}
        server.start(model=fingerprint_to_wire(self._print), codecs=tuple(codes))

    def expect(self, *, run_id: int, node_id: int, server_round: int) -> Session:
        """Admit one node to one round."""
        expires_s = time.monotonic() + self._ticket_lifetime_s
        return self.server.expect(
            new_ticket(run_id=run_id, node_id=node_id, server_round=server_round, expires_s=expires_s)
        )

    def iterations(self, positions: Iterable[int]) -> Iterations:
        """Begin a round with these devices."""
        settings = self._setup.settings
        return Iterations(
            positions,
            self.cloud.step,
            quorum=settings.quorum,
            straggler_timeout_s=settings.straggler_timeout_s,
        )

    def set_shares(self, shares: Mapping[int, float]) -> None:
        """Share the edge's compute between the devices, by position, from now on (alpha of the paper)."""
        self._compute.set_weights(shares)

    def serve(
        self, session: Session, plan: DevicePlan, iterations: Iterations | None, meter: Meter | None = None
    ) -> DeviceOutcome:
        """Serve a connected device's part in a round, on the calling thread, and end its session.

        Parameters
        ----------
        iterations
            Of the round; None when evaluating.
        meter
            Told what the device's iterations take, as they go on.

        Raises
        ------
        SplitKDError
            Why it came to nothing.
        """
        link, hello = session.link, session.hello
        if link is None or hello is None:
            raise ValueError("Only a connected session can be served.")
        stage = Stage(
            skeleton=self._setup.skeleton,
            layout=self.layout,
            width=self._print.hidden_size,
            settings=self._setup.settings,
            compute=self._compute,
            compute_device=self._setup.compute_device,
            cloud=self.cloud,
            iterations=iterations,
        )
        # What is kept between an evaluation and the next round is that of the round before.
        kept = self._kept.setdefault(hello.node_id, {}) if plan.training else dict(self._kept.get(hello.node_id, {}))
        try:
            return serve_device(link, hello, stage, plan, kept, meter)
        finally:
            self.server.end(session)

    def dismiss(self, session: Session, reason: str) -> None:
        """Send a device away without a part in the round."""
        if session.link is not None:
            session.link.fail(PeerLostError(reason))
        self.server.end(session)

    def close(self) -> None:
        """Close every stream, the port, and the stream to the cloud."""
        self.server.stop()
        self.cloud.close()
        self._compute.close()
