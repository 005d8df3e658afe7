"""`flwr-splitkd ask` through three processes: the answer is that of the composite model in one process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chain_to_ask import CONTEXT, LAYERS, NEW, QUESTION, ChainToAsk

from flwr_splitkd import cli
from flwr_splitkd.models import PretrainedModel
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies.chain.progress import ChainProgress
from flwr_splitkd.strategies.description import describe
from flwr_splitkd.tiers.child import beside, packed
from flwr_splitkd.tiers.cloud import CloudSetup, EmbeddedCloud
from flwr_splitkd.tiers.cloud.embedded import serve_parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> ChainToAsk:
    return ChainToAsk(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def cloud(chain: ChainToAsk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The options for a cloud in a process of its own."""
    folder = tmp_path_factory.mktemp("cloud")
    chain.keep_module(folder / "state")
    token = folder / "token"
    token.write_bytes(b"a secret of an edge, in a file\n")
    setup = CloudSetup(
        llm=PretrainedModel(chain.llm, dtype="float32"),
        tasks={"qa": chain.settings},
        edges={"kitchen": token.read_bytes().strip()},
        state_folder=folder / "state",
    )
    with beside("The cloud", packed(serve_parent, setup, num_threads=1)) as child:
        address = child.receive()
        yield ["--cloud", address, "--edge", "kitchen", "--token-file", str(token), "--task", "qa"]


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", "ask", QUESTION, "--context", CONTEXT, *arguments])
    capsys.readouterr()
    code = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def device(chain: ChainToAsk) -> list[str]:
    return ["--slm", str(chain.slm), "--encoder", str(chain.encoder), "--llm-tokenizer", str(chain.llm)]


@pytest.mark.parametrize("split_point", [1, LAYERS])
def test_the_answer_is_that_of_one_process(
    chain: ChainToAsk,
    cloud: list[str],
    split_point: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--split-point", str(split_point), "--max-new-tokens", str(NEW), "--json"]
    code, out, err = call(monkeypatch, capsys, *device(chain), *cloud, *arguments)
    assert code == 0, err
    said: dict[str, Any] = json.loads(out)
    expected = chain.answer()
    assert said["tokens"] == expected and len(expected) >= 2
    processes = {said[tier]["process_id"] for tier in ("device", "edge", "cloud")}
    assert len(processes) == 3 and said["device"]["process_id"] == os.getpid()
    assert (said["device"]["split_point"], said["device"]["num_blocks"]) == (split_point, LAYERS)
    assert said["device"]["encoder_round"] == 2 and not said["cloud"]["started_here"]
    assert all(said[tier]["compute_s"] > 0 for tier in ("device", "cloud"))
    # The edge lacks all of its layers, and none when the device has the whole encoder.
    hidden = chain.batch()["input_ids"].numel() * 16 * 4
    assert hidden < said["edge"]["uplink_bytes"] < hidden + 2000
    assert (said["device"]["uplink_bytes"] < hidden + 4000) == (split_point == LAYERS)


def test_a_run_folder_knows_the_rest_and_the_middle_answers_the_same(
    chain: ChainToAsk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    run = RunFolder(tmp_path / "run")
    models = {"slm": str(chain.slm), "slm_tokenizer": str(chain.slm), "llm": str(chain.llm)}
    models |= {"llm_tokenizer": str(chain.llm), "dtype": "float32"}
    cloud = EmbeddedCloud(llm=PretrainedModel(chain.llm, dtype="float32"), tasks={"qa": chain.settings})
    strategy = {"name": "SCCT", "task": "qa", "cloud": describe(cloud), "settings": {"max_new_tokens": NEW}}
    run.write_config({"models": models, "strategy": strategy, "run_config": {"max-positions": 80}})
    ChainProgress(run="77").save(run.path)
    chain.keep_module(run.path / "cloud")
    chain.keep_encoder_of("5", "77")
    chain.keep_encoder_of("6", "another run")

    code, out, err = call(monkeypatch, capsys, "--run", str(run.path), "--split-point", "2", "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["tokens"] == chain.answer() and said["cloud"]["started_here"]
    assert Path(said["device"]["encoder"]).name == "5"

    with run.locked():
        code, _, err = call(monkeypatch, capsys, "--run", str(run.path))
    assert code == 1 and "is in use by process" in err

    chain.keep_encoder_of("6", "77")
    code, _, err = call(monkeypatch, capsys, "--run", str(run.path))
    assert code == 1 and "`--device` is None; expected one of 5, 6" in err


def test_a_wrong_token(
    chain: ChainToAsk,
    cloud: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "token").write_bytes(b"0" * 32)
    changed = ["--token-file", str(tmp_path / "token")]
    code, out, err = call(monkeypatch, capsys, *device(chain), *cloud, *changed)
    assert code == 1 and out == ""
    last = err.splitlines()[-1]
    assert last.startswith("flwr-splitkd: The edge's process failed: ")
    assert "The cloud does not know an edge 'kitchen' with this token" in last
