"""The question answering app's models, their cache, its data and its score."""

from __future__ import annotations

import importlib
import math
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, ModernBertModel

from flwr_splitkd.data import IGNORED_LABEL
from flwr_splitkd.data.questions import EncodingConfig, Question, QuestionConfig
from flwr_splitkd.errors import ConfigError, DataError
from import_graph import ROOT

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
def exercises(models: types.ModuleType) -> types.ModuleType:
    return importlib.import_module("scct_app.exercises")


@pytest.fixture
def task(models: types.ModuleType) -> types.ModuleType:
    return importlib.import_module("scct_app.task")


def small(models: types.ModuleType, monkeypatch: pytest.MonkeyPatch, **changes: object) -> list[tuple[str, int]]:
    """Train on little text in few steps; returns where the steps will be noted."""
    recipe = importlib.import_module("scct_app.pretraining").Recipe
    settings = {"steps": 2, "batch_size": 3, "num_threads": 1, **changes}
    monkeypatch.setattr(models, "SLM_RECIPE", recipe(**settings))
    monkeypatch.setattr(models, "LLM_RECIPE", recipe(**settings))
    monkeypatch.setattr(models, "BOTH_RECIPE", recipe(**settings))
    monkeypatch.setattr(models, "public_questions", lambda: QUESTIONS)
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
    assert steps == [(name, step) for name in ("SLM", "LLM", "SLM and LLM") for step in (1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    # A start that finds the model reads no questions.
    monkeypatch.setattr(models, "public_questions", lambda: pytest.fail("the questions were read"))
    second = getattr(models, build)(note)
    assert len(steps) == 6
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    small(models, monkeypatch, seed=1)
    getattr(models, build)(note)
    assert len(steps) == 12


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
    assert len(slm.layers) == 4


def test_exercises_know_where_their_answers_are(models: types.ModuleType, exercises: types.ModuleType) -> None:
    tokenizer = models.load_slm_tokenizer()
    twice = Question(context="f(a=1, b=1)", question="What is the default of b?", answer="1", module="m")
    found = exercises.exercises(tokenizer, [twice, *QUESTIONS], 64)
    assert {tokenizer.decode(one.answer) for one in found} == {"0", "1", "2", "3", "9"}
    spans = {tuple(tokenizer.decode(one.ids[a : b + 1]) for a, b in one.spans) for one in found}
    assert ("1", "1") in spans
    assert [len(one.ids) for one in found] == sorted(len(one.ids) for one in found)
    assert not exercises.exercises(tokenizer, QUESTIONS, 5)


def test_the_encoder_learns_where_answers_begin_and_end(
    models: types.ModuleType, pretraining: types.ModuleType, exercises: types.ModuleType
) -> None:
    tokenizer = models.load_slm_tokenizer()
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


def test_the_llm_learns_to_say_what_is_marked(
    models: types.ModuleType, pretraining: types.ModuleType, exercises: types.ModuleType
) -> None:
    tokenizer = models.load_llm_tokenizer()
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


def test_named_models_are_read_from_their_folder(
    models: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small(models, monkeypatch)
    models.build_slm().save_pretrained(tmp_path / "slm")
    models.build_llm().save_pretrained(tmp_path / "llm")
    assert type(models.slm_builder(str(tmp_path / "slm"))()).__name__ == "ModernBertModel"
    assert type(models.llm_builder(str(tmp_path / "llm"), dtype=torch.float16)()).__name__ == "LlamaForCausalLM"
    assert isinstance(models.slm_builder()(), ModernBertModel) and isinstance(models.llm_builder()(), LlamaForCausalLM)
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
    several = task.score(["the Path", "q b", "x"], [["way", "path."], "b c", ("y", "x")])
    assert several == {"f1": pytest.approx(250 / 3), "exact_match": pytest.approx(200 / 3)}
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


def test_answers_are_rated_by_every_right_one(task: types.ModuleType) -> None:
    """A batch holds the first answer alone; what a question's others are, its loader knows."""
    pytest.importorskip("torchmetrics")
    tokenizer = task.load_llm_tokenizer()
    questions = [
        Question(
            context=f"It is {word} and late.",
            question="What is it?",
            answer=word,
            others=(f"{word} and late",),
            module="m",
        )
        for word in ("red", "a long word", "blue")
    ]
    dataset = task.encode_questions(questions, tokenizer, tokenizer, EncodingConfig())
    loader = task.make_loader(dataset, 2, collate=dataset.collate)
    rate = task.scorer(tokenizer, loader)

    def rated(*said: str, batch: int) -> float:
        return float(
            rate([tokenizer(text, add_special_tokens=False)["input_ids"] for text in said], list(loader)[batch])["f1"]
        )

    assert rated("red", "a long word and late", batch=0) == 100.0 and rated("blue and late", batch=1) == 100.0
    assert rated("red", "red and late", batch=0) < 100.0


def test_baselines_answer_the_questions_that_are_asked(task: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchmetrics")
    config = importlib.import_module("scct_app.config").AppConfig(heldout_questions=40, max_positions=60)
    asked = []
    monkeypatch.setattr(task, "baselines", lambda known, questions: asked.extend(questions) or {})
    task.heldout_baselines(config)
    assert len(asked) == 40 and tuple(asked) == task.questions_of(task.evaluation_batches(config))
    tokenizer = task.load_slm_tokenizer()
    prompts = [importlib.import_module("flwr_splitkd.data.questions").reading_prompt(question) for question in asked]
    assert max(map(len, tokenizer(prompts)["input_ids"])) <= 60
