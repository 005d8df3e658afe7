"""Mutated turns fed to the edge's own turn: an error of ours or a turn that counts, and never half of one."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hostile_frames import BYTES, STRUCTURE, mutate_bytes, mutate_structure
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.errors import SplitKDError
from flwr_splitkd.models import build_skeleton
from flwr_splitkd.split import find_layout
from flwr_splitkd.store import CommitLog, DeviceCache, tensor_file
from flwr_splitkd.testing import connected_links
from flwr_splitkd.tiers import device as device_tier
from flwr_splitkd.tiers.device import DeviceData
from flwr_splitkd.tiers.edge import EdgeStudent, EdgeTeacher, Objective, TurnPlan, TurnSettings, run_turn
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.wire.framing import Frame
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.stream import Stream
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

CPU = torch.device("cpu")
PER_KIND = 12
_LONGEST_S = 30.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tensor_file, "_sync", lambda path: None)  # durability is the store's own tests' business
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


class _Edge:
    """A student whose turns always start from the same state."""

    def __init__(self, folder: Path) -> None:
        model = _llama(1)
        settings = OptimizerSettings(learning_rate=1e-2)
        log = CommitLog(folder / "commits")
        self.student = EdgeStudent(model, find_layout(model), optimizer=settings, handover="full", log=log)
        teacher = EdgeTeacher(_llama(2), has_head=True, compute_device=CPU)
        self.objective = Objective(model, teacher, DistillationLoss(kd_ratio=0.5), "causal-lm")

    def turn(self, link: Link) -> None:
        plan = TurnPlan(mode="train", cut=1, local_epochs=1, first_step=0, info={})
        run_turn(
            link,
            pb.Hello(),
            student=self.student,
            objective=self.objective,
            settings=TurnSettings(step_timeout_s=_LONGEST_S),
            plan=plan,
        )

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.student.model.state_dict().items()}


def _recorded(folder: Path) -> list[pb.UplinkFrame]:
    """What a device sends in a whole turn: two steps, and its half."""
    frames: list[pb.UplinkFrame] = []

    def record(frame: Frame) -> list[Frame]:
        assert isinstance(frame, pb.UplinkFrame)
        frames.append(pb.UplinkFrame.FromString(frame.SerializeToString()))
        frames[-1].acknowledged = 0  # the replay asks for nothing, so it may be ahead of the answers
        if frames[-1].HasField("turn_done"):
            frames[-1].turn_done.ClearField("times")  # the replay may take less than the recording did
        return [frame]

    def device(link: Link) -> None:
        skeleton = build_skeleton(_llama)
        ids = torch.randint(1, 40, (2, 2, 6), generator=torch.Generator().manual_seed(7))
        batches = [{"input_ids": one, "attention_mask": torch.ones_like(one), "labels": one.clone()} for one in ids]
        device_tier.run_turn(
            link,
            model=skeleton,
            layout=find_layout(skeleton),
            data=DeviceData(batches),
            cache=DeviceCache(folder / "cache"),
            compute_device=CPU,
            begin_timeout_s=20,
            step_timeout_s=20,
        )
        link.close()

    with connected_links(tamper_uplink=record) as (edge, link):
        thread = threading.Thread(target=device, args=(link,))
        thread.start()
        _Edge(folder / "recorded").turn(edge)
        thread.join(20)
    return frames


def _replayed(edge: _Edge, serialized: list[bytes], patience_s: float = 0.2) -> SplitKDError | None:
    done = threading.Event()
    link = Link(peer="device seven", admitted=False)
    stream = Stream(pb.DownlinkFrame, peer="device seven")
    stream.attach(link)

    def carry() -> None:
        stream.carry(stream.parsed(later()))
        if stream.corrupt:
            stream.end("its bytes were corrupt")

    def later() -> Iterator[bytes]:  # a device answers Begin
        while not link.admitted:
            time.sleep(0.0005)
        yield from serialized[:-1]
        done.wait(patience_s)  # it leaves once it has its result
        yield from serialized[-1:]

    threads = [threading.Thread(target=carry), threading.Thread(target=lambda: list(stream.outgoing()))]
    for thread in threads:
        thread.start()
    try:
        edge.turn(link)
    except SplitKDError as error:
        return error
    finally:
        done.set()
        link.close()
        for thread in threads:
            thread.join(_LONGEST_S)
            assert not thread.is_alive()
    return None


def test_a_replayed_turn_counts(tmp_path: Path) -> None:
    """What the other test leans on."""
    frames = _recorded(tmp_path)
    edge = _Edge(tmp_path / "replayed")
    before = edge.state()
    assert _replayed(edge, [frame.SerializeToString() for frame in frames], patience_s=_LONGEST_S) is None
    assert any(not torch.equal(tensor, before[name]) for name, tensor in edge.state().items())


@pytest.mark.slow
def test_mutated_turns(tmp_path: Path, covered: Callable[[str, object], None]) -> None:
    frames = _recorded(tmp_path)
    serialized = [frame.SerializeToString() for frame in frames]
    rng, ends, longest_s, longest_text = random.Random(3), Counter[str](), 0.0, 0
    edge = _Edge(tmp_path / "0")
    state = edge.state()
    for name in [*STRUCTURE, *BYTES] * PER_KIND:
        if name in STRUCTURE:
            mutated = [frame.SerializeToString() for frame in mutate_structure(rng, frames, name)]
        else:
            mutated = mutate_bytes(rng, serialized, name)
        started_s = time.monotonic()
        error = _replayed(edge, mutated)
        longest_s = max(longest_s, time.monotonic() - started_s)
        if error is None:
            ends["counted"] += 1
            edge = _Edge(tmp_path / str(ends["counted"]))
            state = edge.state()
            continue
        ends[type(error).__name__] += 1
        longest_text = max(longest_text, len(str(error)))
        assert all(torch.equal(tensor, state[key]) for key, tensor in edge.state().items()), (name, error)
    assert longest_s < _LONGEST_S
    assert ends.total() > ends["counted"] > 0
    assert _replayed(edge, serialized, patience_s=_LONGEST_S) is None  # and the next device's turn counts
    covered(
        "mutated turns of the edge", f"{dict(ends)}; longest {longest_s:.2f} s, longest error {longest_text} characters"
    )
