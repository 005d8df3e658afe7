"""The small chain's training: what trains, on what, and that it repeats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, ModernBertModel

pytest.importorskip("torchmetrics")

from flwr_splitkd.data.questions import QuestionConfig
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.small_chain.curve import Curve, Training
from flwr_splitkd.small_chain.models import llm_config, load_tokenizer, slm_config
from flwr_splitkd.small_chain.training import TrainingSettings, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained models of one and two layers, and few questions."""
    path, tokenizer = tmp_path_factory.mktemp("small"), load_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ModernBertModel(slm_config(tokenizer, num_hidden_layers=2)).save_pretrained(path / "slm")
        LlamaForCausalLM(llm_config(tokenizer, num_hidden_layers=1)).save_pretrained(path / "llm")
    rows = [
        {
            "context": f"wait(fs, timeout={n})",
            "question": "What is the default of timeout?",
            "answer": str(n),
            "title": f"m{n % 6}",
        }
        for n in range(60)
    ]
    (path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def curve(folder: Path, training: Training = "chain", seed: int = 0, **changes: object) -> Curve:
    given = {"devices": 2, "rounds": 2, "epochs": 2, "iterations": 3, "batch_size": 4, "heldout": 4, **changes}
    data = QuestionConfig(source=str(folder / "questions.jsonl"))
    return train(training, folder, TrainingSettings(data=data, **given), seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("training", ["chain", "cloud-only"])
def test_learns_and_repeats(folder: Path, training: Training) -> None:
    state = torch.get_rng_state()
    one = curve(folder, training)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(one.loss) == 4 and len(one.heldout_loss) == len(one.f1) == len(one.exact_match) == 3
    assert one.loss[-1] < one.loss[0] and one.heldout_loss[-1] < one.heldout_loss[0]
    assert curve(folder, training) == one
    assert curve(folder, training, seed=1).loss != one.loss


def test_the_encoders_train(folder: Path) -> None:
    """Another rate of theirs is another training; the cloud alone has none of them."""
    assert curve(folder, slm_learning_rate=1e-12).loss[1:] != curve(folder).loss[1:]
    assert curve(folder, "cloud-only", slm_learning_rate=1e-12) == curve(folder, "cloud-only")


def test_progress_is_told(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    data = QuestionConfig(source=str(folder / "questions.jsonl"))
    settings = TrainingSettings(devices=1, rounds=1, epochs=1, iterations=2, batch_size=2, heldout=2, data=data)
    train("cloud-only", folder, settings, on_progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_numbers_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError, match="`rounds` is 0"):
        TrainingSettings(rounds=0)
    with pytest.raises(ConfigError, match="`heldout` is 2"):
        TrainingSettings(devices=3, heldout=2)
