"""Who is told how a run goes, and what becomes of those who fail."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flwr_splitkd.callbacks import Callback, LiveReading
from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers import CutTable, FixedCut
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies.callbacks import Callbacks, default_callbacks
from flwr_splitkd.strategies.description import describe, versions
from flwr_splitkd.wire.credentials import TlsFiles


class Recorder(Callback):
    def __init__(self) -> None:
        self.heard: list[object] = []

    def on_start(self, run: RunFolder, config: Mapping[str, Any]) -> None:
        self.heard.append(("start", run.path, dict(config)))

    def on_round(self, server_round: int, metrics: Mapping[str, float]) -> None:
        self.heard.append(("round", server_round, dict(metrics)))

    def on_end(self, error: BaseException | None) -> None:
        self.heard.append(("end", error))


class Broken(Callback):
    def on_round(self, server_round: int, metrics: Mapping[str, float]) -> None:
        raise ConnectionError("the tracker is down")


def test_everyone_hears_everything_although_one_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, last = Recorder(), Recorder()
    callbacks = Callbacks([first, Broken(), last])
    with caplog.at_level(logging.WARNING, logger="flwr"):
        callbacks.tell("on_start", RunFolder(tmp_path), {"seed": 1})
        callbacks.tell("on_round", 1, {"loss": 0.5})
        callbacks.tell("on_evaluation", 1, {"loss": 0.5})
        callbacks.tell("on_end", None)
    assert first.heard == last.heard == [("start", tmp_path, {"seed": 1}), ("round", 1, {"loss": 0.5}), ("end", None)]
    messages = [record.getMessage() for record in caplog.records if record.name == "flwr"]
    assert messages == ["Broken.on_round failed and is left out: ConnectionError: the tracker is down"]


class Demanding(Recorder):
    """Cannot have what it was asked for."""

    def on_start(self, run: RunFolder, config: Mapping[str, Any]) -> None:
        raise ConfigError("the port is taken")

    def on_round(self, server_round: int, metrics: Mapping[str, float]) -> None:
        raise ConfigError("this is no beginning any more")


def test_what_cannot_be_had_ends_a_run_at_its_start_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callbacks = Callbacks([Demanding()])
    with pytest.raises(ConfigError, match="the port is taken"):
        callbacks.tell("on_start", RunFolder(tmp_path), {})
    with caplog.at_level(logging.WARNING, logger="flwr"):
        callbacks.tell("on_round", 1, {})
        callbacks.tell("on_live", LiveReading)
    assert [record.getMessage() for record in caplog.records] == [
        "Demanding.on_round failed and is left out: ConfigError: this is no beginning any more"
    ]


def test_an_interruption_is_no_failure_of_a_callback() -> None:
    class Interrupted(Callback):
        def on_end(self, error: BaseException | None) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Callbacks([Interrupted()]).tell("on_end", None)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "flwr_splitkd.report.figures", None)
    with caplog.at_level(logging.INFO, logger="flwr"):
        assert default_callbacks() == []
    assert "pip install 'flwr_splitkd[report]'" in caplog.text


def test_settings_as_data() -> None:
    assert describe(DistillationLoss(kd_ratio=0.5))["kd_ratio"] == 0.5
    assert describe(FixedCut(3)) == {"class": "FixedCut", "cut": 3}
    assert describe(CutTable({"a": 1}))["class"] == "CutTable"
    assert describe(test_settings_as_data) == f"{__name__}.test_settings_as_data"
    assert describe((1, 2.5, None, {"x"})) == [1, 2.5, None, ["x"]]
    files = TlsFiles(certificate=Path("a.pem"), private_key=Path("b.pem"), root_certificate="c.pem")
    assert describe(files) == {"certificate": "a.pem", "private_key": "b.pem", "root_certificate": "c.pem"}


def test_versions_of_what_a_run_depends_on() -> None:
    assert {"python", "flwr_splitkd", "flwr", "numpy"} <= versions().keys()
