from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models import PretrainedModel, SerialAdapterConfig
from flwr_splitkd.tiers.cloud import CloudSetup, TaskSettings, build_llm, open_cloud
from flwr_splitkd.tiers.cloud.placement import check_one_process, device_words
from tiny_llms import tiny_llm


class Movable(nn.Module):
    """Notes where it is sent, since there may be no GPU here."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.sent_to: str | None = None
        for name, value in attributes.items():
            setattr(self, name, value)

    def to(self, device: torch.device) -> Movable:  # type: ignore[override]
        self.sent_to = str(device)
        return self


class Builder:
    def __init__(self, model: Movable, **options: Any) -> None:
        self.model, self.options = model, options

    def __call__(self) -> nn.Module:
        return self.model


def sent(model: Movable, device: str | None = None, **options: Any) -> str | None:
    build_llm(Builder(model, **options), device)
    return model.sent_to


def test_one_piece_on_the_cpu_goes_to_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert sent(Movable()) == "cuda"
    assert sent(Movable(), dtype="bfloat16") == "cuda"
    assert sent(Movable(), "cpu") == "cpu"
    plain = Movable()
    build_llm(lambda: plain)
    assert plain.sent_to == "cuda"


def test_what_is_placed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for options in ({"device_map": "auto"}, {"quantization_config": object()}):
        assert sent(Movable(), **options) is None
    assert sent(Movable(hf_device_map={"": 0})) is None and sent(Movable(is_quantized=True)) is None
    elsewhere = Movable()
    elsewhere.weight = nn.Parameter(torch.zeros(1, device="meta"))
    assert sent(elsewhere) is None


def test_without_a_gpu_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sent(Movable()) is None


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(
        ConfigError, match=r"`compute_device` is 'nowhere', and the language model cannot be moved there \("
    ):
        build_llm(tiny_llm, "nowhere")


def test_words() -> None:
    model = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1, device="meta")])
    assert device_words(model) == "cpu, meta"


def test_one_process() -> None:
    with pytest.raises(ConfigError, match=r"`tp_plan` is 'auto'; expected none: .*Set device_map = \"auto\""):
        check_one_process(PretrainedModel("x", tp_plan="auto"), {})
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 4 .*; expected 1 or none: .* without torchrun"):
        check_one_process(PretrainedModel("x"), {"WORLD_SIZE": "4"})
    for environment in ({}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}):
        check_one_process(PretrainedModel("x", device_map="auto"), environment)
    check_one_process(tiny_llm, {})


def setup(folder: Path) -> CloudSetup:
    return CloudSetup(
        llm=partial(tiny_llm, "llama"),
        tasks={"qa": TaskSettings(slm_width=24, peft=SerialAdapterConfig(bottleneck=4))},
        edges={"north": b"n" * 32},
        state_folder=folder,
        compute_device="cpu",
    )


def test_the_cloud_says_where_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="flwr_splitkd"):
        open_cloud(setup(tmp_path)).close()
    assert "The language model is on cpu" in caplog.text


def test_a_cloud_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2"):
        open_cloud(setup(tmp_path))
    assert not any(tmp_path.iterdir())
