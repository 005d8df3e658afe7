"""Clusters over in-memory links: against sequential turns, against one process of plain torch, and with devices that are lost."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.errors import PeerLostError, SplitKDError
from flwr_splitkd.models import HeadTap, build_skeleton, inner_model
from flwr_splitkd.split import Layout, find_layout
from flwr_splitkd.split.dropout import DropoutSeeds
from flwr_splitkd.store import CommitLog, DeviceCache, tensor_file
from flwr_splitkd.telemetry.sensors import EnergyMeter, Reading
from flwr_splitkd.testing import connected_links
from flwr_splitkd.tiers import device as device_tier
from flwr_splitkd.tiers.device import DeviceData
from flwr_splitkd.tiers.edge import (
    EdgeStudent,
    EdgeTeacher,
    HandoverName,
    Member,
    Objective,
    TaskName,
    TurnOutcome,
    TurnPlan,
    TurnSettings,
    batching,
    run_cluster,
    run_turn,
)
from flwr_splitkd.tiers.edge.batching import Batching
from flwr_splitkd.tiers.optimizer import OptimizerSettings
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

CPU = torch.device("cpu")
ADAMW = OptimizerSettings(learning_rate=1e-2)
TIMEOUT_S = 20.0

Batch = dict[str, Tensor]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tensor_file, "_sync", lambda path: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def neox(hidden_size: int = 16) -> nn.Module:
    """In float64 throughout, so that only the order of sums is left to differ; Llama's norms compute in float32."""
    torch.manual_seed(hidden_size)
    config = GPTNeoXConfig(
        vocab_size=40,
        hidden_size=hidden_size,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        pad_token_id=0,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    return GPTNeoXForCausalLM(config).double()


def llama(hidden_size: int = 16, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(hidden_size)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=hidden_size,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        pad_token_id=0,
        attention_dropout=dropout,
    )
    return LlamaForCausalLM(config)


def forgetful() -> nn.Module:
    return llama(dropout=0.5)


class Normalised(nn.Module):
    """A classifier that looks at a batch as a whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.third = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.classifier = nn.Linear(8, 3)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.third(self.second(self.first(features))))


class Forgetful(Normalised):
    """One that drops out, on the edge alone: devices that are threads of one process share a random generator."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.third = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))


BLOCKS = ("first", "second", "third")


def sentences(seed: int, count: int = 3, rows: int = 2, length: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(1, 40, (rows, length), generator=generator)
        labels = ids.clone()
        labels[0, 2 + seed % 3 :] = -100  # so that devices count other numbers of labels
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


def points(seed: int, count: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "features": torch.randn(4, 6, generator=generator),
            "labels": torch.randint(3, (4,), generator=generator),
        }
        for _ in range(count)
    ]


@dataclass
class Edge:
    """An edge, and devices that share nothing but it."""

    folder: Path
    build: Callable[[], nn.Module] = neox
    teacher: nn.Module | None = None
    task: TaskName = "causal-lm"
    handover: HandoverName = "full"
    blocks: Sequence[str] | None = None
    settings: TurnSettings = field(default_factory=TurnSettings)
    optimizer: OptimizerSettings = ADAMW
    on_edge_links: Callable[[list[Link]], None] = lambda links: None
    meter: EnergyMeter | None = None

    def __post_init__(self) -> None:
        whole = self.build()
        self.student = EdgeStudent(
            whole,
            self.layout(whole),
            optimizer=self.optimizer,
            handover=self.handover,
            log=CommitLog(self.folder / "commits"),
        )
        teacher = EdgeTeacher(self.teacher, has_head=True, compute_device=CPU) if self.teacher else None
        loss = DistillationLoss(kd_ratio=0.5 if teacher else 0.0)
        self.objective = Objective(inner_model(whole), teacher, loss, self.task)
        self.batching = Batching(enabled=self.settings.batch_devices)
        self.device_errors: dict[int, SplitKDError] = {}

    def layout(self, model: nn.Module) -> Layout:
        return find_layout(model, list(self.blocks) if self.blocks else None)

    def turn(self, cut: int, data: list[Batch], **options: Any) -> TurnOutcome:
        """The sequential turn."""
        with self._devices([(cut, data)], **options) as (links, hellos):
            return run_turn(
                links[0],
                hellos[0],
                student=self.student,
                objective=self.objective,
                settings=self.settings,
                plan=self._plan(cut, options.get("epochs", 1)),
            )

    def cluster(self, devices: Sequence[tuple[int, list[Batch]]], **options: Any) -> list[TurnOutcome | SplitKDError]:
        with self._devices(devices, **options) as (links, hellos):
            self.on_edge_links(links)
            members = [
                Member(link=link, hello=hello, plan=self._plan(cut, options.get("epochs", 1), device))
                for device, (link, hello, (cut, _)) in enumerate(zip(links, hellos, devices, strict=True))
            ]
            return run_cluster(
                members,
                student=self.student,
                objective=self.objective,
                settings=self.settings,
                info={"event": "cluster"},
                batching=self.batching,
                meter=self.meter,
            )

    def _plan(self, cut: int, epochs: int, device: int = 0) -> TurnPlan:
        return TurnPlan(
            mode="train",
            cut=cut,
            local_epochs=epochs,
            first_step=self.student.next_step,
            info={"device": str(device)},
            run="7",
            uplink_codec=self.settings.uplink_codec,  # type: ignore[arg-type]  # none of these tests has "auto"
            downlink_codec=self.settings.downlink_codec,  # type: ignore[arg-type]
        )

    def _devices(self, devices: Sequence[tuple[int, list[Batch]]], **options: Any) -> Any:
        return _Running(self, devices, **options)

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.student.model.state_dict().items()}


class _Running:
    """Devices in threads, for the length of a ``with`` block."""

    def __init__(self, edge: Edge, devices: Sequence[tuple[int, list[Batch]]], epochs: int = 1) -> None:
        self._edge, self._devices = edge, devices
        self._stack, self._threads = ExitStack(), list[threading.Thread]()

    def __enter__(self) -> tuple[list[Link], list[pb.Hello]]:
        links, hellos = [], []
        for device, (_, data) in enumerate(self._devices):
            edge_link, device_link = self._stack.enter_context(connected_links())
            cache = DeviceCache(self._edge.folder / f"device-{device}")
            units = [pb.UnitVersion(unit=u, version=v) for u, v in cache.versions().items()]
            hellos.append(pb.Hello(cached_units=[unit for unit in units if not unit.unit.startswith("moments.")]))
            links.append(edge_link)
            thread = threading.Thread(target=self._serve, args=(device, device_link, data, cache))
            self._threads.append(thread)
            thread.start()
        return links, hellos

    def __exit__(self, *_exc: object) -> None:
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        self._stack.close()

    def _serve(self, device: int, link: Link, data: list[Batch], cache: DeviceCache) -> None:
        skeleton = build_skeleton(self._edge.build)
        try:
            device_tier.run_turn(
                link,
                model=skeleton,
                layout=self._edge.layout(inner_model(skeleton)),
                data=DeviceData(data),
                cache=cache,
                compute_device=CPU,
                begin_timeout_s=TIMEOUT_S,
                step_timeout_s=TIMEOUT_S,
            )
        except SplitKDError as error:
            self._edge.device_errors[device] = error
            link.fail(error)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Relative norm of the difference, of the worst tensor."""
    return max(
        float((t - other[n]).norm() / t.norm().clamp(min=1e-30)) for n, t in one.items() if t.is_floating_point()
    )


# ---- one process of plain torch


def block_of(name: str, layout: Layout) -> int:
    kind, _, index = layout.unit_of(name).partition(".")
    return int(index) if index else {"stem": -1, "head": layout.num_blocks}[kind]


def mean_loss(model: nn.Module, parameters: Mapping[str, Tensor], batch: Batch, teacher: nn.Module | None) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits = torch.func.functional_call(model, dict(parameters), (), inputs).logits[:, :-1]
    labels = batch["labels"][:, 1:].flatten()
    counted = labels != -100
    logits, labels = logits.flatten(0, 1)[counted], labels[counted]
    loss = nn.functional.cross_entropy(logits, labels)
    if teacher is None:
        return loss
    with torch.no_grad():
        theirs = teacher(**inputs).logits[:, :-1].flatten(0, 1)[counted].log_softmax(-1)
    kl = nn.functional.kl_div(logits.log_softmax(-1), theirs, log_target=True, reduction="batchmean")
    return 0.5 * loss + 0.5 * kl


def composite(
    build: Callable[[], nn.Module],
    devices: Sequence[tuple[int, list[Batch]]],
    *,
    optimizer: OptimizerSettings = ADAMW,
    max_grad_norm: float | None = None,
    teacher: nn.Module | None = None,
) -> dict[str, Tensor]:
    """A cluster as docs/explanation/clusters.md defines it: whole copies of the model, of which each uses its layers."""
    model = build().train()
    layout = find_layout(model)
    start = {name: parameter.detach() for name, parameter in model.named_parameters()}
    block = {name: block_of(name, layout) for name in start}
    cuts = [cut for cut, _ in devices]

    def copies(keep: Callable[[int], bool]) -> tuple[dict[str, Tensor], torch.optim.Optimizer]:
        own = {name: nn.Parameter(t.clone()) for name, t in start.items() if keep(block[name])}
        return own, optimizer.build(own.values())

    edge, edge_optimizer = copies(lambda index: index >= min(cuts))
    halves = [copies(lambda index, cut=cut: index < cut) for cut in cuts]
    for step in range(max(len(data) for _, data in devices)):
        labels = {
            i: int((data[step]["labels"][:, 1:] != -100).sum())
            for i, (_, data) in enumerate(devices)
            if step < len(data)
        }
        squares = torch.zeros((), dtype=torch.float64)
        for i, count in labels.items():
            cut, data = devices[i]
            used = {**{n: t for n, t in edge.items() if block[n] >= cut}, **halves[i][0]}
            gradients = torch.autograd.grad(mean_loss(model, used, data[step], teacher), list(used.values()))
            for name, gradient in zip(used, gradients, strict=True):
                if block[name] < cut:
                    used[name].grad = gradient
                    squares += count / sum(labels.values()) * gradient.square().sum()
                else:
                    through = sum(n for j, n in labels.items() if cuts[j] <= block[name])
                    share = gradient * (count / through)
                    used[name].grad = share if used[name].grad is None else used[name].grad + share
        for name, parameter in edge.items():
            if parameter.grad is not None:
                through = sum(n for j, n in labels.items() if cuts[j] <= block[name])
                squares += through / sum(labels.values()) * parameter.grad.square().sum()
        factor = min(1.0, max_grad_norm / (float(squares) ** 0.5 + 1e-6)) if max_grad_norm else 1.0
        for own, its_optimizer in [(edge, edge_optimizer), *(halves[i] for i in labels)]:
            for parameter in own.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            its_optimizer.step()
            its_optimizer.zero_grad()
    samples = [sum(len(batch["labels"]) for batch in data) for _, data in devices]
    ended = {}
    for name in start:
        held = [
            (samples[i] * (halves[i][0][name] if block[name] < cut else edge[name])).detach()
            for i, cut in enumerate(cuts)
        ]
        ended[name] = sum(held) / sum(samples)
    return ended


# ---- tests

CUTS = {"same cuts": (2, 2), "different cuts": (1, 3), "three": (3, 1, 2), "two of three": (2, 1, 2)}


@pytest.mark.parametrize(
    ("steps", "max_grad_norm", "handover"),
    [(1, None, "full"), (2, 0.5, "full"), (2, None, "reset"), (1, 0.5, "device")],
)
def test_a_cluster_of_one_is_the_sequential_turn(
    handover: HandoverName, max_grad_norm: float | None, steps: int, tmp_path: Path
) -> None:
    settings = TurnSettings(max_grad_norm=max_grad_norm, gradient_accumulation_steps=steps, uplink_codec="int8")
    one = Edge(tmp_path / "turns", forgetful, teacher=forgetful(), handover=handover, settings=settings)
    other = Edge(tmp_path / "clusters", forgetful, teacher=forgetful(), handover=handover, settings=settings)
    for cut in (2, 1, 1):
        # One pass: at a second one's begin the device seeds torch's generator, which it shares with the edge as a thread.
        turn = one.turn(cut, sentences(3, count=10))
        (outcome,) = other.cluster([(cut, sentences(3, count=10))])
        assert isinstance(outcome, TurnOutcome), outcome
        assert same(one.weights(), other.weights())
        fields = (
            "num_steps",
            "num_batches",
            "num_examples",
            "num_tokens",
            "loss",
            "handover_bytes",
            "uplink_payload_bytes",
        )
        assert [getattr(turn, name) for name in fields] == [getattr(outcome, name) for name in fields]
        assert turn.commit_id == outcome.commit_id
    for name, entries in one.student.moments.items():
        assert same(entries, other.student.moments[name])
    assert one.student.next_step == other.student.next_step


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_a_cluster_equals_one_process(cuts: tuple[int, ...], max_grad_norm: float | None, tmp_path: Path) -> None:
    edge = Edge(tmp_path, teacher=neox(20), settings=TurnSettings(max_grad_norm=max_grad_norm))
    devices = [(cut, sentences(seed, rows=2 + seed)) for seed, cut in enumerate(cuts)]
    outcomes = edge.cluster(devices)
    expected = composite(neox, devices, max_grad_norm=max_grad_norm, teacher=neox(20))
    assert distance(expected, edge.weights()) < 1e-9
    assert all(isinstance(outcome, TurnOutcome) for outcome in outcomes), outcomes
    assert {outcome.commit_id for outcome in outcomes} == {edge.student.last_commit}  # type: ignore[union-attr]
    assert edge.student.next_step == 3
    alone = composite(neox, devices[:1], max_grad_norm=max_grad_norm, teacher=neox(20))
    assert distance(alone, edge.weights()) > 1e-4


def test_gradients_of_the_edge_are_means_over_those_that_go_through_it(tmp_path: Path) -> None:
    """Under SGD a wrong divisor shows; AdamW would hide it."""
    sgd = OptimizerSettings(name="sgd", learning_rate=0.5)
    edge = Edge(tmp_path, optimizer=sgd)
    devices = [(1, sentences(0, rows=5)), (3, sentences(1, rows=2)), (2, sentences(2, rows=3))]
    edge.cluster(devices)
    assert distance(composite(neox, devices, optimizer=sgd), edge.weights()) < 1e-9


def test_accumulated_microbatches_are_one_step(tmp_path: Path) -> None:
    edge = Edge(tmp_path, settings=TurnSettings(gradient_accumulation_steps=2))
    devices = [(1, sentences(0, count=4)), (2, sentences(1, count=3))]
    edge.cluster(devices)

    def merged(data: list[Batch]) -> list[Batch]:
        pairs = [data[i : i + 2] for i in range(0, len(data), 2)]
        return [{name: torch.cat([batch[name] for batch in pair]) for name in pair[0]} for pair in pairs]

    expected = composite(neox, [(cut, merged(data)) for cut, data in devices])
    assert distance(expected, edge.weights()) < 1e-9


def test_microbatches_in_flight_change_nothing(tmp_path: Path) -> None:
    devices = [(1, sentences(0, rows=4)), (3, sentences(1, rows=5)), (1, sentences(2, rows=4))]
    edge = Edge(tmp_path, teacher=neox(20), settings=TurnSettings(num_microbatches=2, pipeline_depth=2))
    outcomes = edge.cluster(devices)
    assert [outcome.num_batches for outcome in outcomes] == [6, 6, 6]  # type: ignore[union-attr]
    assert distance(composite(neox, devices, teacher=neox(20)), edge.weights()) < 1e-9


def test_two_rounds_hand_moments_over(tmp_path: Path) -> None:
    """A second cluster at other cuts goes on with the averaged moments, in the edge's own eyes and the devices'."""
    edge = Edge(tmp_path)
    edge.cluster([(1, sentences(0)), (3, sentences(1))])
    moments = copy.deepcopy(edge.student.moments)
    assert set(moments) == {name for name, p in edge.student.model.named_parameters()}
    assert all(float(entries["step"]) == 3 for entries in moments.values())
    reopened = Edge(tmp_path)
    assert all(same(entries, reopened.student.moments[name]) for name, entries in moments.items())
    reopened.cluster([(2, sentences(0)), (1, sentences(1))])
    assert all(float(entries["step"]) == 6 for entries in reopened.student.moments.values())


def test_who_has_less_data_ends_early(tmp_path: Path) -> None:
    edge = Edge(tmp_path)
    devices = [(2, sentences(0, count=2)), (1, sentences(1, count=5, rows=3))]
    outcomes = edge.cluster(devices)
    assert [outcome.num_steps for outcome in outcomes] == [2, 5]  # type: ignore[union-attr]
    assert distance(composite(neox, devices), edge.weights()) < 1e-9
    assert edge.student.next_step == 5


@pytest.mark.parametrize("cuts", [(2, 2, 2), (1, 2, 2)])
def test_joined_batches_give_the_same(cuts: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = []
    together = batching._joined
    monkeypatch.setattr(batching, "_joined", lambda o, h, items: joined.append(len(items)) or together(o, h, items))
    devices = [(cut, sentences(seed, rows=1 + seed)) for seed, cut in enumerate(cuts)]
    # In float64: AdamW makes whole steps of gradients that are nothing but rounding, and processors round differently.
    teacher = neox(20)
    one = Edge(tmp_path / "joined", teacher=teacher)
    together_outcomes = one.cluster(devices)
    assert joined == [cuts.count(2)] * 3
    other = Edge(tmp_path / "apart", teacher=teacher, settings=TurnSettings(batch_devices=False))
    apart_outcomes = other.cluster(devices)
    assert joined == [cuts.count(2)] * 3
    assert distance(one.weights(), other.weights()) < 1e-9
    for a, b in zip(together_outcomes, apart_outcomes, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-9)  # type: ignore[union-attr]
        assert a.num_tokens == b.num_tokens  # type: ignore[union-attr]


def test_other_lengths_go_one_after_another(tmp_path: Path) -> None:
    devices = [(2, sentences(0, length=6)), (2, sentences(1, length=9)), (2, sentences(2, length=9))]
    edge = Edge(tmp_path)
    edge.cluster(devices)
    assert distance(composite(neox, devices), edge.weights()) < 1e-9


@pytest.mark.parametrize("build", [Forgetful, Normalised])
def test_what_looks_at_the_whole_batch_is_not_joined(
    build: Callable[[], nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The devices are threads of this process, and would seed the edge's generator.
    monkeypatch.setattr(device_tier.turn, "seed_dropout", lambda *_: nullcontext(DropoutSeeds(0)))
    devices = [(1, points(0)), (1, points(1))]
    edges = []
    for batch_devices in (True, False):
        settings = TurnSettings(batch_devices=batch_devices)
        edge = Edge(tmp_path / str(batch_devices), build, task="classification", blocks=BLOCKS, settings=settings)
        outcomes = edge.cluster(devices)
        assert all(isinstance(outcome, TurnOutcome) for outcome in outcomes), outcomes
        edges.append(edge)
    assert same(edges[0].weights(), edges[1].weights())
    assert "one after another" in caplog.text


def test_devices_of_a_cluster_draw_other_dropout(tmp_path: Path) -> None:
    """The same data with the same masks would make two devices one."""
    edge = Edge(tmp_path, Forgetful, task="classification", blocks=BLOCKS)
    # The trial of the cut draws from torch's generator, which these devices, being threads, share with the edge.
    edge.student._checked_cuts.add(1)
    first, second = edge.cluster([(1, points(0, count=1)), (1, points(0, count=1))])
    assert first.loss != second.loss  # type: ignore[union-attr]


# ---- devices that are lost


def losing(device: int, forwards: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Link]], None]:
    """Lose a device after so many of its Forwards."""

    def arrange(links: list[Link]) -> None:
        link, left = links[device], forwards
        receive = link.receive

        def counted(expected: str, timeout_s: float) -> Any:
            nonlocal left
            if "Forward" in expected:
                if not left:
                    link.abandon(PeerLostError("its battery is empty"))
                    raise PeerLostError("its battery is empty")  # whatever it has sent since
                left -= 1
            return receive(expected, timeout_s)

        monkeypatch.setattr(link, "receive", counted)

    return arrange


@pytest.mark.parametrize("forwards", [0, 2])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_device_is_left_out_and_the_others_go_on(
    lost: int, forwards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = [(1, sentences(0)), (3, sentences(1)), (2, sentences(2))]
    edge = Edge(tmp_path, on_edge_links=losing(lost, forwards, monkeypatch))
    outcomes = edge.cluster(devices)
    assert isinstance(outcomes[lost], PeerLostError)
    assert "its battery is empty" in str(outcomes[lost])
    left = [outcome for device, outcome in enumerate(outcomes) if device != lost]
    assert all(isinstance(outcome, TurnOutcome) and outcome.num_steps == 3 for outcome in left), outcomes
    ended = [entry["device"] for entry in edge.student.last_info["cluster"]]
    assert ended == [str(device) for device in range(3) if device != lost]
    without = composite(neox, [one for device, one in enumerate(devices) if device != lost])
    apart = distance(without, edge.weights())
    # Gradients that the edge had from it before count; its own layers do not.
    assert apart < 1e-9 if not forwards else apart > 1e-6, apart


def test_a_cluster_that_is_lost_whole_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = Edge(tmp_path)
    edge.cluster([(2, sentences(0))])
    before, moments, commit = edge.weights(), copy.deepcopy(edge.student.moments), edge.student.last_commit

    def both(links: list[Link]) -> None:
        losing(0, 2, monkeypatch)(links)
        losing(1, 1, monkeypatch)(links)

    edge.on_edge_links = both
    outcomes = edge.cluster([(1, sentences(0)), (3, sentences(1))])
    assert all(isinstance(outcome, PeerLostError) for outcome in outcomes)
    assert edge.student.last_commit == commit
    assert same(before, edge.weights())
    assert all(same(entries, edge.student.moments[name]) for name, entries in moments.items())
    assert all(parameter.grad is None for parameter in edge.student.model.parameters())


def test_a_device_with_broken_data_is_left_out_of_a_joined_batch(tmp_path: Path) -> None:
    broken = sentences(1)
    broken[1]["labels"][1, 3] = 99  # no such token
    devices = [(2, sentences(0)), (2, broken), (2, sentences(2))]
    edge = Edge(tmp_path)
    outcomes = edge.cluster(devices)
    assert [isinstance(outcome, TurnOutcome) for outcome in outcomes] == [True, False, True]
    assert "a label is 99" in str(outcomes[1])
    assert "a label is 99" in str(edge.device_errors[1])
    clean = Edge(tmp_path / "apart", settings=TurnSettings(batch_devices=False))
    clean.cluster(devices)
    assert distance(clean.weights(), edge.weights()) < 1e-9


def test_a_device_whose_half_is_not_finite_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = device_tier.turn._Turn._trained_units

    def broken(turn: Any) -> Any:
        units = trained(turn)
        if turn._plan.cut == 3:
            units["blocks.0"] = {name: t * float("nan") for name, t in units["blocks.0"].items()}
        return units

    monkeypatch.setattr(device_tier.turn._Turn, "_trained_units", broken)
    outcomes = Edge(tmp_path).cluster([(1, sentences(0)), (3, sentences(1))])
    assert isinstance(outcomes[0], TurnOutcome)
    assert "NaN or infinite" in str(outcomes[1])


def test_only_units_of_the_committed_version_stay_in_the_cache(tmp_path: Path) -> None:
    """Layers that two have trained are nobody's: both get the mean in their next turn. Others stay."""
    edge = Edge(tmp_path)
    edge.cluster([(1, sentences(0)), (2, sentences(1))])
    versions = [DeviceCache(tmp_path / f"device-{device}").versions() for device in (0, 1)]
    for unit in ("stem", "blocks.0", "blocks.1"):
        for kept in versions:
            if unit in kept:
                assert kept[unit] != edge.student.version(unit)
    again = edge.cluster([(1, sentences(0)), (2, sentences(1))])
    alone = Edge(tmp_path / "alone")
    alone.cluster([(2, sentences(1))])
    (kept,) = alone.cluster([(2, sentences(1))])
    assert kept.handover_downlink_bytes == 0  # type: ignore[union-attr]
    first, second = (outcome.handover_downlink_bytes for outcome in again)  # type: ignore[union-attr]
    assert 0 < first < second


class Spending:
    """A counter that is 90 J higher whenever it is read."""

    name, total_j = "of the test", 0.0

    def read(self) -> tuple[Reading, ...]:
        return self.energy()

    def energy(self) -> tuple[Reading, ...]:
        self.total_j += 90.0
        return (Reading(quantity="energy_j", name="package-0", source="test", value=self.total_j),)


def test_the_edges_joules_are_shared_by_those_who_finish(tmp_path: Path) -> None:
    """The third is lost: its share is the others', so that all shares sum up to what the edge took."""

    def spoil(links: list[Link]) -> None:
        links[2].fail(PeerLostError("gone"))

    with EnergyMeter([Spending()]) as meter:
        edge = Edge(tmp_path, meter=meter, on_edge_links=spoil)
        outcomes = edge.cluster([(1, sentences(0)), (2, sentences(1)), (3, sentences(2))])
    shares = [one.measured_edge_j for one in outcomes if isinstance(one, TurnOutcome)]
    assert shares == [45.0, 45.0]
    assert [one.measured_edge_parts for one in outcomes if isinstance(one, TurnOutcome)] == [("package-0",)] * 2


def test_the_teacher_goes_along_in_a_joined_batch(tmp_path: Path) -> None:
    """What the teacher gives a device must be that of its own samples."""
    teacher = neox(20)
    edge = Edge(tmp_path, teacher=teacher)
    devices = [(2, sentences(0, count=1)), (2, sentences(1, count=1))]
    outcomes = edge.cluster(devices)
    student = neox()
    for (_, (batch,)), outcome in zip(devices, outcomes, strict=True):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        labels = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100).flatten()
        with torch.no_grad(), HeadTap(student) as tap, HeadTap(teacher) as teacher_tap:
            student(**inputs)
            teacher(**inputs)
        ours = student.get_output_embeddings()(tap.hidden.flatten(0, 1))[labels != -100].log_softmax(-1)
        theirs = teacher.get_output_embeddings()(teacher_tap.hidden.flatten(0, 1))[labels != -100].log_softmax(-1)
        kl = nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")
        assert outcome.kl_divergence == pytest.approx(float(kl), rel=1e-9)  # type: ignore[union-attr]
