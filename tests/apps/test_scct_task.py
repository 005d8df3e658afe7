"""The question answering app's models, their cache, its data and its score."""

from __future__ import annotations

import importlib
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, RobertaForMaskedLM, RobertaModel

from flwr_splitkd.data import IGNORED_LABEL, Document
from flwr_splitkd.data.questions import EncodingConfig, Question, QuestionConfig
from flwr_splitkd.errors import ConfigError, DataError
from import_graph import ROOT

DOCUMENTS = [Document(module="m", text="wait for the future to complete, with a timeout. " * 40)]
QUESTIONS = [
    Question(
        context=f"wait(fs, timeout={number})\nrun(step, limit=9)",
        question=f"What is the default of {name}?",
        answer=answer,
        module="m",
    )
    for number in range(4)
    for name, answer in (("timeout", str(number)), ("limit", "9"))
]


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(ROOT / "apps" / "scct")
    return importlib.import_module("scct_app.models")


@pytest.fixture
def pretraining(models: types.ModuleType) -> types.ModuleType:
    return importlib.import_module("scct_app.pretraining")


@pytest.fixture
def task(models: types.ModuleType) -> types.ModuleType:
    return importlib.import_module("scct_app.task")


def small(models: types.ModuleType, monkeypatch: pytest.MonkeyPatch, **changes: object) -> list[tuple[str, int]]:
    """Train on little text in few steps; returns where the steps will be noted."""
    recipe = importlib.import_module("scct_app.pretraining").Recipe
    settings = {"steps": 2, "batch_size": 3, "num_threads": 1, **changes}
    monkeypatch.setattr(models, "SLM_RECIPE", recipe(**settings))
    monkeypatch.setattr(models, "LLM_RECIPE", recipe(**settings))
    monkeypatch.setattr(models, "public_text", lambda: (DOCUMENTS, QUESTIONS))
    return []


@pytest.mark.parametrize("build", ["build_slm", "build_llm"])
def test_built_in_models_are_trained_once(
    models: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: str
) -> None:
    steps = small(models, monkeypatch)

    def note(name: str, step: int, total: int, loss: float) -> None:
        assert total == 2 and math.isfinite(loss)
        steps.append((name, step))

    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = getattr(models, build)(note)
    name = "SLM" if build == "build_slm" else "LLM"
    assert steps == [(name, 1), (name, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    second = getattr(models, build)(note)
    assert len(steps) == 2
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    small(models, monkeypatch, seed=1)
    getattr(models, build)(note)
    assert len(steps) == 4


def test_training_is_deterministic(models: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small(models, monkeypatch)
    states = []
    for name in ("a", "b"):
        monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / name))
        states.append({**models.build_slm().state_dict(), **models.build_llm().state_dict()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_encoder_gives_what_the_chain_needs(models: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    small(models, monkeypatch)
    slm = models.build_slm()
    out = slm(input_ids=torch.randint(3, 200, (2, 250))).last_hidden_state
    assert out.shape == (2, 250, 128)
    assert len(slm.encoder.layer) == 6


def test_heads_that_look_things_up_repeat_what_was_before(models: types.ModuleType) -> None:
    """Untrained, the model continues a repetition of arbitrary tokens, which it cannot know otherwise."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(models.llm_config(models.load_llm_tokenizer()))
    once = torch.randint(3, 2048, (4, 32))
    twice = torch.cat([once, once], dim=1)

    def hits() -> float:
        with torch.inference_mode():
            guesses = model(input_ids=twice).logits[:, 32:-1].argmax(-1)
        return (guesses == twice[:, 33:]).float().mean().item()

    assert hits() < 0.05
    models.look_up_heads(model)
    assert hits() > 0.4


def test_the_llm_learns_from_answers_and_a_little_from_the_rest(
    models: types.ModuleType, pretraining: types.ModuleType
) -> None:
    tokenizer = models.load_llm_tokenizer()
    recipe = pretraining.Recipe(steps=1, batch_size=4)
    batch = next(pretraining.reading_batches(recipe, tokenizer, DOCUMENTS, QUESTIONS))
    for row in range(2):
        answers = tokenizer.decode(batch["input_ids"][row][batch["answers"][row]])
        assert answers in {f"{number}<|eos|>9<|eos|>" for number in range(4)}
    for row in (2, 3):
        answer = batch["input_ids"][row][batch["answers"][row]]
        assert torch.equal(batch["input_ids"][row][: len(answer) - 1], answer[:-1])
    assert torch.equal(batch["labels"] == IGNORED_LABEL, batch["attention_mask"] == 0)
    assert batch["input_ids"].shape[1] <= recipe.sequence_length


def test_masked_tokens_are_the_only_labels(models: types.ModuleType, pretraining: types.ModuleType) -> None:
    tokenizer = models.load_slm_tokenizer()
    recipe = pretraining.Recipe(steps=1, batch_size=16)
    batch = next(pretraining.masked_batches(recipe, tokenizer, DOCUMENTS, QUESTIONS))
    labelled = batch["labels"] != IGNORED_LABEL
    share = labelled.sum() / batch["attention_mask"].sum()
    assert 0.08 < share < 0.22
    changed = (batch["input_ids"] == tokenizer.bos_token_id) & labelled
    assert 0.3 < changed.sum() / labelled.sum() < 0.9
    loss = pretraining.masked_loss(RobertaForMaskedLM(models.slm_config(tokenizer, num_hidden_layers=1)), batch)
    assert 0 < loss.item() < 20


def test_named_models_are_read_from_their_folder(
    models: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small(models, monkeypatch)
    models.build_slm().save_pretrained(tmp_path / "slm")
    models.build_llm().save_pretrained(tmp_path / "llm")
    assert type(models.slm_builder(str(tmp_path / "slm"))()).__name__ == "RobertaModel"
    assert type(models.llm_builder(str(tmp_path / "llm"), dtype=torch.float16)()).__name__ == "LlamaForCausalLM"
    assert isinstance(models.slm_builder()(), RobertaModel) and isinstance(models.llm_builder()(), LlamaForCausalLM)
    models.load_slm_tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert len(models.load_llm_tokenizer(str(tmp_path / "tokenizer"))) == len(models.load_llm_tokenizer()) == 2048


def test_batches_of_a_device(task: types.ModuleType) -> None:
    loader = task.load_partition(0, 3, batch_size=4, max_batches=2, seed=1)
    first, second = [batch["labels"].tolist() for batch in loader], [batch["labels"].tolist() for batch in loader]
    assert len(first) == len(second) == 2 and first != second
    again = task.load_partition(0, 3, batch_size=4, max_batches=2, seed=1)
    assert [batch["labels"].tolist() for batch in again] == first
    with pytest.raises(DataError, match="tokens in `input_ids`"):
        task.load_partition(0, 3, encoding=EncodingConfig(max_positions=20))


def test_heldout_questions_in_the_order_of_their_references(task: types.ModuleType) -> None:
    loader = task.heldout_loader(max_questions=40, batch_size=16, config=QuestionConfig(heldout=("json",)))
    tokenizer = task.load_llm_tokenizer()
    answers = [tokenizer.decode(row[row != IGNORED_LABEL][:-1]) for batch in loader for row in batch["labels"]]
    assert answers == loader.dataset.references
    assert len(answers) == 40


def test_score(task: types.ModuleType) -> None:
    pytest.importorskip("torchmetrics")
    scores = task.score(["the Path", "q b", "x"], ["path.", "b c", "y"])
    assert scores == {"f1": pytest.approx(50.0), "exact_match": pytest.approx(100 / 3)}
    table = task.baselines(QUESTIONS, QUESTIONS)
    assert table["majority answer"] == {"f1": 50.0, "exact_match": 50.0}
    assert table["copy the question"]["exact_match"] == 0.0


def test_score_refuses_what_it_cannot_score(task: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, wanted in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(DataError, match=f"{len(given)} predictions for {len(wanted)} references"):
            task.score(given, wanted)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.text", None)
    with pytest.raises(ConfigError, match=r"pip install 'flwr_splitkd\[metrics\]'"):
        task.score(["a"], ["a"])
