"""Turns with modules from outside transformers: code between the blocks, teachers whose first blocks run on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_turns import OPTIMIZER, Federation, bert, close, llama, sentences
from test_turns import unsplit as unsplit_labels
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from transformers import ViTConfig, ViTForImageClassification

from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.errors import ConfigError, ProtocolError, SplitKDError, UncuttableModelError
from flwr_splitkd.tiers.device import DeviceData

NET_BLOCKS = ("conv1", "norm", "conv2", "fc1", "fc2")


class Net(nn.Module):
    """What a quickstart would write: layers as attributes, everything without weights in forward()."""

    def __init__(self, width: int = 4, seed: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(1, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(width, 8, 2)
        self.fc1 = nn.Linear(8, 12)
        self.dropout = nn.Dropout(0.3)
        self.fc2 = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.norm(self.conv1(x))))
        x = functional.relu(self.conv2(x), inplace=True).amax((2, 3))
        x = x.view(-1, 8)
        return self.fc2(self.dropout(functional.relu(self.fc1(x))))


class BigNet(Net):
    """A teacher whose argument has another name."""

    def __init__(self) -> None:
        super().__init__(width=6, seed=9)

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image)


def pictures(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(8)
    return [
        {"img": torch.randn(4, 1, 8, 8, generator=generator), "label": torch.randint(3, (4,), generator=generator)}
        for _ in range(count)
    ]


def without_dropout() -> Net:
    net = Net()
    net.dropout.p = 0.0
    return net


def unsplit(data: list[dict[str, Tensor]], teacher: nn.Module | None, kd_ratio: float) -> dict[str, Tensor]:
    model = without_dropout().train()
    optimizer = OPTIMIZER.build(model.parameters())
    loss = DistillationLoss(kd_ratio=kd_ratio)
    for batch in data:
        with torch.no_grad():
            teacher_logits = teacher.eval()(batch["img"]) if teacher else None
        loss.from_logits(model(batch["img"]), teacher_logits, batch["label"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_code_between_the_blocks_runs_once(cut: int, tmp_path: Path) -> None:
    federation = Federation(tmp_path, build=without_dropout, task="classification", blocks=NET_BLOCKS)
    federation.turn(0, cut, pictures())
    expected = unsplit(pictures(), None, 0.0)
    different = [name for name, tensor in federation.weights().items() if not torch.equal(tensor, expected[name])]
    assert not different


@pytest.mark.parametrize("teacher_cut", [None, 2, 4])
def test_a_teacher_of_images(teacher_cut: int | None, tmp_path: Path) -> None:
    federation = Federation(
        tmp_path,
        build=without_dropout,
        task="classification",
        blocks=NET_BLOCKS,
        teacher=BigNet(),
        teacher_blocks=NET_BLOCKS,
        teacher_cut=teacher_cut,
        teacher_on_device=BigNet,
    )
    outcome, _ = federation.turn(0, 2, pictures())
    assert outcome.kl_divergence > 0
    expected = unsplit(pictures(), BigNet(), 0.5)
    different = [name for name, tensor in federation.weights().items() if not torch.equal(tensor, expected[name])]
    assert not different
    again, _ = federation.turn(0, 2, pictures())
    assert again.handover_bytes < outcome.handover_bytes, "the teacher's part travels once"


def test_a_device_without_the_teachers_code(tmp_path: Path) -> None:
    federation = Federation(
        tmp_path,
        build=without_dropout,
        task="classification",
        blocks=NET_BLOCKS,
        teacher=BigNet(),
        teacher_blocks=NET_BLOCKS,
    )
    before = federation.weights()
    with pytest.raises(SplitKDError, match="`teacher_cut` is 1 on the edge and `teacher` is None here"):
        federation.turn(0, 2, pictures())
    assert all(torch.equal(tensor, before[name]) for name, tensor in federation.weights().items())


def test_weights_between_the_blocks_must_be_named(tmp_path: Path) -> None:
    blocks = tuple(name for name in NET_BLOCKS if name != "norm")
    federation = Federation(tmp_path, build=Net, task="classification", blocks=blocks)
    with pytest.raises(UncuttableModelError, match=r"Name in `blocks` every module with weights"):
        federation.turn(0, 1, pictures())


def test_data_of_another_shape_are_the_devices_fault(tmp_path: Path) -> None:
    federation = Federation(tmp_path, build=Net, task="classification", blocks=NET_BLOCKS)
    wrong = [{"img": torch.randn(4, 1, 8), "label": torch.zeros(4, dtype=torch.int64)}]
    with pytest.raises(SplitKDError, match=r"A batch of the shapes .*does not go through the student"):
        federation.turn(0, 1, wrong)
    federation.turn(1, 1, pictures())


def test_a_shape_that_would_fill_the_memory(tmp_path: Path) -> None:
    federation = Federation(tmp_path, build=Net, task="classification", blocks=NET_BLOCKS)
    lie = {"data_shape": torch.tensor([1 << 20, 1, 1 << 10, 1 << 10]), "data_zero": torch.zeros(())}
    with pytest.raises(ConfigError, match="expected the sizes of a batch of at most"):
        federation.student.check_cut(1, lie)
    narrow = {"data_shape": torch.tensor([4, 1, 1, 1]), "data_zero": torch.zeros(())}
    with pytest.raises(ProtocolError, match="do not go through the student"):
        federation.student.check_cut(1, narrow)


@pytest.mark.parametrize(
    "batches",
    [
        [(batch["img"], batch["label"]) for batch in pictures()],
        [[batch["img"], batch["label"]] for batch in pictures()],
        [{"x": batch["img"], "labels": batch["label"]} for batch in pictures()],
        pictures(),
    ],
)
def test_batches_as_loaders_give_them(batches: list[Any], tmp_path: Path) -> None:
    assert DeviceData(batches).num_examples == 12
    federation = Federation(tmp_path, build=without_dropout, task="classification", blocks=NET_BLOCKS)
    outcome, _ = federation.turn(0, 2, batches)
    assert outcome.num_examples == 12
    assert close(federation.weights(), unsplit(pictures(), None, 0.0))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": 4}, 10),
        ({"batch_size": 4, "drop_last": True}, 8),
        ({"batch_size": 4, "sampler": range(6)}, 6),
        ({"batch_sampler": [[0, 1], [2]]}, 10),  # of its own, which does not tell: the whole data set
    ],
)
def test_the_samples_of_a_loader_are_those_of_one_pass(options: dict[str, Any], expected: int) -> None:
    dataset = TensorDataset(torch.zeros(10, 3), torch.zeros(10, dtype=torch.int64))
    assert DeviceData(DataLoader(dataset, **options)).num_examples == expected


class Residual(nn.Module):
    """In the shape of a ResNet: a normalised stem, stages with shortcuts inside, and a pooled classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1, self.layer2, self.layer3 = _Stage(), _Stage(), _Stage()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 2)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


class _Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.bn(self.conv(x)))


class Words(nn.Module):
    """A text model of one's own, whose argument happens to have the name that transformers use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embedding = nn.Embedding(40, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embedding(input_ids) * attention_mask.unsqueeze(-1))
        return self.fc(hidden[:, -1])


@pytest.mark.parametrize(
    ("build", "blocks", "cut", "data"),
    [
        (Residual, ("layer1", "layer2", "layer3"), 1, [{"x": b["img"], "labels": b["label"]} for b in pictures()]),
        (Residual, ("layer1", "layer2", "layer3"), 2, [{"x": b["img"], "labels": b["label"]} for b in pictures()]),
        (Words, ("embedding", "lstm", "fc"), 1, sentences(classes=4)),
    ],
)
def test_models_of_other_shapes(build: Any, blocks: tuple[str, ...], cut: int, data: list[Any], tmp_path: Path) -> None:
    federation = Federation(tmp_path, build=build, task="classification", blocks=blocks)
    federation.turn(0, cut, data)
    assert close(federation.weights(), unsplit_labels(build, data, 1))


def vit(hidden_size: int = 16) -> nn.Module:
    torch.manual_seed(hidden_size)
    sizes = {"hidden_size": hidden_size, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    config = ViTConfig(**sizes, image_size=8, patch_size=4, num_channels=1, num_labels=3)
    return ViTForImageClassification(config)


@pytest.mark.parametrize("cut", [1, 2])
def test_a_vision_transformer_and_its_teacher_need_no_blocks(cut: int, tmp_path: Path) -> None:
    data = [{"pixel_values": batch["img"], "labels": batch["label"]} for batch in pictures()]
    federation = Federation(tmp_path / "labels", build=vit, task="classification")
    federation.turn(0, cut, data)
    assert close(federation.weights(), unsplit_labels(vit, data, 1))
    taught = Federation(
        tmp_path / "taught", build=vit, task="classification", teacher=vit(24), teacher_on_device=lambda: vit(24)
    )
    outcome, _ = taught.turn(0, cut, data)
    assert outcome.kl_divergence > 0


def test_a_block_that_returns_more_than_a_tensor(tmp_path: Path) -> None:
    federation = Federation(tmp_path, build=Words, task="classification", blocks=("embedding", "lstm", "fc"))
    with pytest.raises(UncuttableModelError, match=r"LSTM|tuple"):
        federation.turn(0, 2, sentences(classes=4))


@pytest.mark.parametrize("teacher_cut", [1, 2])
def test_a_language_teacher_may_run_further_on_the_device(teacher_cut: int, tmp_path: Path) -> None:
    weights = []
    for name, cut in (("embedding", 0), ("blocks", teacher_cut)):
        federation = Federation(
            tmp_path / name,
            teacher=llama(hidden_size=24),
            teacher_cut=cut,
            teacher_on_device=lambda: llama(hidden_size=24),
        )
        federation.turn(0, 2, sentences())
        weights.append(federation.weights())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_teacher_that_knows_fewer_arguments_than_the_student(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(3)
    sizes = {"vocab_size": 40, "dim": 16, "hidden_dim": 24, "n_heads": 2, "n_layers": 2, "num_labels": 4}
    teacher = DistilBertForSequenceClassification(DistilBertConfig(**sizes))
    data = [{**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])} for batch in sentences(classes=4)]
    for teacher_cut in (0, 1):
        federation = Federation(
            tmp_path / str(teacher_cut),
            build=bert,
            task="classification",
            teacher=teacher,
            teacher_cut=teacher_cut,
            teacher_on_device=lambda: DistilBertForSequenceClassification(DistilBertConfig(**sizes)),
        )
        outcome, _ = federation.turn(0, 1, data)
        assert outcome.kl_divergence > 0
