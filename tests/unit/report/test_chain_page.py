"""The page about the chain, its baselines, and what cannot be compared."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from recorded_runs import device, write_baseline, write_chain, write_run

pytest.importorskip("matplotlib")

from flwr_splitkd.report.chain_words import chain_totals
from flwr_splitkd.report.html import page
from flwr_splitkd.report.load import RunData, load_run

HOSTILE = "a<script>alert(1)</script>&amp;"


class _Page(HTMLParser):
    """A page's headlines, figures in words, and tables by the headline above them."""

    def __init__(self, *runs: RunData) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.words: list[str] = []
        self.text: list[str] = []
        self.leads: list[str] = []
        self.headlines: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._within: list[str] = []
        self.feed(page(runs))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.add(tag)
        self._within.append(tag)
        if "id" in attributes:
            self.ids.append(str(attributes["id"]))
        if attributes.get("role") == "img":
            self.words.append(str(attributes["aria-label"]))
        if tag == "tr":
            self.tables.setdefault(self.headlines[-1], []).append([])
        if tag in ("th", "td"):
            self.tables[self.headlines[-1]][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self._within and self._within.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        tag = self._within[-1] if self._within else ""
        if tag in ("h2", "h3", "summary"):
            self.headlines.append(data)
        elif tag in ("th", "td"):
            self.tables[self.headlines[-1]][-1][-1] += data
        elif tag == "p":
            self.leads.append(data)


def test_a_run_of_the_chain(tmp_path: Path) -> None:
    read = _Page(load_run(write_chain(tmp_path / "run", 2, ["0", "1"], failing="1", reference=True).path))
    assert read.leads == ["Split learning along the chain device, edge, cloud: all devices at once, round by round."]
    assert not [text for text in (*read.headlines, *read.text) if "turn" in text.lower().split()]
    assert read.words == [
        "Loss from 4 in iteration 10 to 1 in iteration 40, lowest 1 in iteration 40; without the encoder from 5 in iteration "
        "10 to 5 in iteration 40, lowest 5 in iteration 10.",
        "Exact match 0 after round 0 and 10 after round 2, lowest 0, highest 10.",
        "F1 0 after round 0 and 15 after round 2, lowest 0, highest 15.",
        "Loss 5 after round 0 and 3 after round 2, lowest 3, highest 5.",
        "Bytes up from 3 MiB in round 1 to 3 MiB in round 2, lowest 3 MiB in round 1; down from 4 MiB in round 1 to 4 MiB in "
        "round 2, lowest 4 MiB in round 1.",
        "Seconds an iteration in the first epochs of rounds from 1 in iteration 10 to 1 in iteration 30, lowest 1 in iteration "
        "10; in later ones from 0.5 in iteration 20 to 0.5 in iteration 40, lowest 0.5 in iteration 20.",
        "2 devices over 2 rounds: 2 with split point 1; left out: 2.",
    ]
    epochs, devices, evaluations = (read.tables[name] for name in ("Epochs", "Devices by round", "Evaluations"))
    assert epochs[0][3:6] == ["Loss", "Without the encoder", "Missed"]
    assert epochs[2] == ["1", "2", "10", "2", "5", "1", "5", "0.5", "20", "0.003", "1.5"]
    assert devices[3] == (
        ["1", "0", "train", "1", "20", "2", "2", "3.00", "1.00", "4.00", "2.00", "1", "2", "3", "12", "0"]
    )
    assert devices[4] == ["1", "1", "train", "left out: it left <b>without</b> a word"]
    assert evaluations[-1] == ["2", "10", "15", "3"]


def test_totals(tmp_path: Path) -> None:
    rows = chain_totals(load_run(write_chain(tmp_path, 2, ["0", "1"], failing="1", reference=True).path))
    assert rows == {
        "Rounds": "2",
        "Epochs": "4",
        "Iterations": "40",
        "Loss of the last epoch": "1",
        "The same without the encoder": "5",
        "Batches missed": "4",
        "Time in epochs, s": "30",
        "Seconds an iteration": "0.75",
        "Devices": "2",
        "Times a device was left out": "2",
        "Up, MiB": "12.00",
        "Layers within up, MiB": "2.00",
        "Down, MiB": "8.00",
        "Layers within down, MiB": "4.00",
        "Computed on devices, s": "8",
        "Computed on the edge, s": "16",
        "Computed in the cloud, s": "24",
        "Evaluation after round 2: exact match": "10",
        "Evaluation after round 2: F1": "15",
        "Evaluation after round 2: loss": "3",
    }


def test_columns_that_would_be_empty_are_not_there(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, 1, ["0"])
    read = _Page(load_run(tmp_path))
    assert "Without the encoder" not in read.tables["Epochs"][0]
    assert read.tables["Devices by round"][0][-1] == "Resumed"
    folder.append_metrics(device(2, 0, "0", left="battery").to_json())
    devices = _Page(load_run(tmp_path)).tables["Devices by round"]
    assert [line[-1] for line in devices] == ["Left", "–", "–", "–", "battery"]


def test_baselines(tmp_path: Path) -> None:
    cloud_only = load_run(write_baseline(tmp_path / "cloud", 2).path)
    read = _Page(cloud_only)
    assert read.leads == ["A baseline of the chain, trained without devices: epochs and evaluations."]
    assert "Devices by round" not in read.headlines and "Bytes" not in read.headlines
    assert not [name for name in chain_totals(cloud_only) if "MiB" in name or "evice" in name or "missed" in name]
    device_only = load_run(write_baseline(tmp_path / "device", 2, epochs=False).path)
    read = _Page(device_only)
    assert read.leads == ["A baseline of the chain that recorded evaluations alone."]
    assert chain_totals(device_only) == {
        "Rounds": "2",
        "Evaluation after round 2: F1": "6",
        "Evaluation after round 2: loss": "4",
    }
    assert read.headlines == [
        "In short",
        "Figures",
        "Evaluation: F1",
        "Evaluation: loss",
        "Evaluations",
        "Settings and versions",
    ]


def test_two_runs_of_the_chain(tmp_path: Path) -> None:
    one = load_run(write_chain(tmp_path / "one", 2, ["0", "1"], seed=1).path)
    two = load_run(write_chain(tmp_path / "two", 2, ["0", "1"], failing="1", seed=2).path)
    read = _Page(one, two)
    assert len(read.leads) == 1
    assert ["Times a device was left out", "0", "2"] in read.tables["In short"]
    assert read.tables["Settings that differ"] == [["", "one", "two"], ["strategy.seed", "1", "2"]]
    assert {"Loss", "Split points: one", "Split points: two", "Epochs: one", "Evaluations: two"} <= set(read.headlines)
    assert read.words[1] == (
        "one: exact match 0 after round 0 and 10 after round 2, lowest 0, highest 10. "
        "two: exact match 0 after round 0 and 10 after round 2, lowest 0, highest 10."
    )
    assert len(read.ids) == len(set(read.ids))


def test_the_chain_and_a_baseline_as_far_as_they_have_the_same(tmp_path: Path) -> None:
    chain = load_run(write_chain(tmp_path / "chain", 1, ["0"]).path)
    cloud_only = load_run(write_baseline(tmp_path / "cloud", 1).path)
    read = _Page(chain, cloud_only)
    assert [lead.partition(":")[0] for lead in read.leads] == ["chain", "cloud"]
    short = {line[0]: line[1:] for line in read.tables["In short"]}
    assert short["Evaluation after round 1: F1"] == ["7.5", "3"]
    assert short["Evaluation after round 1: exact match"] == ["5", "–"]
    assert short["Devices"] == ["1", "–"]
    assert "cloud: no exact match was recorded." in read.words[1]
    assert "cloud: no bytes were recorded." in read.words[4]


@pytest.mark.parametrize("swapped", [False, True])
def test_what_cannot_be_compared_is_said(swapped: bool, tmp_path: Path) -> None:
    chain = load_run(write_chain(tmp_path / "chain", 1, ["0"]).path)
    turns = load_run(write_run(tmp_path / "turns", 2, ["0", "1"]).path)
    read = _Page(turns, chain) if swapped else _Page(chain, turns)
    assert any("have no counterpart in the other and are not compared" in lead for lead in read.leads)
    expected = {
        "Rounds": ("1", "2"),
        "Devices": ("1", "2"),
        "Up, MiB": ("5.00", "4.00"),
        "Down, MiB": ("4.00", "12.00"),
    }
    assert {line[0]: tuple(line[1:]) for line in read.tables["In short"][1:]} == {
        name: values[::-1] if swapped else values for name, values in expected.items()
    }
    assert {"Loss: chain", "Loss: turns", "Bytes: chain", "Cuts: turns", "Epochs: chain", "Turns: turns"} <= set(
        read.headlines
    )
    assert not [text for text in read.words if "was recorded" in text or "were recorded" in text]
    assert len(read.ids) == len(set(read.ids))


def test_what_others_wrote_is_text(tmp_path: Path) -> None:
    folder = write_chain(tmp_path / "run", 1, ["0", HOSTILE], failing=HOSTILE, task=HOSTILE)
    folder.append_metrics({"kind": "evaluation", "server_round": 2, f"eval-{HOSTILE}": 1.0})
    read = _Page(load_run(folder.path))
    assert "script" not in read.tags
    assert f"Evaluation: {HOSTILE}" in read.headlines
    assert ["1", HOSTILE, "train", "left out: it left <b>without</b> a word"] in read.tables["Devices by round"]


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    folder = write_chain(tmp_path, 0, [])
    folder.metrics.write_text("")
    read = _Page(load_run(tmp_path))
    assert read.leads[1:] == ["The run has not recorded anything yet."]
    assert "Figures" not in read.headlines
