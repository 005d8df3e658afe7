"""A device's process of the straggler benchmark, and the models that all its processes build alike.

Prints a line when it is ready, then takes part in a round for each JSON job that it reads from stdin, and says so.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from flwr_splitkd.models import build_skeleton, fingerprint
from flwr_splitkd.split import find_layout
from flwr_splitkd.tiers.device import DeviceData
from flwr_splitkd.tiers.device.chain import OwnEncoder, run_round
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.wire.client import connect
from flwr_splitkd.wire.codec import supported_codecs
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

WIDTH, LAYERS, VOCAB = 128, 4, 1000
BATCH, TOKENS, ANSWER = 4, 32, 8
TIMEOUT_S = 120.0


def build_encoder() -> nn.Module:
    """A small encoder with new weights."""
    return RobertaModel(
        RobertaConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=2 * TOKENS,
        ),
        add_pooling_layer=False,
    )


def build_llm() -> nn.Module:
    """A causal language model for the cloud, twice as wide."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=2 * WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
        )
    )


class Loader:
    """Random batches, each after a while.

    Parameters
    ----------
    seconds
        That a batch takes.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # Else the batches would be counted by drawing them.
        self.dataset, self.batch_size = range(len(self) * BATCH), BATCH

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(len(self)):
            time.sleep(self._seconds)
            ids = torch.randint(4, VOCAB, (BATCH, TOKENS), generator=generator)
            labels = torch.randint(4, VOCAB, (BATCH, ANSWER), generator=generator)
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def take_part(job: dict[str, Any]) -> None:
    """Take part in one round."""
    skeleton = build_skeleton(build_encoder)
    layout = find_layout(skeleton)
    own = OwnEncoder(Path(job["folder"]), skeleton, layout, build_encoder)
    hello = pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        session_id=job["session_id"],
        token=bytes.fromhex(job["token"]),
        run_id=job["run_id"],
        node_id=job["node_id"],
        server_round=job["server_round"],
        device_name=str(job["node_id"]),
        student=fingerprint_to_wire(fingerprint(skeleton, layout)),
        codecs=supported_codecs(),
        cached_units=[pb.UnitVersion(unit=unit, version=version) for unit, version in own.versions.items()],
        next_step=int(own.info["next_step"]),
    )
    with connect(job["address"], hello) as link:
        run_round(
            link,
            skeleton=skeleton,
            layout=layout,
            own=own,
            data=DeviceData(Loader(job["seconds"])),
            compute_device=torch.device("cpu"),
            begin_timeout_s=TIMEOUT_S,
            step_timeout_s=TIMEOUT_S,
        )


def main() -> None:
    """Take part in rounds until stdin ends."""
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        take_part(json.loads(line))
        print("done", flush=True)


if __name__ == "__main__":
    main()
