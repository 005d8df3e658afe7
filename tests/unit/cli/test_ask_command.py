"""`flwr-splitkd ask`: its help, and what it refuses before anything is started."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from chain_to_ask import LAYERS, QUESTION, ChainToAsk
from peft import LoraConfig

from flwr_splitkd import cli
from flwr_splitkd.cli.ask import _lines
from flwr_splitkd.cli.ask_settings import Settings, cloud_access, known_by_run, task_settings
from flwr_splitkd.errors import ConfigError, StoreError
from flwr_splitkd.models.serial_adapter import SerialAdapterConfig
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies.chain.progress import ChainProgress
from flwr_splitkd.strategies.description import describe
from flwr_splitkd.tiers.cloud import TaskSettings


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> ChainToAsk:
    return ChainToAsk(tmp_path_factory.mktemp("chain"))


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", "ask", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 1 and out == ""
    return err.splitlines()[-1].removeprefix("flwr-splitkd: ")


def test_the_help_names_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", "ask", "--help"])
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().out
    assert ended.value.code == 0
    options = ("context", "run", "device", "encoder", "slm", "split-point", "cloud", "edge", "token-file", "task")
    more = (
        "root-certificate",
        "insecure",
        "slm-tokenizer",
        "llm-tokenizer",
        "dtype",
        "max-positions",
        "max-new-tokens",
        "json",
    )
    assert all(f"--{name} " in said for name in options + more)


def test_what_is_refused_before_a_process_is_started(
    chain: ChainToAsk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = ["--slm", str(chain.slm), "--encoder", str(chain.encoder), "--llm-tokenizer", str(chain.llm)]

    def said(*arguments: str, question: str = QUESTION) -> str:
        return refused(monkeypatch, capsys, question, *device, *arguments)

    for point in ("0", str(LAYERS + 1)):
        assert f"is {point}; expected 1..{LAYERS}" in said("--split-point", point)
    assert "tokens; expected at most 40. Shorten the context" in said("--context", "x" * 90, "--max-positions", "40")
    assert "expected a readable text file after the @" in said("--context", f"@{tmp_path / 'none.txt'}")
    assert said(question="  ").startswith("the question is '  '; expected text")
    assert said().startswith("`--cloud` is missing; expected it, or `--run`")
    empty = said("--encoder", str(tmp_path / "empty"))
    assert "holds no encoder; expected the folder of one that a device has trained" in empty
    assert not (tmp_path / "empty").exists()
    assert said("--slm", str(tmp_path)).startswith(f"`--slm` is '{tmp_path}', which cannot be used")
    cloud = ["--cloud", "127.0.0.1:1", "--task", "qa"]
    assert said(*cloud).startswith("`--token-file` is missing")
    assert "expected readable files" in said(*cloud, "--token-file", str(tmp_path / "none"))
    (tmp_path / "token").write_bytes(b"secret of the kitchen")
    far = ["--cloud", "cloud.example:9096", "--task", "qa", "--token-file", str(tmp_path / "token")]
    assert "without a root certificate; expected one" in said(*far)
    assert said("--llm-tokenizer", str(tmp_path)).startswith("`--llm-tokenizer` is ")
    assert said("--run", str(tmp_path)).startswith(f"`--run` is '{tmp_path}'; expected the folder of a run of SCCT")


def test_an_option_wins_over_the_run_and_the_run_over_a_default() -> None:
    run = Settings(slm="run's", task="qa", max_new_tokens=7, tasks={"qa": {}})
    both = Settings(slm="mine").over(run)
    assert (both.slm, both.task, both.value("max_new_tokens"), both.value("max_positions")) == ("mine", "qa", 7, 192)
    assert both.tasks == {"qa": {}}
    with pytest.raises(ConfigError, match="`--llm-tokenizer` is missing"):
        both.value("llm_tokenizer")


def test_a_run_with_a_cloud_of_its_own(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    strategy = {"name": "SCCT", "task": "qa", "cloud": {"address": "cloud:9096", "edge": "kitchen"}}
    token = tmp_path / "token"
    token.write_bytes(b"secret of the kitchen\n")
    run_config = {"cloud-token-file": str(token), "cloud-root-certificate": "", "max-positions": 99}
    run.write_config({"strategy": strategy, "run_config": run_config, "models": {"slm": "roberta", "llm": None}})
    ChainProgress(run="3").save(tmp_path)
    known = known_by_run(tmp_path)
    assert (known.slm, known.llm, known.run_name, known.value("max_positions")) == ("roberta", None, "3", 99)
    with (
        pytest.raises(ConfigError, match="`address` of the cloud is 'cloud:9096' without a root certificate"),
        cloud_access(known),
    ):
        pass
    run_config["cloud-insecure"] = True
    run.write_config({"strategy": strategy, "run_config": run_config, "models": {"slm": "roberta", "llm": None}})
    known = known_by_run(tmp_path)
    with cloud_access(known) as (access, started):
        assert not started
    told = (access.address, access.edge, access.token, access.task, access.root_certificate)
    assert told == ("cloud:9096", "kitchen", b"secret of the kitchen", "qa", b"")


def test_a_run_whose_cloud_left_nothing_or_lacks_the_task(tmp_path: Path, chain: ChainToAsk) -> None:
    settings = Settings(task="qa", run=tmp_path, tasks={"qa": describe(chain.settings)}, llm=str(chain.llm))
    with pytest.raises(StoreError, match="expected the module's state"), cloud_access(settings):
        pass
    with (
        pytest.raises(ConfigError, match=r"`--task` is 'poems'; expected one of \['qa'\]"),
        cloud_access(replace(settings, task="poems")),
    ):
        pass


@pytest.mark.parametrize(
    "peft",
    [
        SerialAdapterConfig(bottleneck=5, activation="relu", target_modules=("o_proj",)),
        SerialAdapterConfig(),
        LoraConfig(r=3, lora_alpha=11, target_modules=["q_proj", "v_proj"], use_rslora=True),
    ],
)
def test_a_task_survives_its_description(peft: SerialAdapterConfig | LoraConfig) -> None:
    settings = TaskSettings(slm_width=4, peft=peft, add_bos=False, max_new_tokens=5, max_grad_norm=0.5, seed=3)
    again = task_settings(json.loads(json.dumps(describe(settings), default=str)))
    assert describe(again) == describe(settings)


def test_a_task_of_another_version(chain: ChainToAsk) -> None:
    described = describe(chain.settings)
    with pytest.raises(ConfigError, match="A task of the run's config.json cannot be read"):
        task_settings({**described, "optimizer": {"of_tomorrow": 1}})


def test_a_line_for_each_tier() -> None:
    moved = {"uplink_bytes": 2048, "downlink_bytes": 512}
    told = {
        "device": {"process_id": 1, "split_point": 2, "num_blocks": 6, "compute_s": 0.5, **moved},
        "edge": {"process_id": 2, "compute_s": 0.25, **moved},
        "cloud": {"process_id": 3, "address": "cloud:9096", "started_here": True, "compute_s": 0.125},
    }
    assert _lines(told) == [
        "device: process 1 on this machine, 2 of 6 blocks, 0.500 s; to the edge 2.0 KiB up, 0.5 KiB down",
        "edge: a process on this machine, 2, 0.250 s; to the cloud 2.0 KiB up, 0.5 KiB down",
        "cloud: process 3 at cloud:9096, started for this question, 0.125 s",
    ]
