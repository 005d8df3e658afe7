"""The page: one file, nothing fetched, nothing that a device wrote taken for HTML, every figure in words too."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from recorded_runs import old_run, write_run

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
        "Measured seconds from 1.5 in turn 1 to 1.5 in turn 6, lowest 1.5 in turn 1; device 33.3 %, uplink 13.3 %, server "
        "26.7 %, downlink 6.7 %, set-up, commits 13.3 %, other 6.7 %.",
    ]


def test_modelled_figures_in_words(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", 1, ["0", "1", "2"], costs="modelled", waited_s=2.5).path)
    read = _Page(page([run]))
    words = [str(attributes["aria-label"]) for _, attributes in read.tags if attributes.get("role") == "img"]
    assert words[5:] == [
        "Modelled seconds from 13 in turn 1 to 9 in turn 3, lowest 9 in turn 3; device 34.8 %, uplink 31.9 %, server 17.4 %, "
        "downlink 8.7 %, out of reach 7.2 %; predicted totals off by 4 % in the median.",
        "Perplexity on the server from 403.4 at 0 s of modelled time to 54.6 at 34.5 s of modelled time, lowest 54.6.",
        "Perplexity on the server from 403.4 at 0 J of modelled energy to 54.6 at 74.5 J of modelled energy, lowest 54.6.",
        "Modelled energy from 26 J in turn 1 to 24 J in turn 3, lowest 24 J in turn 3; late turns: 1.",
    ]


def test_decisions_can_be_unfolded(tmp_path: Path) -> None:
    devices = ["0", HOSTILE]
    planned = load_run(write_run(tmp_path / "planned", 1, devices, costs="planned").path)
    world = load_run(write_run(tmp_path / "world", 1, devices, costs="modelled").path)
    read = _Page(page([planned, world]))
    heads = ["Turn", "Device", "Cut", "Codec", "Clock, GHz", "Predicted, s"]
    first, second = read.text.index("Decisions: planned"), read.text.index("Decisions: world")
    assert read.text[first + 1 : first + 10] == [*heads, "Measured, s", "Predicted, J", "Reason"]
    assert read.text[first + 10 : first + 18] == ["1", "0", "2", "int8", "1.50", "13", "1.5", "26"]
    assert read.text[first + 18].startswith("cut 2, codec int8, server at 1.50 GHz: 26 J in 13 s; clock set by delay")
    assert read.text[second + 1 : second + 11] == [*heads, "Modelled, s", "Predicted, J", "Modelled, J", "Reason"]
    late = second + 11 + 10
    assert read.text[late : late + 9] == ["2", HOSTILE, "3", "int8", "1.50", "13", "10 (late)", "26", "24.5"]


def test_nothing_is_said_of_costs_that_a_run_does_not_have(tmp_path: Path) -> None:
    text = "".join(_Page(page([old_run(tmp_path / "old")])).text)
    assert "odelled" not in text
    assert "Decisions" not in text
    assert "Measured seconds" not in text


def test_joules_have_columns_where_some_were_measured(tmp_path: Path) -> None:
    with_joules = page([load_run(write_run(tmp_path / "with", 1, ["0", "1", "2"], failing="1", joules=True).path)])
    without = page([load_run(write_run(tmp_path / "without", 1, ["0"]).path)])
    assert '<th scope="col">Device, J</th><th scope="col">Edge, J</th></tr>' in with_joules
    assert "<td>8</td><td>20</td></tr>" in with_joules and "<td>8</td><td>–</td></tr>" in with_joules
    assert 'colspan="14"' in with_joules  # of the turn that failed
    assert "Device, J" not in without


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


def test_totals_of_costs(tmp_path: Path) -> None:
    planned = totals(load_run(write_run(tmp_path / "planned", 1, ["0", "1"], costs="planned").path))
    assert planned["Median prediction error: device"] == "700 %"
    assert planned["Median prediction error: uplink"] == "15 %"
    world = totals(load_run(write_run(tmp_path / "world", 1, ["0", "1"], costs="modelled").path))
    assert world["Modelled time, s"] == "23"
    assert world["Modelled energy, J"] == "50.5"
    assert world["Modelled energy of devices, J"] == "12.5"
    assert world["Turns late in modelled time"] == "1"
    assert world["Median prediction error: uplink, modelled"] == "50 %"
    assert not [name for name in world if "modelled-" in name]
    assert not [name for name in totals(old_run(tmp_path / "old")) if "odelled" in name or "prediction" in name]


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
