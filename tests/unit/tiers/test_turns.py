"""Whole turns over the in-memory transport: hand-over modes, the cache, evaluation, and tasks beside language models."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.errors import ConfigError, CutError, DataError, PeerLostError, SplitKDError
from flwr_splitkd.models import build_skeleton, inner_model
from flwr_splitkd.split import Layout, find_layout
from flwr_splitkd.store import CommitLog, DeviceCache, tensor_file
from flwr_splitkd.telemetry.sensors import EnergyMeter, Reading
from flwr_splitkd.testing import connected_links
from flwr_splitkd.tiers import device as device_tier
from flwr_splitkd.tiers.device import DeviceData
from flwr_splitkd.tiers.edge import (
    EdgeStudent,
    EdgeTeacher,
    HandoverName,
    Objective,
    TaskName,
    TurnMode,
    TurnOutcome,
    TurnPlan,
    TurnSettings,
    run_turn,
)
from flwr_splitkd.tiers.edge.teacher_cache import TeacherCache
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

CPU = torch.device("cpu")
OPTIMIZER = OptimizerSettings(learning_rate=1e-2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tensor_file, "_sync", lambda path: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(hidden_size: int = 16) -> nn.Module:
    torch.manual_seed(hidden_size)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=hidden_size,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def bert(hidden_size: int = 16) -> nn.Module:
    torch.manual_seed(hidden_size)
    config = BertConfig(
        vocab_size=40,
        hidden_size=hidden_size,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_labels=4,
        pad_token_id=0,
    )
    return BertForSequenceClassification(config)


class Cnn(nn.Module):
    """A small image classifier with state beside its parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.classifier = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.third(self.second(self.first(image)))
        return self.classifier(hidden.mean((2, 3)))


CNN_BLOCKS = ("first", "second", "third")


def sentences(count: int = 3, classes: int | None = None) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    made = []
    for _ in range(count):
        ids = torch.randint(1, 40, (2, 6), generator=generator)
        labels = torch.randint(classes, (2,), generator=generator) if classes else ids.clone()
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


def images(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(8)
    return [
        {
            "image": torch.randn(4, 1, 6, 6, generator=generator),
            "labels": torch.randint(3, (4,), generator=generator),
        }
        for _ in range(count)
    ]


@dataclass
class Federation:
    """An edge, and devices that share nothing but it."""

    folder: Path
    build: Callable[[], nn.Module] = llama
    teacher: nn.Module | None = None
    teacher_blocks: Sequence[str] = ()
    teacher_cut: int | None = None
    teacher_on_device: Callable[[], nn.Module] | None = None
    teacher_top_k: int | None = None
    task: TaskName = "causal-lm"
    handover: HandoverName = "full"
    blocks: Sequence[str] | None = None
    settings: TurnSettings = field(default_factory=TurnSettings)
    cache: TeacherCache | None = None
    next_step: int = 0
    device_meter: EnergyMeter | None = None
    edge_meter: EnergyMeter | None = None

    def __post_init__(self) -> None:
        whole = self.build()
        model = inner_model(whole)
        self.student = EdgeStudent(
            whole,
            self.layout(model),
            optimizer=OPTIMIZER,
            handover=self.handover,
            log=CommitLog(self.folder / "commits"),
        )
        has_head = self.task != "classification"
        teacher = None
        if self.teacher:
            blocks, cut = self.teacher_blocks, self.teacher_cut
            top_k = self.teacher_top_k
            teacher = EdgeTeacher(
                self.teacher, has_head=has_head, compute_device=CPU, blocks=blocks, cut=cut, top_k=top_k
            )
        loss = DistillationLoss(kd_ratio=0.5 if teacher else 0.0)
        self.objective = Objective(model, teacher, loss, self.task)

    def layout(self, model: nn.Module) -> Layout:
        return find_layout(model, list(self.blocks) if self.blocks else None)

    def turn(
        self,
        device: int,
        cut: int,
        data: list[Any],
        mode: TurnMode = "train",
        epochs: int = 1,
        before: Callable[[Link, pb.Hello], None] = lambda link, hello: None,
        **plan_settings: Any,
    ) -> tuple[TurnOutcome, device_tier.TurnReport | None]:
        cache = DeviceCache(self.folder / f"device-{device}")
        hello = pb.Hello(
            device_name=f"device-{device}",
            num_batches=len(data),
            cached_units=[pb.UnitVersion(unit=u, version=v) for u, v in cache.versions().items()],
        )
        reports: list[device_tier.TurnReport] = []

        def serve() -> None:
            skeleton = build_skeleton(self.build)
            try:
                report = device_tier.run_turn(
                    device_link,
                    model=skeleton,
                    layout=self.layout(inner_model(skeleton)),
                    data=DeviceData(data),
                    cache=cache,
                    compute_device=CPU,
                    begin_timeout_s=20,
                    step_timeout_s=20,
                    teacher=self.teacher_on_device,
                    student_folder=self.folder / f"student-{device}",
                    meter=self.device_meter,
                )
            except SplitKDError as error:
                device_link.fail(error)
            else:
                reports.append(report)

        codecs = {name: getattr(self.settings, name) for name in ("uplink_codec", "downlink_codec")}
        plan = TurnPlan(
            mode=mode, cut=cut, local_epochs=epochs, first_step=self.next_step, info={}, **{**codecs, **plan_settings}
        )
        thread = threading.Thread(target=serve)
        try:
            with connected_links() as (edge_link, device_link):
                self.edge_link = edge_link
                thread.start()
                before(edge_link, hello)
                outcome = run_turn(
                    edge_link,
                    hello,
                    student=self.student,
                    objective=self.objective,
                    settings=self.settings,
                    plan=plan,
                    cache=self.cache,
                    meter=self.edge_meter,
                )
                thread.join(20)
        finally:
            # Of a turn that was lost too: at its end it sets torch's generator back, which the next test draws from.
            thread.join(20)
        if mode == "train":
            self.next_step += outcome.num_steps
        return outcome, reports[0] if reports else None

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.student.model.state_dict().items()}


def unsplit(build: Callable[[], nn.Module], data: list[Any], turns: int, *, reset: bool = False) -> dict[str, Tensor]:
    """Labels only, all turns on the same data."""
    model = build().train()
    optimizer = OPTIMIZER.build(model.parameters())
    for turn in range(turns):
        if reset and turn:
            optimizer = OPTIMIZER.build(model.parameters())
        for batch in data:
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            output = model(**inputs)
            logits = output if isinstance(output, Tensor) else output.logits
            labels = batch["labels"]
            if labels.dim() == 2:
                nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).backward()
            else:
                DistillationLoss(kd_ratio=0.0).from_logits(logits, None, labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal but for the last bits: torch's dense cross-entropy sums in another order than the chunked loss."""
    return all(torch.allclose(one[name].double(), other[name].double(), rtol=1e-4, atol=2e-5) for name in other)


@pytest.mark.parametrize("handover", ["full", "reset"])
def test_moments_travel_or_start_again(handover: HandoverName, tmp_path: Path) -> None:
    federation = Federation(tmp_path, handover=handover)
    for device, cut in ((0, 1), (1, 3), (0, 2)):
        federation.turn(device, cut, sentences())
    expected = unsplit(llama, sentences(), 3, reset=handover == "reset")
    assert close(federation.weights(), expected)
    assert not close(federation.weights(), unsplit(llama, sentences(), 3, reset=handover == "full"))
    assert bool(federation.student.moments) == (handover == "full")


def test_moments_can_stay_on_their_device(tmp_path: Path) -> None:
    federation = Federation(tmp_path, handover="device")
    first, _ = federation.turn(0, 2, sentences())
    federation.turn(0, 2, sentences())
    # One device at one cut: every layer finds its own moments again, wherever it lives.
    assert close(federation.weights(), unsplit(llama, sentences(), 2))
    kept = DeviceCache(tmp_path / "device-0").versions()
    assert any(name.startswith("moments.model.layers.0.") for name in kept)
    full, _ = Federation(tmp_path / "full").turn(0, 2, sentences())
    assert first.handover_bytes < full.handover_bytes  # nothing but weights went up


def test_only_what_changed_travels(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    first, _ = federation.turn(0, 2, sentences())
    again, _ = federation.turn(0, 2, sentences())
    other, _ = federation.turn(1, 2, sentences())
    back, _ = federation.turn(0, 2, sentences())
    assert [turn.handover_downlink_bytes > 0 for turn in (first, again, other, back)] == [True, False, True, True]
    up = other.handover_bytes - back.handover_bytes
    assert again.handover_bytes < first.handover_bytes  # nothing had to come down: the cache had it all
    assert back.handover_bytes > again.handover_bytes  # another device trained these layers since
    assert up == 0, "a newcomer and a device that lags behind receive the same"


def test_a_damaged_cache_costs_bytes_only(tmp_path: Path) -> None:
    federation, clean = Federation(tmp_path / "damaged"), Federation(tmp_path / "clean")
    for one in (federation, clean):
        one.turn(0, 2, sentences())
    for file in (tmp_path / "damaged" / "device-0").glob("*.safetensors"):
        file.unlink()
    for one in (federation, clean):
        one.turn(0, 2, sentences())
    assert all(torch.equal(tensor, clean.weights()[name]) for name, tensor in federation.weights().items())


def test_evaluation_changes_nothing(tmp_path: Path) -> None:
    federation = Federation(tmp_path, teacher=llama(20))
    federation.turn(0, 1, sentences())
    before, commit = federation.weights(), federation.student.last_commit
    outcome, report = federation.turn(1, 3, sentences(), mode="evaluate")
    assert all(torch.equal(tensor, before[name]) for name, tensor in federation.weights().items())
    assert federation.student.last_commit == commit
    model = llama()
    model.load_state_dict(before)
    model.train(False)
    losses = []
    for batch in sentences():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        losses.append(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()))
    assert outcome.cross_entropy == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert outcome.kl_divergence == 0.0
    assert report is not None
    assert (report.num_examples, report.num_steps, outcome.num_tokens) == (6, 3, 30)


def test_a_turn_tells_how_long_its_first_smashed_data_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_half = device_tier.turn._Turn._build_half

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.2)
        return build_half(*arguments)

    monkeypatch.setattr(device_tier.turn._Turn, "_build_half", slowly)
    outcome, _ = Federation(tmp_path).turn(0, 2, sentences())
    assert 0.2 <= outcome.first_forward_s < outcome.duration_s
    nothing, _ = Federation(tmp_path / "nothing").turn(0, 2, sentences(), epochs=0)
    assert nothing.first_forward_s == 0.0


class Counting:
    """A counter that is `step_j` higher whenever it is read."""

    name = "of the test"

    def __init__(self, part: str, step_j: float) -> None:
        self.part, self.step_j, self.total_j = part, step_j, 0.0

    def read(self) -> tuple[Reading, ...]:
        return self.energy()

    def energy(self) -> tuple[Reading, ...]:
        self.total_j += self.step_j
        return (Reading(quantity="energy_j", name=self.part, source="test", value=self.total_j),)


def test_both_sides_measure_their_own_joules(tmp_path: Path) -> None:
    with EnergyMeter([Counting("VDD_IN", 6.0)]) as device, EnergyMeter([Counting("GPU 0", 40.0)]) as edge:
        federation = Federation(tmp_path, device_meter=device, edge_meter=edge)
        outcome, _ = federation.turn(0, 2, sentences())
        assert (outcome.measured_device_j, outcome.measured_device_parts) == (6.0, ("VDD_IN",))
        assert (outcome.measured_edge_j, outcome.measured_edge_parts) == (40.0, ("GPU 0",))
        assert outcome.measured_j == {
            "measured_device_j": 6.0,
            "measured_edge_j": 40.0,
            "measured_device_j_per_step": 2.0,
            "measured_edge_j_per_step": pytest.approx(40 / 3),
        }
        evaluated, _ = federation.turn(0, 2, sentences(), mode="evaluate")
        assert evaluated.measured_device_j == 6.0
        delivered, _ = federation.turn(0, 4, sentences(), mode="deliver")
        assert delivered.measured_device_j is None  # nothing is computed


def test_nothing_is_said_of_joules_that_are_not_known(tmp_path: Path) -> None:
    with EnergyMeter([Counting("package-0", -1.0)]) as falling:
        outcome, _ = Federation(tmp_path, device_meter=falling, edge_meter=falling).turn(0, 2, sentences())
    assert (outcome.measured_device_j, outcome.measured_edge_j, outcome.measured_j) == (None, None, {})
    assert (outcome.measured_device_parts, outcome.measured_edge_parts) == ((), ())


def test_a_device_lost_after_the_commit_has_taken_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation, clean = Federation(tmp_path / "lost"), Federation(tmp_path / "clean")
    commit = federation.student.commit

    def commit_and_lose(*args: Any) -> Any:
        manifest = commit(*args)
        federation.edge_link.abandon(PeerLostError("its battery is empty"))
        return manifest

    monkeypatch.setattr(federation.student, "commit", commit_and_lose)
    outcome, report = federation.turn(0, 2, sentences())
    monkeypatch.undo()
    clean.turn(0, 2, sentences())
    assert (report, outcome.commit_id, federation.next_step) == (None, "000001", 3)
    for one in (federation, clean):
        one.turn(0, 2, sentences())
    assert all(torch.equal(tensor, clean.weights()[name]) for name, tensor in federation.weights().items())


def test_several_local_epochs(tmp_path: Path) -> None:
    federation = Federation(tmp_path)
    outcome, _ = federation.turn(0, 2, sentences(), epochs=3)
    assert (outcome.num_steps, outcome.num_examples) == (9, 18)
    assert close(federation.weights(), unsplit(llama, sentences(), 3))


@pytest.mark.parametrize(
    ("student", "teacher", "numbers"), [(40, 30, "30; expected at least 40"), (40, 50, "50; expected 40")]
)
def test_vocabularies_that_do_not_fit(student: int, teacher: int, numbers: str) -> None:
    models = [
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
            )
        )
        for size in (student, teacher)
    ]
    frozen = EdgeTeacher(models[1], has_head=True, compute_device=CPU)
    with pytest.raises(ConfigError, match=f"the teacher's vocabulary is {numbers}"):
        Objective(models[0], frozen, DistillationLoss(kd_ratio=0.5), "causal-lm")


def test_a_short_last_group_is_a_step_of_its_own(tmp_path: Path) -> None:
    settings = TurnSettings(gradient_accumulation_steps=2, max_grad_norm=1.0)
    outcome, _ = Federation(tmp_path, settings=settings).turn(0, 2, sentences(5))
    assert outcome.num_steps == 3
    assert outcome.num_examples == 10


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_batch_without_labels_that_count(clip: float | None, tmp_path: Path) -> None:
    data = sentences()
    data[1]["labels"] = torch.full_like(data[1]["labels"], -100)
    federation = Federation(tmp_path, settings=TurnSettings(max_grad_norm=clip))
    outcome, _ = federation.turn(0, 2, data)
    assert outcome.num_tokens == 20
    assert all(bool(torch.isfinite(tensor).all()) for tensor in federation.weights().values())


def test_a_classifier_with_a_teacher(tmp_path: Path) -> None:
    federation = Federation(tmp_path, build=bert, teacher=bert(20), task="classification")
    outcome, report = federation.turn(0, 1, sentences(classes=4))
    assert outcome.kl_divergence > 0
    assert outcome.num_tokens == 6
    assert 0 <= outcome.num_correct <= 6
    assert report is not None
    assert report.task == pb.TASK_CLASSIFICATION


@pytest.mark.parametrize("cuts", [(1, 2), (2, 1)])
def test_a_cnn_with_running_statistics(cuts: tuple[int, int], tmp_path: Path) -> None:
    federation = Federation(tmp_path, build=Cnn, task="classification", blocks=CNN_BLOCKS)
    for device, cut in enumerate(cuts):
        federation.turn(device, cut, images())
    # Bit for bit: a convolution's bias before a normalisation has nothing but rounding errors for a gradient.
    expected = unsplit(Cnn, images(), 2)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in federation.weights().items())
    assert federation.weights()["first.1.num_batches_tracked"] == 6


def test_a_sequential_model(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(6)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))

    data = [{"input": batch["image"], "labels": batch["labels"]} for batch in images()]
    federation = Federation(tmp_path, build=build, task="classification", blocks=[str(i) for i in range(6)])
    federation.turn(0, 2, data)
    federation.turn(1, 4, data)
    assert close(federation.weights(), unsplit(build, data, 2))


@pytest.mark.parametrize("token", [-1, 40])
def test_a_token_that_the_student_does_not_know(token: int, tmp_path: Path) -> None:
    data = sentences()
    data[1]["input_ids"][0, 2] = token
    federation = Federation(tmp_path)
    before = federation.weights()
    with pytest.raises(DataError, match=f"`input_ids` has {token}; expected 0..39, the student's vocabulary"):
        federation.turn(0, 2, data)
    assert all(torch.equal(tensor, before[name]) for name, tensor in federation.weights().items())


def test_a_teacher_whose_first_part_is_not_known() -> None:
    with pytest.raises(ConfigError, match="`teacher_blocks` is empty and the teacher is a Cnn"):
        EdgeTeacher(Cnn(), has_head=False, compute_device=CPU)
    with pytest.raises(CutError, match="`teacher_cut` is 0 and the teacher is a Cnn, which has no token embedding"):
        EdgeTeacher(Cnn(), has_head=False, compute_device=CPU, blocks=CNN_BLOCKS, cut=0)
    with pytest.raises(CutError, match=r"`cut` is 3; expected 0\.\.2"):
        EdgeTeacher(Cnn(), has_head=False, compute_device=CPU, blocks=CNN_BLOCKS, cut=3)


def test_moments_of_another_run_stay_unused(tmp_path: Path) -> None:
    first = Federation(tmp_path, handover="device")
    first.turn(0, 2, sentences(), run="1")
    (tmp_path / "commits").rename(tmp_path / "commits of run 1")
    second = Federation(tmp_path, handover="device")
    second.turn(0, 2, sentences(), run="2")
    assert all(torch.equal(tensor, first.weights()[name]) for name, tensor in second.weights().items())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_batches": -1}, "`max_batches` is -1; expected at least 0"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` is 0; expected at least 1"),
        ({"max_grad_norm": 0.0}, "`max_grad_norm` is 0.0; expected more than 0"),
        ({"uplink_codec": "zip"}, "`codec` is 'zip'; expected one of none"),
    ],
)
def test_settings_out_of_range(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TurnSettings(**setting)
