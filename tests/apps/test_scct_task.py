"""The question answering app's models by name, and its data."""

from __future__ import annotations

import importlib
import types
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, ModernBertModel

from flwr_splitkd.data import IGNORED_LABEL
from flwr_splitkd.data.questions import EncodingConfig, QuestionConfig
from flwr_splitkd.errors import DataError
from flwr_splitkd.small_chain.models import llm_config, load_tokenizer, slm_config
from import_graph import ROOT


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(ROOT / "apps" / "scct")
    return importlib.import_module("scct_app.models")


@pytest.fixture
def task(models: types.ModuleType) -> types.ModuleType:
    return importlib.import_module("scct_app.task")


def test_named_models_are_read_from_their_folder(
    models: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(models, "models_folder", lambda: tmp_path)
    tokenizer = load_tokenizer()
    ModernBertModel(slm_config(tokenizer, num_hidden_layers=1)).save_pretrained(tmp_path / "slm")
    LlamaForCausalLM(llm_config(tokenizer, num_hidden_layers=1)).save_pretrained(tmp_path / "llm")
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
