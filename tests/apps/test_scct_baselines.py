"""The question answering app's baselines: the module from tokens in one process, and encoders alone on their devices."""

from __future__ import annotations

import importlib
import json
import logging
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, MetricRecord, RecordDict
from transformers import LlamaConfig, LlamaForCausalLM, ModernBertConfig, ModernBertModel

from flower_harness import federation, newest
from flwr_splitkd.data.questions import Question, QuestionConfig, split_questions
from flwr_splitkd.data.questions.score import score
from flwr_splitkd.errors import ConfigError, DataError
from flwr_splitkd.store import RunFolder
from import_graph import ROOT
from little_data import little_questions

APP = ROOT / "apps" / "scct"
SMALL_CHAIN = ROOT / "flwr_splitkd" / "small_chain"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An encoder and a language model without training, for the app's own tokenizer, and little data."""
    folder = tmp_path_factory.mktemp("models")
    tokens = len(json.loads((SMALL_CHAIN / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"])
    sizes = {"vocab_size": tokens + 16, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    slm = ModernBertConfig(num_hidden_layers=2, cls_token_id=1, sep_token_id=2, **sizes, **special)
    ModernBertModel(slm).save_pretrained(folder / "slm")
    llm = LlamaConfig(num_hidden_layers=2, num_key_value_heads=2, max_position_embeddings=512, **sizes, **special)
    LlamaForCausalLM(llm).save_pretrained(folder / "llm")
    return {"slm": str(folder / "slm"), "llm": str(folder / "llm"), "data": little_questions(folder)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all these tests: the questions are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, cache: Path) -> types.ModuleType:
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(cache))
    monkeypatch.syspath_prepend(APP)
    return importlib.import_module("scct_app")


def config_of(models: dict[str, str], **changes: Any) -> Any:
    config = importlib.import_module("scct_app.config").AppConfig(
        training="cloud-only",
        num_server_rounds=2,
        epochs=1,
        iterations=3,
        batch_size=2,
        min_available_nodes=2,
        heldout_questions=4,
        max_answer_tokens=8,
        **models,
    )
    return replace(config, **changes)


def test_cloud_only(app: types.ModuleType, models: dict[str, str], tmp_path: Path) -> None:
    train = importlib.import_module("scct_app.cloud_only").train_cloud_only
    results = [train(config_of(models, method=method), RunFolder(tmp_path / method)) for method in ("lora",) * 2]
    for result in results:
        assert [(one.server_round, one.num_iterations, one.module_step) for one in result.epochs] == [
            (1, 3, 3),
            (2, 3, 6),
        ]
        evaluations = result.evaluate_metrics_clientapp
        assert sorted(evaluations) == [0, 1, 2]
        # Untrained models know nothing, and the module's first steps can only teach it which tokens are frequent.
        assert evaluations[2]["eval-loss"] < evaluations[0]["eval-loss"]
    assert [one.loss for one in results[0].epochs] == [one.loss for one in results[1].epochs]
    lines = [json.loads(line) for line in (tmp_path / "lora" / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines[:5]] == ["evaluation", "epoch", "evaluation", "epoch", "evaluation"]


def test_every_round_has_its_own_order(app: types.ModuleType, models: dict[str, str]) -> None:
    task = importlib.import_module("scct_app.task")
    config = config_of(models)

    def first(server_round: int) -> list[int]:
        batch = next(iter(task.round_batches(config, 0, 2, server_round)))
        return batch["labels"].flatten().tolist() + batch["input_ids"].flatten().tolist()

    assert first(1) == first(1)
    assert len({tuple(first(server_round)) for server_round in (1, 2, 3)}) == 3


def test_baselines_have_the_chains_batches(app: types.ModuleType, models: dict[str, str]) -> None:
    """The device alone draws questions, the chain batches of tokens: it is the same draw."""
    task = importlib.import_module("scct_app.task")
    data = importlib.import_module("flwr_splitkd.data")
    config = config_of(models)
    loader = task.round_batches(config, 1, 2, 2)
    drawn = data.make_loader(
        task.questions_of(loader), config.batch_size, shuffle=True, seed=task.round_seed(config, 2), collate=list
    )
    tokenizer = importlib.import_module("scct_app.models").load_llm_tokenizer()
    for batch, questions in zip(loader, drawn, strict=True):
        said = [[t for t in row if t >= 0] for row in batch["labels"].tolist()]
        assert [text.strip() for text in tokenizer.batch_decode(said, skip_special_tokens=True)] == [
            question.answer for question in questions
        ]


def test_pointing_at_the_answer_says_it(app: types.ModuleType) -> None:
    module = importlib.import_module("scct_app.device_only")
    tokenizer = importlib.import_module("scct_app.models").load_slm_tokenizer()
    questions = split_questions(QuestionConfig(), 1).heldout[::40]
    places = module.Places(questions, tokenizer)
    first = torch.nn.functional.one_hot(places.first, places.inputs["input_ids"].shape[1]).float()
    last = torch.nn.functional.one_hot(places.last, places.inputs["input_ids"].shape[1]).float()
    said = places.answers(first, last, 48)
    # A token may begin before the answer does or end behind it; what the score sees is the same. Which questions there are
    # depends on Python's own documentation, and in some versions one answer lies behind the encoder's window.
    assert score(said, [question.answer for question in questions])["f1"] > 95.0


def test_pointing_stays_in_the_context_and_within_bounds(app: types.ModuleType) -> None:
    module = importlib.import_module("scct_app.device_only")
    tokenizer = importlib.import_module("scct_app.models").load_slm_tokenizer()
    one = Question(context="alpha beta gamma delta", question="Which is second?", answer="beta", module="m")
    places = module.Places([one], tokenizer)
    length = places.inputs["input_ids"].shape[1]
    # Everything points behind the context, and the last token before the first.
    first, last = torch.arange(length).float()[None], torch.arange(length).flip(0).float()[None]
    (said,) = places.answers(first, last, 1)
    assert said and said in one.context and len(tokenizer(said, add_special_tokens=False)["input_ids"]) <= 2


def test_questions_beyond_the_language_models_window(
    app: types.ModuleType, models: dict[str, str], tmp_path: Path
) -> None:
    train = importlib.import_module("scct_app.cloud_only").train_cloud_only
    llm = LlamaForCausalLM.from_pretrained(models["llm"], max_position_embeddings=30)
    llm.save_pretrained(tmp_path / "llm")
    with pytest.raises(DataError, match=r"a question is \d+ tokens .*; expected at most 30 together, its window"):
        train(
            config_of({**models, "llm": str(tmp_path / "llm")}),
            RunFolder(tmp_path / "run"),
        )


def context_of(run_id: int, name: str) -> Context:
    config = {"partition-id": 1, "num-partitions": 2, "device-name": name}
    return Context(run_id=run_id, node_id=7, node_config=config, state=RecordDict(), run_config={})  # type: ignore[arg-type]


def test_a_device_goes_on_with_its_own_model_of_the_run(
    app: types.ModuleType, models: dict[str, str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, not by Flower's id of the connection, which changes; and dropout draws the same in every run."""
    module = importlib.import_module("scct_app.device_only")
    slm = ModernBertModel.from_pretrained(models["slm"], mlp_dropout=0.5)
    slm.save_pretrained(tmp_path / "slm")
    models = {**models, "slm": str(tmp_path / "slm")}
    config = config_of(models, training="device-only", iterations=2)
    # A message of Flower's own exists inside a run alone.
    monkeypatch.setattr(module, "_reply", lambda *reply: reply)
    message = types.SimpleNamespace(content={"config": {"server-round": 1}})

    def trained(run_id: int, name: str, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        module.train(message, context_of(run_id, name), config)
        return torch.load(cache / "device-only" / name / f"{run_id}.pt", weights_only=True)

    first, again, second = trained(1, "kitchen", 0), trained(2, "kitchen", 1), trained(1, "kitchen", 2)
    assert (first["step"], again["step"], second["step"]) == (2, 2, 4)
    assert all(torch.equal(first["model"][name], tensor) for name, tensor in again["model"].items())
    for run_id in (3, 4):
        trained(run_id, "kitchen", 0)
    assert sorted(path.name for path in (cache / "device-only" / "kitchen").iterdir()) == ["1.pt", "3.pt", "4.pt"]
    assert module.model_file(context_of(1, "../x")).parent == cache / "device-only" / "___x"


def test_dropout_is_drawn_for_each_device_and_step(app: types.ModuleType) -> None:
    seed = importlib.import_module("scct_app.device_only").dropout_seed
    assert len({seed(a, b, c) for a in range(3) for b in range(3) for c in range(3)}) == 27


def test_an_error_of_one_device_is_logged_and_no_more(
    app: types.ModuleType, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = importlib.import_module("scct_app.device_only").DeviceOnly()
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    metrics = RecordDict({"metrics": MetricRecord({"train-loss": 2.0, "num-examples": 3})})
    replies = [
        types.SimpleNamespace(content=metrics, has_error=lambda: False),
        types.SimpleNamespace(error=types.SimpleNamespace(reason="no space is left"), has_error=lambda: True),
    ]
    arrays, mean = strategy.aggregate_train(3, replies)
    assert arrays is None and mean is not None and mean["train-loss"] == 2.0
    assert "Round 3: a device replied with an error: no space is left" in caplog.text
    assert strategy.aggregate_train(3, replies[1:]) == (None, None)


@pytest.mark.parametrize(("key", "value"), [("cloud-address", "cloud.example:9096"), ("resume", "runs/1")])
def test_what_a_baseline_cannot_do(app: types.ModuleType, key: str, value: str) -> None:
    read = importlib.import_module("scct_app.config").read_config
    with pytest.raises(
        ConfigError, match=f"`training` is 'device-only' and `{key}` is set; expected `{key}` with 'chain'"
    ):
        read({"training": "device-only", key: value})


@pytest.mark.slow
def test_device_only(app: types.ModuleType, models: dict[str, str], cache: Path, tmp_path: Path) -> None:
    """Every device goes on with its own model from round to round."""
    runs = tmp_path / "runs"
    settings = {
        "training": "device-only",
        "num-server-rounds": 2,
        "epochs": 1,
        "iterations": 4,
        "batch-size": 2,
        "min-available-nodes": 3,
        "heldout-questions": 4,
        "run-dir": str(runs),
    }
    with federation("simulation", tmp_path / "logs", supernodes=3, cpus=3) as running:
        outcome = running.run(APP, {**settings, **models}, timeout_s=280.0)
    assert outcome.completed, outcome.tail()
    lines = [json.loads(line) for line in newest(runs.glob("*/metrics.jsonl")).read_text().splitlines()]
    assert [(line["kind"], line["server_round"]) for line in lines] == [("evaluation", n) for n in range(3)]
    assert all({"eval-loss", "eval-f1", "eval-exact_match"} <= set(line) for line in lines)
    files = [path for device in "012" for path in (cache / "device-only" / device).iterdir()]
    kept = [torch.load(path, weights_only=True) for path in files]
    assert [one["step"] for one in kept] == [8, 8, 8]
    weights = [one["model"]["classifier.weight"] for one in kept]
    assert not weights[0].equal(weights[1]) and not weights[1].equal(weights[2])
