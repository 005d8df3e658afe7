"""A run that sets the clock of its edge's GPU, from the plan to the record: real turns, and a GPU that is a file."""

from __future__ import annotations

import functools
import json
import logging
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_nvml
import pytest
import torch
from fake_nvml import Machine
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from flwr_splitkd import DistillationLoss, FixedCut, OptimalCut, SplitKD, SplitKDClient
from flwr_splitkd.clients.job import Identity
from flwr_splitkd.costs import TABLE_II_SERVER, Fleet, ModelShape
from flwr_splitkd.errors import ConfigError, SplitKDError
from flwr_splitkd.models import measured_shape
from flwr_splitkd.records import TurnTicket
from flwr_splitkd.schedulers import Decision, DeviceView
from flwr_splitkd.store import tensor_file
from flwr_splitkd.strategies import Planner, SplitKDResult, replies, split_kd
from flwr_splitkd.tiers.edge import setup
from flwr_splitkd.tiers.edge.clock import find

NODES = [1, 2]
# Its best clock is where the dynamic power is half the static one; while it waits, it is worth going down.
SERVER = replace(TABLE_II_SERVER, static_power_w=60.0, idle_activity=0.3)
IDLE_MHZ, STEP_HZ = 210, 15e6


def student() -> nn.Module:
    torch.manual_seed(3)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, pad_token_id=0))


def data(node_id: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(node_id)
    ids = torch.randint(1, 40, (2, 2, 6), generator=generator)
    return [{"input_ids": one, "attention_mask": torch.ones_like(one), "labels": one} for one in ids]


class Devices:
    """A grid whose nodes are threads: each message is a turn over a stream of its own."""

    def __init__(self, folder: Path) -> None:
        self.run = SimpleNamespace(run_id=7)
        self._folder = folder
        self._threads: dict[str, threading.Thread] = {}
        self._replies: dict[str, Any] = {}

    def get_node_ids(self) -> list[int]:
        return NODES

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        (message,) = messages
        message_id = f"message {len(self._threads)}"
        thread = threading.Thread(target=self._take_turn, args=(message_id, message))
        self._threads[message_id] = thread
        thread.start()
        return [message_id]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def _take_turn(self, message_id: str, message: Any) -> None:
        node_id = message.dst_node_id
        client = SplitKDClient(student=student, data=data(node_id), cache_folder=self._folder / "devices")
        identity = Identity(run_id=7, node_id=node_id, name=f"device-{node_id}")
        said, num_examples = "", 0
        try:
            num_examples = client.take_turn(TurnTicket.from_content(message.content), identity).num_examples
        except SplitKDError as error:
            said = str(error)
        self._replies[message_id] = SimpleNamespace(
            metadata=SimpleNamespace(reply_to_message_id=message_id, src_node_id=node_id),
            has_error=lambda: bool(said),
            error=SimpleNamespace(reason=said),
            content=RecordDict({"metrics": MetricRecord({"num-examples": num_examples})}),
        )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """An edge with a GPU whose clock can be set; what is computed is computed on the CPU."""
    made = Machine(tmp_path / "gpus.json")
    monkeypatch.setenv(fake_nvml.STATE, str(made.path))
    monkeypatch.setenv("FLWR_SPLITKD_STATE", str(tmp_path / "state"))
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml)
    monkeypatch.setattr(find, "key_of", lambda device: fake_nvml.GPU["uuid"])
    yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Flower's own messages cannot be made outside a run.
    monkeypatch.setattr(split_kd, "Message", lambda **fields: SimpleNamespace(**fields))
    monkeypatch.setattr(tensor_file, "_sync", lambda path: None)
    monkeypatch.setattr(replies, "_POLL_S", 0.01)
    monkeypatch.setattr(setup, "verify_cut", lambda model, layout: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def shape() -> ModelShape:
    return measured_shape(student, name="the student")


def planner() -> Planner:
    return Planner(fleet=Fleet(server=SERVER), sequence_length=6, frequency="optimal", student=shape())


def trained(folder: Path, *, evaluate_fn: Any = None, num_rounds: int = 1, **settings: Any) -> SplitKDResult:
    strategy = SplitKD(
        student=student,
        loss=DistillationLoss(kd_ratio=0.0),
        run_folder=folder / "run",
        callbacks=[],
        compute_device="cpu",
        **{"cut": FixedCut(1), "planner": planner(), "set_frequency": True, **settings},
    )
    grid: Any = Devices(folder)
    return strategy.start(grid, ArrayRecord(student().state_dict()), num_rounds=num_rounds, evaluate_fn=evaluate_fn)


def turns(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "turn"]


def journals(folder: Path) -> list[Path]:
    return list((folder / "state").rglob("clock.json"))


def test_each_turn_has_its_clock_and_the_run_leaves_none(machine: Machine, tmp_path: Path) -> None:
    while_evaluating: list[list[int] | None] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        while_evaluating.append(machine.locked_mhz)
        assert journals(tmp_path), "a clock may be set and nothing says so"
        return MetricRecord({"perplexity": 1.0})

    trained(tmp_path, evaluate_fn=evaluate, num_rounds=2)
    lines = turns(tmp_path)
    assert sorted(line["device"] for line in lines) == ["device-1", "device-1", "device-2", "device-2"]
    for line in lines:
        wanted_hz, set_hz = line["planned_frequency_hz"], line["set_frequency_hz"]
        assert wanted_hz < SERVER.max_frequency_hz  # the planner chooses, since its choice is what happens
        assert wanted_hz <= set_hz < wanted_hz + STEP_HZ and set_hz % STEP_HZ == 0
        assert line["read_frequency_hz"] == set_hz
        assert "clock_refusal" not in line and "clock" not in line
    locks = machine.locks
    assert set(locks) == {None, IDLE_MHZ, *(round(line["set_frequency_hz"] / 1e6) for line in lines)}
    assert locks[2] == IDLE_MHZ  # after the first turn, when nothing is known of how long pauses are
    assert while_evaluating == [None, None, None]  # before the first round, and after each
    assert locks[-1] is None and machine.locked_mhz is None
    assert journals(tmp_path) == []


def test_of_several_clocks_at_a_time_the_highest_is_set(machine: Machine, tmp_path: Path) -> None:
    class OwnClocks:
        """Another clock for each device."""

        def choose(self, device: DeviceView) -> Decision:
            assert device.outlook is not None
            decision = OptimalCut(cuts=[1]).plan(device.outlook, device.local_epochs)
            return replace(decision, frequency_hz={"device-1": 1.2e9, "device-2": 0.9e9}[device.name])

    trained(tmp_path, cut=OwnClocks(), cluster_size=2)
    lines = turns(tmp_path)
    assert sorted(line["planned_frequency_hz"] for line in lines) == [0.9e9, 1.2e9]
    assert [line["set_frequency_hz"] for line in lines] == [1.2e9, 1.2e9]
    assert machine.locks.count(1200) == 1 and 900 not in machine.locks


def test_who_may_not_trains_on_and_says_so_once(
    machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    machine.set(root=False)
    result = trained(tmp_path)
    lines = turns(tmp_path)
    assert len(lines) == len(result.turns) == 2
    for line in lines:
        assert line["set_frequency_hz"] is None and line["read_frequency_hz"] is None
        assert "Insufficient Permissions" in line["clock_refusal"] and "ZEUSD_SOCK_PATH" in line["clock_refusal"]
        assert line["planned_frequency_hz"] == SERVER.max_frequency_hz  # what is planned is what will be
    said = [record for record in caplog.records if "Insufficient Permissions" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING]
    assert machine.locks == [] and journals(tmp_path) == []


def test_an_edge_without_a_gpu_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path)
    assert "The edge computes on a CPU" in turns(tmp_path)[0]["clock_refusal"]
    assert sum("computes on a CPU" in record.getMessage() for record in caplog.records) == 1


def test_without_the_option_nothing_is_touched_or_recorded(machine: Machine, tmp_path: Path) -> None:
    trained(tmp_path, set_frequency=False)
    assert machine.locks == []
    assert not {"set_frequency_hz", "read_frequency_hz", "clock"} & turns(tmp_path)[0].keys()


def test_a_clock_is_back_after_a_run_that_fails(machine: Machine, tmp_path: Path) -> None:
    seen: list[list[int] | None] = []
    serve = split_kd.EdgeService.serve

    def broken(self: Any, *args: Any, **settings: Any) -> Any:
        outcome = serve(self, *args, **settings)
        seen.append(machine.locked_mhz)
        raise RuntimeError(f"the disk broke after a loss of {outcome.loss:.1f}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_kd.EdgeService, "serve", broken)
        with pytest.raises(RuntimeError, match="the disk broke"):
            trained(tmp_path)
    assert seen == [[IDLE_MHZ, IDLE_MHZ]]
    assert machine.locked_mhz is None and journals(tmp_path) == []


@pytest.mark.parametrize(
    ("planner", "message"),
    [
        (None, "the server is not described; expected a planner that knows it"),
        (Planner(), r"the server is unknown server \(as RTX 4090\); expected"),
        (Planner(fleet=Fleet(server=SERVER), modelled=True), "the planner's world is modelled; expected False"),
    ],
)
def test_a_clock_of_another_machine_is_refused(planner: Planner | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SplitKD(student=student, planner=planner, set_frequency=True)
