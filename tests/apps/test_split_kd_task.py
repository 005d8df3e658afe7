"""The demo app's models, their cache, its data and its evaluation."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import types
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM

from flwr_splitkd.data import (
    IGNORED_LABEL,
    DataConfig,
    Document,
    byte_tokenizer,
    documents_digest,
    make_loader,
    split_documents,
    text_blocks,
)
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models import PretrainedModel
from import_graph import ROOT

DOCUMENTS = [Document(module="m", text="wait for the future to complete, with a timeout. " * 40)]


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(ROOT / "apps" / "split_kd")
    return importlib.import_module("split_kd_app.teacher")


@pytest.fixture
def task(teacher: types.ModuleType) -> types.ModuleType:
    return importlib.import_module("split_kd_app.task")


def tiny(teacher: types.ModuleType, **changes: object) -> object:
    settings = {"hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "steps": 3}
    return teacher.TeacherRecipe(**{**settings, "sequence_length": 16, "batch_size": 2, **changes})


class Counter:
    """Counts training steps, so that a test sees whether the cache was used."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, step: int, steps: int, loss: float) -> None:
        assert 1 <= step <= steps
        assert loss > 0
        self.steps.append(step)


def train(teacher: types.ModuleType, recipe: object) -> tuple[Path, list[int]]:
    counter = Counter()
    return teacher.cached_teacher(DOCUMENTS, byte_tokenizer(), recipe=recipe, progress=counter), counter.steps


def test_teacher_is_trained_once(teacher: types.ModuleType, tmp_path: Path) -> None:
    folder, steps = train(teacher, tiny(teacher))
    assert folder.parent == tmp_path / "cache"
    assert steps == [1, 2, 3]
    assert train(teacher, tiny(teacher)) == (folder, [])
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("change", [{"steps": 2}, {"seed": 1}, {"hidden_size": 64}, {"learning_rate": 1e-4}])
def test_another_recipe_is_another_teacher(teacher: types.ModuleType, change: dict[str, float]) -> None:
    first, _ = train(teacher, tiny(teacher))
    second, steps = train(teacher, tiny(teacher, **change))
    assert second != first
    assert steps


def test_other_text_is_another_teacher(teacher: types.ModuleType) -> None:
    first, _ = train(teacher, tiny(teacher))
    other = [Document(module="m", text=DOCUMENTS[0].text + "!")]
    assert teacher.cached_teacher(other, byte_tokenizer(), recipe=tiny(teacher)) != first


def test_training_is_deterministic_and_leaves_torch_as_it_was(teacher: types.ModuleType, tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    folders = [
        teacher.cached_teacher(DOCUMENTS, byte_tokenizer(), recipe=tiny(teacher, num_threads=1), root=tmp_path / name)
        for name in ("a", "b")
    ]
    one, other = (PretrainedModel(folder)().state_dict() for folder in folders)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"short"),
        ("model.safetensors", None),
        ("config.json", b"{}"),
        ("recipe.json", b"{"),
        ("recipe.json", b"[]"),
        ("recipe.json", b'{"description": {}, "files": {}}'),
    ],
)
def test_damaged_teacher_is_trained_again_with_a_warning(
    teacher: types.ModuleType, monkeypatch: pytest.MonkeyPatch, file: str, content: bytes | None
) -> None:
    warnings: list[str] = []
    log = types.SimpleNamespace(info=lambda *_: None, warning=lambda text, *rest: warnings.append(text % rest))
    monkeypatch.setattr(teacher, "_log", log)
    folder, _ = train(teacher, tiny(teacher))
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    assert train(teacher, tiny(teacher)) == (folder, [1, 2, 3])
    assert len(warnings) == 1
    assert str(folder) in warnings[0]
    assert train(teacher, tiny(teacher)) == (folder, [])
    assert isinstance(PretrainedModel(folder)(), LlamaForCausalLM)
    assert list(folder.parent.iterdir()) == [folder]


def test_another_process_that_finished_first_is_no_error(teacher: types.ModuleType) -> None:
    recipe = tiny(teacher)
    raced: list[Path] = []

    def progress(step: int, steps: int, loss: float) -> None:
        if step == steps and not raced:
            raced.append(train(teacher, recipe)[0])

    folder = teacher.cached_teacher(DOCUMENTS, byte_tokenizer(), recipe=recipe, progress=progress)
    assert raced == [folder]
    assert train(teacher, recipe) == (folder, [])


def test_learning_rate_warms_up_and_falls(teacher: types.ModuleType) -> None:
    recipe = teacher.TeacherRecipe(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [recipe.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0, abs=0.03)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, abs=0.01)


def test_build_teacher_trains_on_the_teacher_s_modules(
    teacher: types.ModuleType, task: types.ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = tiny(teacher, steps=1)
    monkeypatch.setattr(teacher, "TeacherRecipe", lambda: recipe)
    counter = Counter()
    model = task.build_teacher(progress=counter)
    assert counter.steps == [1]
    assert not model.training
    assert model.config.vocab_size == len(task.load_tokenizer())
    (folder,) = (tmp_path / "cache").iterdir()
    stored = json.loads((folder / "recipe.json").read_text())["description"]["text"]
    split = split_documents(DataConfig(), 10)
    assert stored == documents_digest(split.teacher.documents)


def test_student_is_the_same_in_every_call(task: types.ModuleType) -> None:
    one, other = task.build_student(), task.build_student()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.config.num_hidden_layers >= 8
    assert one.lm_head.weight is not one.model.embed_tokens.weight


def test_names_choose_the_builder(task: types.ModuleType) -> None:
    assert task.student_builder() is task.build_student
    assert task.teacher_builder("builtin") is task.build_teacher
    for builder in (task.student_builder, task.teacher_builder):
        pretrained = builder("meta-llama/Llama-3.2-1B", dtype="bfloat16")
        assert isinstance(pretrained, PretrainedModel)
        assert (pretrained.name_or_path, pretrained.options) == (
            "meta-llama/Llama-3.2-1B",
            {"dtype": "bfloat16"},
        )


def test_tokenizer_of_the_app_keeps_text_and_has_our_specials(task: types.ModuleType, tmp_path: Path) -> None:
    tokenizer = task.load_tokenizer()
    assert (len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id) == (1024, 0, 2)
    text = "async def wait_for(aw, timeout):  # h\u00e9 \u4e16\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    byte_tokenizer().save_pretrained(tmp_path)
    assert len(task.load_tokenizer(str(tmp_path))) == 259


def test_devices_share_no_block_with_the_evaluation(task: types.ModuleType) -> None:
    def rows(loader: DataLoader[dict[str, torch.Tensor]]) -> set[tuple[int, ...]]:
        return {tuple(row) for batch in loader for row in batch["input_ids"].tolist()}

    heldout = rows(task.heldout_loader())
    devices = [rows(task.load_partition(index, 10, max_batches=None)) for index in range(3)]
    assert len(heldout) == 64
    assert all(len(device) > 200 for device in devices)
    for one, other in itertools.combinations([heldout, *devices], 2):
        assert not one & other
    assert len(task.load_partition(0, 10, max_batches=12)) == 12


def test_own_files_and_tokenizer_are_used(task: types.ModuleType, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("My own text. " * 10)
    config = DataConfig(source=tmp_path / "mine.txt", heldout=0.0, sequence_length=32)
    loader = task.load_partition(0, 1, config=config, tokenizer=byte_tokenizer(), batch_size=2, max_batches=1)
    (batch,) = loader
    assert batch["input_ids"].shape == (2, 32)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_is_the_mean_over_predicted_tokens(task: types.ModuleType, training: bool) -> None:
    model = task.build_student().train(training)
    blocks = text_blocks(DOCUMENTS, task.load_tokenizer(), 37)
    assert (blocks.labels == IGNORED_LABEL).any()
    found = task.evaluate(model, make_loader(blocks, 3))
    assert model.training is training
    with torch.no_grad():
        losses = []
        for ids, mask in zip(blocks.input_ids, blocks.attention_mask, strict=True):
            text = ids[: int(mask.sum())]
            chances = model(input_ids=text[None]).logits[0].log_softmax(-1)
            losses += [-chances[position, text[position + 1]] for position in range(len(text) - 1)]
    assert found["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


def test_progress_is_logged_by_tenths(teacher: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(teacher, "_log", types.SimpleNamespace(info=lambda text, *rest: lines.append(text % rest)))
    for step in range(1, 251):
        teacher.log_progress(step, 250, 4.0)
    assert len(lines) == 11
    assert lines[0] == "teacher [..........] step 1/250, loss 4.00"
    assert lines[-1] == "teacher [##########] step 250/250, loss 4.00"


def test_every_mistake_in_the_run_config_is_reported_with_its_value(teacher: types.ModuleType) -> None:
    config = importlib.import_module("split_kd_app.config")
    with pytest.raises(ConfigError) as wrong:
        config.read_config({"kd-ratio": 1.5, "batch-size": "4", "cut": "2", "optimizer": "lion"})
    for part in ("`kd-ratio` is 1.5; expected", "`batch-size` is '4'", "did you mean `cuts`", "`optimizer` is 'lion'"):
        assert part in str(wrong.value)
    with pytest.raises(ConfigError) as wrong:
        config.read_config({"cuts": "2,0", "tls-certificate": "server.pem"})
    for part in ("`cuts` is 0; expected at least 1", "'server.pem'"):
        assert part in str(wrong.value)
    with pytest.raises(ConfigError, match="`cuts` is 'two'; expected whole numbers"):
        config.read_config({"cuts": "two"})
    with pytest.raises(ConfigError, match="`set-frequency` is true and `fleet` empty; expected"):
        config.read_config({"set-frequency": True})
    with pytest.raises(ConfigError, match="`set-frequency` is true and `modelled` true; expected"):
        config.read_config({"set-frequency": True, "fleet": "table-ii", "modelled": True})
