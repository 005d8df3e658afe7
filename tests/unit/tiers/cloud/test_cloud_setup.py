from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from flwr_splitkd.errors import ConfigError, StoreError
from flwr_splitkd.models import SerialAdapterConfig
from flwr_splitkd.tiers.cloud import CloudLLM, CloudSetup, TaskSettings, open_cloud
from flwr_splitkd.tiers.cloud.store import TaskStore
from tiny_llms import tiny_llm

SETTINGS = TaskSettings(slm_width=24, peft=SerialAdapterConfig(bottleneck=4))


def setup(folder: Path, **changes: Any) -> CloudSetup:
    given = {
        "llm": partial(tiny_llm, "llama"),
        "tasks": {"qa": SETTINGS},
        "edges": {"north": b"n" * 32},
        "state_folder": folder,
    }
    return CloudSetup(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"tasks": {}}, "The cloud has no tasks; expected at least one"),
        ({"edges": {}}, "The cloud has no edges; expected at least one"),
        (
            {"tasks": {"../x": SETTINGS}},
            r"The cloud has '\.\./x' among its tasks; expected letters, digits, '-' and '_'",
        ),
        ({"edges": {"a b": b"n" * 32}}, "The cloud has 'a b' among its edges"),
        ({"edges": {"north": b"short"}}, "The token of edge 'north' has 5 bytes; expected at least 16. Make one with"),
        (
            {"task_edges": {"qa": frozenset({"x"})}},
            r"Task 'qa' is for the edges \['x'\]; expected a known task and edges of",
        ),
        ({"task_edges": {"x": frozenset({"north"})}}, "Task 'x' is for the edges"),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        setup(tmp_path, **changes)


def test_secrets_are_in_no_description(tmp_path: Path) -> None:
    assert "n" * 32 not in repr(setup(tmp_path))


def test_the_address_is_looked_at_before_the_model(tmp_path: Path) -> None:
    loaded = threading.Event()

    def llm() -> nn.Module:
        loaded.set()
        return tiny_llm()

    service = open_cloud(setup(tmp_path))
    try:
        with pytest.raises(ConfigError, match="none can be bound"):
            open_cloud(setup(tmp_path / "other", llm=llm, data_address=service.address))
    finally:
        service.close()
    assert not loaded.is_set()


def test_a_model_that_cannot_be_built_leaves_the_port_free(tmp_path: Path) -> None:
    def broken() -> nn.Module:
        raise ConfigError("`name` is 'x'; expected a model.")

    service = open_cloud(setup(tmp_path))
    address = service.address
    service.close()
    with pytest.raises(ConfigError, match="`name` is 'x'"):
        open_cloud(setup(tmp_path, llm=broken, data_address=address))
    open_cloud(setup(tmp_path, data_address=address)).close()


def test_tasks_go_on_from_the_disk(tmp_path: Path) -> None:
    state = CloudLLM(tiny_llm()).add_task("qa", SETTINGS).state()
    later = {**state, "next_step": torch.tensor(7), "weight/projection.bias": torch.ones(32)}
    TaskStore(tmp_path / "qa").commit(later, {"iterations": {"north": 5}, "answers": {"north": [0.5, 2.0]}})
    service = open_cloud(setup(tmp_path))
    try:
        served = service._tasks["qa"]
        assert served.task.next_step == 7 and served.iterations == {"north": 5}
        assert torch.equal(served.task.state()["weight/projection.bias"], torch.ones(32))
        last = served.last_answer("north")
        assert last is not None and (last.step, last.learning_rate, last.grad_norm) == (4, 0.5, 2.0)
        assert torch.equal(served.initial["weight/projection.bias"], state["weight/projection.bias"])
    finally:
        service.close()


@pytest.mark.parametrize(
    "peft", [SerialAdapterConfig(bottleneck=5), LoraConfig(r=2, target_modules=["q_proj"])], ids=["shape", "names"]
)
def test_a_state_of_another_module(tmp_path: Path, peft: Any) -> None:
    other = CloudLLM(tiny_llm()).add_task("qa", TaskSettings(slm_width=24, peft=peft)).state()
    TaskStore(tmp_path / "qa").commit(other, {})
    with pytest.raises(
        StoreError, match=f"{tmp_path / 'qa'} holds another module than task 'qa' is configured with: .*move"
    ):
        open_cloud(setup(tmp_path))


def test_a_state_has_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr_splitkd.tiers.cloud.setup._LOCK_PATIENCE_S", 0.2)
    first = open_cloud(setup(tmp_path))
    with pytest.raises(StoreError, match=rf"is in use by process {os.getpid()}; expected one at a time"):
        open_cloud(setup(tmp_path))
    threading.Timer(0.5, first.close).start()
    monkeypatch.setattr("flwr_splitkd.tiers.cloud.setup._LOCK_PATIENCE_S", 20.0)
    open_cloud(setup(tmp_path)).close()  # which waited
