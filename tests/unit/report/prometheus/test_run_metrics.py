"""A run as metrics: the values after what it tells, through the endpoint as Prometheus reads them."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import device, epoch, turns, with_costs

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from flwr_splitkd.callbacks import LiveReading
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.report.prometheus import PrometheusEndpoint
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies.callbacks import Callbacks
from flwr_splitkd.strategies.result import TurnRecord

CONFIG: dict[str, Any] = {"strategy": {}, "versions": {"flwr_splitkd": "0.1.0", "python": "3.11.7"}}
CHAIN: dict[str, Any] = {**CONFIG, "strategy": {"name": "SCCT"}}

Values = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


class Read:
    """What an endpoint says."""

    def __init__(self, endpoint: PrometheusEndpoint) -> None:
        with urllib.request.urlopen(f"http://{endpoint.address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        self.samples = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
        assert len(self.samples) == len(samples)

    def __call__(self, name: str, **labels: str) -> float | None:
        """The value of a series; None if there is none."""
        return self.samples.get((f"splitkd_{name}", frozenset(labels.items())))

    def of(self, name: str) -> dict[tuple[str, ...], float]:
        """All series of a metric, by the values of their labels in the order of the labels' names."""
        found = {labels: value for (metric, labels), value in self.samples.items() if metric == f"splitkd_{name}"}
        return {tuple(value for _, value in sorted(labels)): value for labels, value in found.items()}


@contextlib.contextmanager
def told(folder: Path, config: Mapping[str, Any] = CONFIG, **settings: Any) -> Iterator[PrometheusEndpoint]:
    endpoint = PrometheusEndpoint("127.0.0.1:0", **settings)
    endpoint.on_start(RunFolder(folder / "run-7"), config)
    yield endpoint
    endpoint.on_end(None)


def test_before_the_first_turn_what_will_be_counted_is_there(tmp_path: Path) -> None:
    with told(tmp_path) as endpoint:
        read = Read(endpoint)
    assert read("run_info", run="run-7", strategy="SplitKD") == 1
    assert read("build_info", flwr_splitkd="0.1.0", python="3.11.7") == 1
    modes, outcomes = ("train", "evaluate", "deliver"), ("completed", "failed")
    assert read.of("turns_total") == {(mode, outcome): 0 for mode in modes for outcome in outcomes}
    assert read("faults_total", where="turn", kind="lost") == read("faults_total", where="stream", kind="resumed") == 0
    assert read("turn_duration_seconds_count", mode="train") == 0
    # What nobody knows has no series.
    for name in ("loss", "evaluation", "device_loss", "sessions", "grad_norm", "cloud_link_bytes_total"):
        assert read.of(name) == {}, name
    for word in ("planned", "modelled", "measured"):
        assert read.of(f"{word}_energy_joules_total") == {}


def test_turns(tmp_path: Path) -> None:
    made = turns(1, ["0", "1", "2"], failing="1")
    made[1] = replace(made[1], fault="lost")
    with told(tmp_path) as endpoint:
        for turn in made:
            endpoint.on_turn(turn)
        endpoint.on_turn(replace(made[0], mode="evaluate", wait_s=0.3))
        endpoint.on_turn(replace(made[2], mode="deliver", server_round=2))
        endpoint.on_evaluation(1, {"loss": 2.0, "perplexity": math.inf})
        endpoint.on_round(1, {"train-loss": 2.0})
        read = Read(endpoint)
    assert read("round") == 1 and read("rounds_total") == 1
    assert read.of("turns_total") == {
        ("train", "completed"): 2,
        ("train", "failed"): 1,
        ("evaluate", "completed"): 1,
        ("evaluate", "failed"): 0,
        ("deliver", "completed"): 1,
        ("deliver", "failed"): 0,
    }
    assert [key for key, value in read.of("faults_total").items() if value] == [("lost", "turn")]
    assert read("turn_duration_seconds_sum", mode="train") == 3.0
    assert read("turn_duration_seconds_bucket", mode="train", le="1.0") == 0
    assert read("turn_duration_seconds_bucket", mode="train", le="2.0") == 2
    assert read("tokens_total", mode="train") == 960 and read("tokens_total", mode="deliver") == 0
    assert read("loss", mode="train") == pytest.approx(1.0) and read("loss", mode="deliver") is None
    assert read("handover_bytes_total", direction="uplink") == 4 << 20
    assert read.of("evaluation") == {("loss",): 2.0, ("perplexity",): math.inf}
    stages = read.of("stage_seconds_total")
    # Three turns with stages: in order of the labels' names, so stage before where.
    assert stages["compute", "device"] == pytest.approx(1.5) and stages["student", "edge"] == pytest.approx(1.2)
    assert stages["uplink", "network"] == pytest.approx(0.6) and stages["build_and_commit", "turn"] == pytest.approx(
        0.6
    )
    assert stages["other", "turn"] == pytest.approx(0.3) and stages["teacher", "edge"] == 0
    # Every turn of the recorded round waited 0.1 s, to the last bit: as those of a cluster do, after one wait.
    assert stages["wait", "edge"] == pytest.approx(0.1 + 0.3 + 0.1)


def test_stages_that_overlap_are_never_less_than_nothing(tmp_path: Path) -> None:
    (turn,) = turns(1, ["0"])
    assert turn.outcome is not None
    with told(tmp_path) as endpoint:
        outcome = replace(turn.outcome, duration_s=0.5, pipeline_depth=4, teacher_s=0.3)
        assert outcome.other_s < 0
        endpoint.on_turn(replace(turn, outcome=outcome))
        stages = Read(endpoint).of("stage_seconds_total")
    assert stages["other", "turn"] == 0
    assert stages["student", "edge"] == pytest.approx(0.1) and stages["teacher", "edge"] == pytest.approx(0.3)


def test_seconds_that_are_no_number_do_not_spoil_the_sum(tmp_path: Path) -> None:
    """The cloud's are its own word."""
    with told(tmp_path, CHAIN) as endpoint:
        for cloud_s in (3.0, math.nan, math.inf, -1.0, 2.0):
            endpoint.on_device(device(1, 1, "orin", cloud_s=cloud_s))
        read = Read(endpoint)
    assert read("stage_seconds_total", where="cloud", stage="compute") == 5.0
    assert read("stage_seconds_total", where="device", stage="compute") == 5.0
    assert read("turns_total", mode="train", outcome="completed") == 5


def test_faults_of_a_kind_that_nobody_knows(tmp_path: Path) -> None:
    (turn,) = turns(1, ["0"], failing="0")
    with told(tmp_path) as endpoint:
        endpoint.on_turn(replace(turn, fault="of another version"))
        endpoint.on_turn(turn)
        assert Read(endpoint)("faults_total", where="turn", kind="other") == 2


def test_what_is_read_in_the_midst_of_a_turn(tmp_path: Path) -> None:
    now = LiveReading(
        sessions={"called": 1, "waiting": 2, "serving": 1, "away": 0},
        num_streams=4,
        uplink_bytes=100,
        downlink_bytes=200,
        stream_faults={"resumed": 3, "handshake": 1},
        num_steps=17,
    )
    with told(tmp_path) as endpoint:
        endpoint.on_live(lambda: now)
        read = Read(endpoint)
        now = replace(now, num_steps=18, uplink_bytes=150)
        later = Read(endpoint)
    assert read.of("sessions") == {("called",): 1, ("waiting",): 2, ("serving",): 1, ("away",): 0}
    assert read("open_streams") == 4 and read("steps_total") == 17 and later("steps_total") == 18
    assert (
        read.of("bytes_total") == {("uplink",): 100, ("downlink",): 200}
        and later("bytes_total", direction="uplink") == 150
    )
    assert read("faults_total", where="stream", kind="resumed") == 3
    assert read("faults_total", where="stream", kind="handshake") == 1
    assert read("faults_total", where="turn", kind="handshake") == 0


# ---- energy


def joules(read: Read, word: str) -> dict[tuple[str, ...], float]:
    return read.of(f"{word}_energy_joules_total")


def test_energy_as_far_as_it_is_known(tmp_path: Path) -> None:
    planner = {"strategy": {"planner": {"modelled": True}}, "versions": {}}
    with told(tmp_path, planner) as endpoint:
        before = Read(endpoint)
        assert joules(before, "planned") == joules(before, "modelled") == {(): 0}
        for turn in with_costs(turns(1, ["0", "1"]), "modelled"):
            endpoint.on_turn(turn)
        read = Read(endpoint)
    assert joules(read, "planned") == {(): pytest.approx(52.0)} and joules(read, "modelled") == {
        (): pytest.approx(50.5)
    }
    assert joules(read, "measured") == {}


def test_energy_that_sensors_measured_and_could_not(tmp_path: Path) -> None:
    (turn,) = turns(1, ["0"])
    with told(tmp_path) as endpoint:
        for costs in (
            {"measured_device_j": 5.0, "measured_edge_j": None},
            {"measured_device_j": "unavailable: no such file", "measured_edge_j": math.nan, "predicted_j": math.inf},
            {"measured_device_j": 2.5},
        ):
            endpoint.on_turn(replace(turn, costs=costs))
        endpoint.on_turn(replace(turn, costs={"measured_device_j": 100.0}, outcome=None, error="it was lost"))
        read = Read(endpoint)
    assert joules(read, "measured") == {("device",): 7.5} and joules(read, "planned") == {}


# ---- devices


def completed(name: str, loss: float = 1.0) -> TurnRecord:
    (turn,) = turns(1, [name])
    assert turn.outcome is not None
    return replace(turn, outcome=replace(turn.outcome, loss=loss))


def test_a_device_has_its_newest_turn(tmp_path: Path) -> None:
    with told(tmp_path) as endpoint:
        endpoint.on_turn(completed("orin", loss=4.0))
        endpoint.on_turn(completed("orin", loss=3.0))
        endpoint.on_turn(replace(completed("orin", loss=9.0), mode="evaluate"))
        read = Read(endpoint)
    assert read.of("device_loss") == {("orin",): 3.0} and read("device_turn_seconds", device="orin") == 1.5
    assert (
        read("device_tokens_per_second", device="orin") == pytest.approx(320) and read("device_cut", device="orin") == 2
    )
    seen = read("device_last_turn_time_seconds", device="orin")
    assert seen is not None and seen >= (read("run_start_time_seconds") or math.inf)


def test_a_thousand_devices_have_no_thousand_series(tmp_path: Path) -> None:
    with told(tmp_path, max_devices=10) as endpoint:
        endpoint.on_turn(completed("0"))
        few = len(Read(endpoint).samples)
        for number in range(1000):
            endpoint.on_turn(completed(f"{number}"))
        for number in reversed(range(1000)):  # those that have series keep them
            endpoint.on_turn(completed(f"{number}", loss=2.0))
        read = Read(endpoint)
    assert read.of("device_loss") == {(f"{number}",): 2.0 for number in range(10)}
    assert read("devices_without_series") == 990 and read("turns_total", mode="train", outcome="completed") == 2001
    assert len(read.samples) == few + 9 * 5


def test_no_series_of_devices(tmp_path: Path) -> None:
    with told(tmp_path, max_devices=0) as endpoint:
        endpoint.on_turn(completed("orin"))
        read = Read(endpoint)
    assert read.of("device_loss") == {} and read("devices_without_series") == 1
    with pytest.raises(ConfigError, match="`max_devices` is -1; expected 0"):
        PrometheusEndpoint(max_devices=-1)


def test_evaluations_have_a_bound(tmp_path: Path) -> None:
    with told(tmp_path) as endpoint:
        endpoint.on_evaluation(1, {f"metric-{number}": float(number) for number in range(100)})
        endpoint.on_evaluation(2, {"metric-1": 9.0, "words": "are no numbers", "metric-200": 1.0})  # type: ignore[dict-item]
        found = Read(endpoint).of("evaluation")
    assert len(found) == 64 and found["metric-1",] == 9.0 and ("metric-200",) not in found


def test_a_device_may_have_any_name(tmp_path: Path) -> None:
    name = 'a "board", \\ of ours {x} ü'
    with told(tmp_path) as endpoint:
        endpoint.on_turn(completed(name))
        assert Read(endpoint).of("device_loss") == {(name,): 1.0}


# ---- the chain


def test_the_chain(tmp_path: Path) -> None:
    live = LiveReading(num_cloud_losses=2, cloud_uplink_bytes=10, cloud_downlink_bytes=20)
    with told(tmp_path, CHAIN) as endpoint:
        endpoint.on_live(lambda: live)
        endpoint.on_epoch(epoch(1, 1))
        endpoint.on_epoch(epoch(1, 2, grad_norm=0.5))
        endpoint.on_device(device(1, 1, "orin"))
        endpoint.on_device(replace(device(1, 2, "nano"), outcome=None, error="it left", fault="timeout"))
        endpoint.on_device(device(1, 1, "orin", mode="evaluate"))
        endpoint.on_evaluation(1, {"eval-f1": 7.5})
        endpoint.on_round(1, {})
        read = Read(endpoint)
    assert read("run_info", run="run-7", strategy="SCCT") == 1 and read("rounds_total") == 1
    assert read("steps_total") == 20 and read("epoch_seconds_total") == 15 and read("missed_iterations_total") == 2
    assert read("loss", mode="train") == 2.0 and read("grad_norm") == 0.5 and read("learning_rate") == 0.003
    assert read.of("turns_total") == {
        ("train", "completed"): 1,
        ("train", "failed"): 1,
        ("evaluate", "completed"): 1,
        ("evaluate", "failed"): 0,
    }
    assert (
        read("faults_total", where="turn", kind="timeout") == 1
        and read("faults_total", where="cloud", kind="lost") == 2
    )
    assert read("stage_seconds_total", where="cloud", stage="compute") == 6.0
    assert read("handover_bytes_total", direction="downlink") == 2 << 20
    assert read("cloud_link_bytes_total", direction="downlink") == 20
    assert read("device_cut", device="orin") == 2 and read("evaluation", metric="eval-f1") == 7.5


# ---- its life


def test_it_lives_as_long_as_the_run_and_the_next_one_begins_at_zero(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    endpoint = PrometheusEndpoint(address)
    assert endpoint.address is None
    for _ in range(2):  # as in a simulation, whose process lives on
        endpoint.on_start(RunFolder(tmp_path), CONFIG)
        assert endpoint.address == address and Read(endpoint)("turns_total", mode="train", outcome="completed") == 0
        endpoint.on_turn(completed("0"))
        assert Read(endpoint)("turns_total", mode="train", outcome="completed") == 1
        endpoint.on_end(RuntimeError("the run failed"))
        endpoint.on_end(None)
        assert endpoint.address is None
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 5).close()
    assert not [thread for thread in threading.enumerate() if thread.name == "splitkd-metrics"]
    endpoint.on_turn(completed("0"))  # of nobody any more


def test_a_run_that_ended_without_a_word_does_not_keep_the_port(tmp_path: Path) -> None:
    with told(tmp_path) as endpoint:
        endpoint.on_turn(completed("0"))
        endpoint.on_start(RunFolder(tmp_path), CONFIG)
        assert Read(endpoint)("turns_total", mode="train", outcome="completed") == 0


def test_it_lets_go_of_the_run(tmp_path: Path) -> None:
    """What reads a run holds its models."""
    import gc
    import weakref

    class Models:
        def read(self) -> LiveReading:
            return LiveReading()

    models = Models()
    gone = weakref.ref(models)
    with told(tmp_path) as endpoint:
        endpoint.on_live(models.read)
        Read(endpoint)
    del models
    gc.collect()
    assert gone() is None


def test_a_port_that_is_taken_ends_the_run_before_it_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = PrometheusEndpoint(f"127.0.0.1:{taken.getsockname()[1]}")
        callbacks = Callbacks([endpoint])
        with pytest.raises(ConfigError, match="which cannot be bound: .* choose another one"):
            callbacks.tell("on_start", RunFolder(tmp_path), CONFIG)
        callbacks.tell("on_turn", completed("0"))
        callbacks.tell("on_end", None)
    assert not caplog.records


def test_where_it_is_and_who_can_read_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="flwr"), told(tmp_path) as endpoint:
        assert [record.getMessage() for record in caplog.records] == [
            f"\t├──> Metrics at http://{endpoint.address}/metrics"
        ]
    caplog.clear()
    endpoint = PrometheusEndpoint("0.0.0.0:0")
    with caplog.at_level("INFO", logger="flwr"):
        endpoint.on_start(RunFolder(tmp_path), CONFIG)
    endpoint.on_end(None)
    assert re.search("can be read by whoever reaches this machine", caplog.records[-1].getMessage())


def test_without_the_library_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'flwr_splitkd[prometheus]'")):
        PrometheusEndpoint()
