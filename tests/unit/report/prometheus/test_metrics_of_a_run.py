"""A whole run of SplitKD over loopback, its devices threads of this process, and what its endpoint says meanwhile."""

from __future__ import annotations

import itertools
import socket
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from flwr_splitkd import DistillationLoss, SplitKD
from flwr_splitkd.callbacks import Callback
from flwr_splitkd.clients import SplitKDClient
from flwr_splitkd.clients.job import Identity
from flwr_splitkd.errors import ClockError, ConfigError, CutError, DataError
from flwr_splitkd.records import TurnTicket
from flwr_splitkd.report.prometheus import PrometheusEndpoint
from flwr_splitkd.store import tensor_file
from flwr_splitkd.strategies import replies, split_kd
from flwr_splitkd.strategies.result import TurnRecord
from flwr_splitkd.tiers.edge import EdgeService

RUN_ID = 77


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tensor_file, "_sync", lambda path: None)
    # Flower's own cannot be made outside a run.
    monkeypatch.setattr(split_kd, "Message", _message)
    monkeypatch.setattr(replies, "_POLL_S", 0.01)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _message(*, content: RecordDict, message_type: str, dst_node_id: int, ttl: float | None) -> Any:
    return SimpleNamespace(content=content, metadata=SimpleNamespace(dst_node_id=dst_node_id))


def student() -> nn.Module:
    torch.manual_seed(1)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, pad_token_id=0))


def batches(node_id: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(node_id)
    made = []
    for _ in range(2):
        ids = torch.randint(1, 40, (2, 6), generator=generator)
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()})
    return made


class Threads:
    """A grid that answers each message with a thread; one device's data is broken in its first turn."""

    def __init__(self, folder: Path, devices: int, broken: int = 0) -> None:
        self.run = SimpleNamespace(run_id=RUN_ID)
        self._folder, self._devices, self._broken = folder, devices, broken
        self._numbers = itertools.count()
        self._replies: dict[str, Any] = {}

    def get_node_ids(self) -> list[int]:
        return list(range(1, self._devices + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        (message,) = messages
        message_id = f"{next(self._numbers)}"
        threading.Thread(target=self._take_turn, args=(message, message_id), daemon=True).start()
        return [message_id]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def _take_turn(self, message: Message, message_id: str) -> None:
        ticket, node_id = TurnTicket.from_content(message.content), message.metadata.dst_node_id
        error, metrics = "", MetricRecord({"num-examples": 4})
        data: Any = batches(node_id)
        if node_id == self._broken:
            self._broken, data = 0, Broken()
        client = Client(student=student, data=data, cache_folder=self._folder / "cache")
        try:
            client.take_turn(replace(ticket), Identity(run_id=RUN_ID, node_id=node_id, name=f"device-{node_id}"))
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        self._replies[message_id] = SimpleNamespace(
            metadata=SimpleNamespace(reply_to_message_id=message_id, src_node_id=node_id),
            has_error=lambda: bool(error),
            error=SimpleNamespace(reason=error),
            content=RecordDict({"metrics": metrics}),
        )


class Client(SplitKDClient):
    """Builds alone: what transformers patches meanwhile is all threads'."""

    alone = threading.Lock()

    def _build(self, ticket: TurnTicket) -> Any:
        with self.alone:
            return super()._build(ticket)


class Broken:
    """Data that can be counted, and end in the midst of a turn."""

    passes = 0

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.passes += 1
        yield batches(1)[0]
        if self.passes > 1:
            raise DataError("the disk is gone")
        yield batches(1)[1]


def series(address: str | None) -> dict[str, float]:
    """Names with labels as they are written, and their values."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


class Reader(Callback):
    """Reads the endpoint while the run goes on."""

    def __init__(self, endpoint: PrometheusEndpoint) -> None:
        self._endpoint = endpoint
        self.readings: list[dict[str, float]] = []
        self.turns: list[TurnRecord] = []

    def on_turn(self, turn: TurnRecord) -> None:
        self.turns.append(turn)
        self.readings.append(series(self._endpoint.address))


def run(folder: Path, grid: Threads, endpoint: PrometheusEndpoint, **settings: Any) -> Reader:
    reader, num_rounds = Reader(endpoint), settings.pop("num_rounds", 2)
    given = {"run_folder": folder / "run", "callbacks": [endpoint, reader], "cut": 1, **settings}
    strategy = SplitKD(student=student, loss=DistillationLoss(kd_ratio=0.0), train_embeddings=True, **given)
    strategy.start(grid, ArrayRecord(student().state_dict()), num_rounds=num_rounds)  # type: ignore[arg-type]
    return reader


def test_a_run_with_a_turn_that_fails(tmp_path: Path) -> None:
    endpoint = PrometheusEndpoint("127.0.0.1:0")
    reader = run(tmp_path, Threads(tmp_path, devices=2, broken=2), endpoint)
    assert endpoint.address is None
    outcomes = [turn.outcome is not None for turn in reader.turns]
    assert outcomes.count(False) == 1 and len(outcomes) == 4
    last, done = reader.readings[-1], [turn.outcome for turn in reader.turns if turn.outcome is not None]
    assert last["splitkd_turns_total mode=train outcome=completed"] == 3
    assert last["splitkd_turns_total mode=train outcome=failed"] == 1
    assert last["splitkd_faults_total kind=data where=turn"] == 1
    # The steps of the turn that was undone do not count; its bytes were carried all the same.
    assert last["splitkd_steps_total"] == sum(outcome.num_steps for outcome in done) == 6
    for direction in ("uplink", "downlink"):
        turns_bytes = sum(getattr(outcome, f"{direction}_bytes") for outcome in done)
        assert last[f"splitkd_bytes_total direction={direction}"] > turns_bytes > 0
    assert last["splitkd_tokens_total mode=train"] == sum(outcome.num_tokens for outcome in done)
    assert last["splitkd_device_loss device=device-1"] == pytest.approx(
        next(turn.outcome.loss for turn in reversed(reader.turns) if turn.outcome and turn.device == "device-1")
    )
    first = reader.readings[0]
    assert first["splitkd_round"] == 1 and last["splitkd_round"] == 2
    assert sum(value for name, value in first.items() if name.startswith("splitkd_sessions")) >= 1, (
        "the next one is called"
    )
    steps = [reading["splitkd_steps_total"] for reading in reader.readings]
    assert steps == sorted(steps)


def test_a_resumed_run_counts_from_zero_and_a_run_after_a_run_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    grid = Threads(tmp_path, devices=1)
    before = run(tmp_path, grid, PrometheusEndpoint(address), num_rounds=1)
    resumed = run(tmp_path, grid, PrometheusEndpoint(address), run_folder=None, resume=tmp_path / "run", num_rounds=2)
    (first,), (second,) = before.readings, resumed.readings
    assert first["splitkd_steps_total"] == second["splitkd_steps_total"] == 2
    assert first["splitkd_round"] == 1 and second["splitkd_round"] == 2
    assert second["splitkd_turns_total mode=train outcome=completed"] == 1


def test_a_port_that_is_taken_ends_the_run_before_anybody_is_called(tmp_path: Path) -> None:
    grid = Threads(tmp_path, devices=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = PrometheusEndpoint(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match="which cannot be bound"):
            run(tmp_path, grid, endpoint)
    assert next(grid._numbers) == 0 and endpoint.address is None


def test_a_run_that_fails_closes_its_port(tmp_path: Path) -> None:
    endpoint = PrometheusEndpoint("127.0.0.1:0")
    with pytest.raises(CutError, match="`cut` is 9"):
        run(tmp_path, Threads(tmp_path, devices=1), endpoint, cut=9)
    assert endpoint.address is None
    assert not [thread for thread in threading.enumerate() if thread.name == "splitkd-metrics"]


def test_an_edge_that_cannot_be_closed_does_not_keep_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close = EdgeService.close

    def refused(edge: EdgeService) -> None:
        close(edge)
        raise ClockError("the clock is not put back")

    monkeypatch.setattr(EdgeService, "close", refused)
    endpoint = PrometheusEndpoint("127.0.0.1:0")
    with pytest.raises(ClockError):
        run(tmp_path, Threads(tmp_path, devices=1), endpoint, num_rounds=1)
    assert endpoint.address is None
