"""The page: one file, nothing fetched, nothing that a device wrote taken for HTML, every figure in words too."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from recorded_runs import write_run

pytest.importorskip("matplotlib")

from flwr_splitkd.report.html import page
from flwr_splitkd.report.load import load_run
from flwr_splitkd.report.words import differences, number, totals

HOSTILE = "a<script>alert(1)</script>&amp;"


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_what_others_wrote_is_text(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 2, ["0", HOSTILE], failing=HOSTILE, teacher=HOSTILE).path)
    read = _Page(page([run]))
    assert "script" not in {tag for tag, _ in read.tags}
    assert read.text.count(HOSTILE) >= 3  # in the table, twice, and in the settings
    assert "it left <b>without</b> a word" in read.text


def test_nothing_is_fetched_and_no_id_is_there_twice(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 2, ["0", "1"]).path)
    read = _Page(page([run, run]))
    for tag, attributes in read.tags:
        assert tag not in {"script", "iframe", "object", "img", "base"}
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:,")), (tag, target)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    styles = " ".join(str(attributes.get("style")) for _, attributes in read.tags)
    used = set(re.findall(r"url\(#([^)]+)\)", styles + page([run, run])))
    assert used <= set(ids)


def test_every_figure_says_what_it_shows(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 2, ["0", "1", "2"], failing="1").path)
    read = _Page(page([run]))
    words = [str(attributes["aria-label"]) for _, attributes in read.tags if attributes.get("role") == "img"]
    assert words == [
        "Loss from 3 in turn 1 to 0.5 in turn 6, lowest 0.5 in turn 6; 2 turns failed.",
        "Perplexity from 148.4 in turn 1 to 2.301 in turn 6, lowest 2.301 in turn 6; on the server 403.4 after round 0 and "
        "54.6 after round 2.",
        "Bytes up from 1 MiB in turn 1 to 1 MiB in turn 6, lowest 1 MiB in turn 1; down from 3 MiB in turn 1 to 3 MiB in "
        "turn 6, lowest 3 MiB in turn 1.",
        "3 devices over 4 turns of run: 2 turns at cut 1, 2 turns at cut 2.",
    ]


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    one = load_run(write_run(tmp_path / "one", 2, ["0", "1"], seed=1, cut={"class": "FixedCut", "cut": 2}).path)
    two = load_run(write_run(tmp_path / "two", 1, ["0", "1"], seed=2, cut={"class": "CutCycle"}).path)
    assert differences(one.config, two.config) == [
        ("strategy.seed", "1", "2"),
        ("strategy.cut.class", "FixedCut", "CutCycle"),
        ("strategy.cut.cut", "2", "–"),
    ]
    read = _Page(page([one, two]))
    assert "one against two" in read.text
    assert "strategy.cut.cut" in read.text
    assert {"Cuts: one", "Cuts: two", "Turns: one", "Turns: two"} <= set(read.text)
    assert "None: both runs have the same settings." in "".join(_Page(page([one, one])).text)


def test_a_run_that_recorded_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    read = _Page(page([load_run(tmp_path)]))
    assert "The run has not recorded anything yet." in read.text


def test_totals(tmp_path: Path) -> None:
    rows = totals(load_run(write_run(tmp_path / "run", 2, ["0", "1", "2"], failing="1").path))
    assert rows["Turns completed"] == "4"
    assert rows["Turns failed"] == "2"
    assert rows["Optimiser steps"] == "16"
    assert rows["Up, MiB"] == "4.00"
    assert rows["On the server after round 2: loss"] == "2"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.0, "0"),
        (1234567, "1,234,567"),
        (1039.73, "1,039.7"),
        (79.8412, "79.84"),
        (0.0000012, "1.2e-06"),
        (1.5e9, "1,500,000,000"),
        (True, "True"),
        ("text", "text"),
    ],
)
def test_numbers_as_people_read_them(value: object, text: str) -> None:
    assert number(value) == text
