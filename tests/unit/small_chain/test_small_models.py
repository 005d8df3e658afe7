"""The small chain's models: how they are trained, once, and what they learn from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from flwr_splitkd.data import IGNORED_LABEL
from flwr_splitkd.data.questions import Question
from flwr_splitkd.models import PretrainedModel
from flwr_splitkd.small_chain import exercises, models, pretraining
from flwr_splitkd.small_chain.pretraining import Recipe
from little_data import few_questions

QUESTIONS = few_questions()


def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **changes: object) -> models.Recipes:
    """Train on little text in few steps."""
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "public_questions", lambda: QUESTIONS)
    recipe = Recipe(**{"steps": 2, "batch_size": 3, "num_threads": 1, **changes})  # type: ignore[arg-type]
    return models.Recipes(slm=recipe, llm=recipe, both=recipe)


def test_the_models_are_trained_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipes, steps = small(monkeypatch, tmp_path), []

    def note(name: str, step: int, total: int, loss: float) -> None:
        assert total == 2 and math.isfinite(loss)
        steps.append((name, step))

    state, threads = torch.get_rng_state(), torch.get_num_threads()
    folder = models.models_folder(recipes, note)
    assert steps == [(name, step) for name in ("SLM", "LLM", "SLM and LLM") for step in (1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    # A start that finds the models reads no questions.
    monkeypatch.setattr(models, "public_questions", lambda: pytest.fail("the questions were read"))
    assert models.models_folder(recipes, note) == folder and len(steps) == 6
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert models.models_folder(small(monkeypatch, tmp_path, seed=1), note) != folder and len(steps) == 12


def test_training_is_deterministic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    states = []
    for name in ("a", "b"):
        folder = models.models_folder(small(monkeypatch, tmp_path / name))
        slm, llm = PretrainedModel(folder / "slm", task="encoder")(), PretrainedModel(folder / "llm")()
        states.append({**slm.state_dict(), **llm.state_dict()})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_encoder_gives_what_the_chain_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = models.models_folder(small(monkeypatch, tmp_path))
    slm = PretrainedModel(folder / "slm", task="encoder")()
    out = slm(input_ids=torch.randint(3, 200, (2, 250))).last_hidden_state
    assert out.shape == (2, 250, 128)
    assert len(slm.layers) == 4


def test_shorter_recipes() -> None:
    short = models.RECIPES.shortened(0.1)
    assert (short.slm.steps, short.llm.steps, short.both.steps) == (120, 100, 120)
    assert short.slm.learning_rate == models.RECIPES.slm.learning_rate
    assert models.RECIPES.shortened(1e-9).llm.steps == 1


def test_exercises_know_where_their_answers_are() -> None:
    tokenizer = models.load_tokenizer()
    twice = Question(context="f(a=1, b=1)", question="What is the default of b?", answer="1", module="m")
    found = exercises.exercises(tokenizer, [twice, *QUESTIONS], 64)
    assert {tokenizer.decode(one.answer) for one in found} == {"0", "1", "2", "3", "9"}
    spans = {tuple(tokenizer.decode(one.ids[a : b + 1]) for a, b in one.spans) for one in found}
    assert ("1", "1") in spans
    assert [len(one.ids) for one in found] == sorted(len(one.ids) for one in found)
    assert not exercises.exercises(tokenizer, QUESTIONS, 5)


def test_the_encoder_learns_where_answers_begin_and_end() -> None:
    tokenizer = models.load_tokenizer()
    known = exercises.exercises(tokenizer, QUESTIONS, 64)
    batches = exercises.finding_batches(known, tokenizer, 6, 0)
    for batch in (next(batches) for _ in range(20)):
        # One place in every row: each of these answers stands once in its context, and a list's value always does.
        assert (batch["last"].long().cumsum(-1) <= batch["first"].long().cumsum(-1)).all()
        assert batch["first"].any(-1).all() and (batch["first"].sum(-1) == batch["last"].sum(-1)).all()
        assert not (batch["first"] & (batch["attention_mask"] == 0)).any()
        words = (batch["labels"] != IGNORED_LABEL) & (batch["labels"] != tokenizer.pad_token_id)
        assert torch.equal(batch["labels"][words], batch["input_ids"][words])
        assert words[batch["first"]].all() and words[batch["last"]].all()
    torch.manual_seed(0)
    finder = pretraining.Finder(models.slm_config(tokenizer, num_hidden_layers=2))
    assert 0 < finder(batch).item() < 40


def test_the_llm_learns_to_say_what_is_marked() -> None:
    tokenizer = models.load_tokenizer()
    known = exercises.exercises(tokenizer, QUESTIONS, 64)
    batches = exercises.saying_batches(known, tokenizer, 4, 0)
    sizes = set()
    for batch in (next(batches) for _ in range(10)):
        sizes.add(len(batch["labels"]))
        for ids, labels, marks in zip(batch["input_ids"], batch["labels"], batch["marks"], strict=True):
            *answer, end = labels[labels != IGNORED_LABEL].tolist()
            assert ids[marks[:, 2] > 0].tolist() == answer and end == tokenizer.eos_token_id
            assert (marks[:, 0] > 0).sum() == (marks[:, 1] > 0).sum() == 1
    assert sizes == {4, 8}
    torch.manual_seed(0)
    sayer = pretraining.Sayer(models.llm_config(tokenizer, num_hidden_layers=1))
    sayer(batch).backward()
    assert sayer.marks.grad is not None and sayer.marks.grad.abs().sum() > 0
