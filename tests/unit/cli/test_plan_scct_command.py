"""`flwr-splitkd plan --scct`, as a person calls it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from flwr_splitkd import cli
from flwr_splitkd.costs import ChainWorkload, chain_fleet_from_json, load_shape, table_iii_fleet
from flwr_splitkd.schedulers.chain import allocate_resources

ROOT = Path(__file__).parents[3]
SMALL = [
    "--scct",
    "--slm",
    "bert-base/4",
    "--batch-size",
    "2",
    "--positions",
    "64",
    "--iterations",
    "5",
    "--epochs",
    "3",
]
DEVICES: dict[str, Any] = {
    "van": {"profile": 1, "distance_m": 35},
    "[b]hut[/b] $5$": {"flops": 4e11, "gain_db": -98, "memory_bytes": 6.5e8},
    "gate": {"profile": "Jetson Orin NX 0.91 GHz", "distance_m": 120},
}
FLEET: dict[str, Any] = {"edge": {"flops": 2e12}, "radio": {"num_subcarriers": 30}, "devices": DEVICES, "draws": 5}


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    file = tmp_path / "chain.json"
    file.write_text(json.dumps(FLEET))
    return file


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", "plan", *arguments])
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert call(monkeypatch, *arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_fleet_of_ones_own(chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, *SMALL, "--fleet", str(chain)) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "bert-base/4 (4 layers) on 3 devices; edge: 2 TFLOPS, no bound on its memory; 30 subcarriers "
    )
    assert "3 epochs of 5 batches of 2 x 64 tokens" in shown and "on average over 5 draws" in shown
    assert "drawn" not in shown
    found = planned(monkeypatch, capsys, *SMALL, "--fleet", str(chain))
    for device in found["devices"]:
        # Whole lines and names, however narrow the terminal is.
        (line,) = [line for line in shown.splitlines() if line.strip().startswith(device["device"] + " ")]
        numbers = line.strip().removeprefix(device["device"])
        assert f" {device['split_point']} " in numbers and f" {device['subcarriers']} " in numbers
        assert f" {device['iteration_s']:.3g} " in numbers and f" {device['alone_s']:.3g} " in numbers
    assert "35 m " in shown and "-98 dB " in shown and "120 m blocked " in shown
    assert re.search(r"^ > SCCTT +\S+ ", shown, flags=re.MULTILINE) and "lower bound" in shown
    assert f"\n> {found['reason']}.\n> {found['typical_epoch_reason']}, in the typical epoch.\n" in shown


def test_json_is_what_the_schedulers_decide(
    chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(monkeypatch, capsys, *SMALL, "--fleet", str(chain), "--seed", "2")
    fleet = chain_fleet_from_json(chain, seed=2)
    work = ChainWorkload.from_shape(
        load_shape("bert-base/4"), batch_size=2, positions=64, iterations_per_epoch=5, epochs=3
    )
    allocation = allocate_resources(work, fleet.typical, found["split_points"])
    assert [device["device"] for device in found["devices"]] == list(DEVICES)
    assert [device["share"] for device in found["devices"]] == allocation.shares.tolist()
    assert [device["subcarriers"] for device in found["devices"]] == allocation.subcarriers.tolist()
    for name in ("device_s", "uplink_s", "edge_s", "downlink_s"):
        assert [device[name] for device in found["devices"]] == getattr(allocation.latency, name).tolist()
    assert found["typical_iteration_s"] == float(allocation.latency.slowest_s)
    assert found["round_s"] == pytest.approx(found["handover_s"] + 3 * found["epoch_s"])
    assert found["epoch_s"] == pytest.approx(5 * (found["slowest_s"] + found["cloud_link_s"]))
    assert found["lower_bound_s"] <= found["round_s"] == min(one["round_s"] for one in found["comparison"])
    assert [one["mechanism"] for one in found["comparison"]] == ["SCCTT", "SCCTL", "SCCTS at 1"]
    assert list(found["impossible"]) == ["SCCTS at 4"], "the hut has no memory for four layers"
    assert found["devices"][1]["memory_bytes"] == 6.5e8 and found["edge"]["memory_bytes"] is None
    other = planned(monkeypatch, capsys, *SMALL, "--fleet", str(chain), "--seed", "3")
    assert other["slowest_s"] != found["slowest_s"] and other["devices"][0]["flops"] == found["devices"][0]["flops"]


def test_options_of_the_work(chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--fleet", str(chain), "--mechanism", "SCCTS", "--split-point", "2"]
    plain = planned(monkeypatch, capsys, *arguments)
    assert (plain["mechanism"], plain["split_points"]) == ("SCCTS at 2", [2, 2, 2])
    half = planned(monkeypatch, capsys, *arguments, "--dtype", "float16")
    assert half["handover_s"] == pytest.approx(plain["handover_s"] / 2)
    moments = planned(monkeypatch, capsys, *arguments, "--moments", "2")
    assert moments["handover_s"] == pytest.approx(plain["handover_s"] * 3)
    assert planned(monkeypatch, capsys, *arguments, "--dtype", "float32") == plain
    drawn = planned(monkeypatch, capsys, *arguments, "--draws", "2")
    assert (plain["num_draws"], drawn["num_draws"]) == (5, 2) and drawn["slowest_s"] != plain["slowest_s"]
    assert planned(monkeypatch, capsys, *arguments, "--edge-memory", "4")["edge"]["memory_bytes"] == 2**32


def test_the_papers_fleet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a fleet; as the paper names neither speeds nor places, that is said."""
    arguments = [*SMALL, "--draws", "2", "--seed", "3"]
    assert call(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    assert "on 30 devices of table III; edge: 312 TFLOPS, 5,588 GiB; 200 subcarriers of 2 MHz; 1000 Mbit/s" in shown
    assert "names neither speeds nor places of devices: both are drawn, with seed 3." in shown
    found = planned(monkeypatch, capsys, *arguments)
    assert found["drawn_devices"] and len(found["devices"]) == 30
    assert [one["flops"] for one in found["devices"]] == table_iii_fleet(seed=3).typical.device_flops.tolist()
    assert sum(device["subcarriers"] for device in found["devices"]) == 200


def test_a_picture(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plan.png"
    assert call(monkeypatch, *SMALL, "--fleet", str(chain), "--plot", str(picture)) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in capsys.readouterr().out
    found = planned(monkeypatch, capsys, *SMALL, "--fleet", str(chain), "--plot", str(picture))
    assert len(found["devices"]) == 3, "only JSON on the standard output"
    assert call(monkeypatch, *SMALL, "--fleet", str(chain), "--plot", str(tmp_path / "no" / "plan.png")) == 1
    assert "`--plot` is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (
            {"radio": {"num_subcarriers": 2}},
            [],
            "`num_subcarriers` is 2; expected at least 3, one for each device. Let",
        ),
        (
            {},
            ["--batch-size", "4000"],
            "`memory_bytes` is 0.6054 GiB on [b]hut[/b] $5$; expected at least",
        ),
        ({}, ["--edge-memory", "0.1"], "`edge_bytes` is 0.1 GiB; expected at least "),
        ({}, ["--mechanism", "SCCTS", "--split-point", "4"], "`split_points` is 4; expected at most "),
    ],
)
def test_infeasible_is_exit_code_1_with_the_remedy(
    changes: dict[str, Any],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "chain.json"
    file.write_text(json.dumps({**FLEET, **changes}))
    assert call(monkeypatch, *SMALL, "--fleet", str(file), *arguments) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and message in shown.err


def test_the_edges_remedy_is_enough(
    chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL, "--fleet", str(chain), "--edge-memory"]
    assert call(monkeypatch, *arguments, "0.01") == 1
    remedy = re.search(r"expected at least ([\d.]+) GiB", capsys.readouterr().err)
    assert remedy
    assert planned(monkeypatch, capsys, *arguments, remedy[1])["split_points"][0] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--scct", "--student", "gpt2"],
            "`--student` is of split knowledge distillation; expected none of its options",
        ),
        (["--scct", "--max-delay", "5"], "`--max-delay` is of split knowledge distillation"),
        (["--scct", "--no-causal"], "`--causal` is of split knowledge distillation"),
        (["--positions", "5"], "`--positions` is of the chain; expected `--scct` with it"),
        (["--paper-algorithms"], "`--paper-algorithms` is of the chain; expected `--scct` with it"),
        (["--scct", "--slm", "gpt5"], "The model is 'gpt5'"),
        (["--scct", "--fleet", "no.json"], "The fleet no.json cannot be read"),
        (
            ["--scct", "--split-point", "13"],
            "`split_point` is 13; expected a finite number of at least 1 and at most 12",
        ),
        (["--scct", "--draws", "0"], "`draws` is 0; expected"),
        (["--scct", "--edge-memory", "0"], "`edge_memory` is 0.0; expected a finite number of more than 0 GiB"),
        (["--scct", "--positions", "0"], "`positions` is 0; expected"),
        (["--scct", "--moments", "-1"], "`moments` is -1; expected"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("flwr-splitkd: ") and error.count("\n") == 1 and message in error


def test_the_guides_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What docs/how-to/plan.md shows is what comes of its file."""
    (section,) = re.findall(
        r"^## A chain\n(.*?)^## ", (ROOT / "docs/how-to/plan.md").read_text(), re.DOTALL | re.MULTILINE
    )
    blocks = dict(re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))
    (tmp_path / "chain.json").write_text(blocks["json"])
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "--scct", "--fleet", "chain.json") == 0
    lines = {line.rstrip() for line in capsys.readouterr().out.splitlines()}
    assert [line for line in blocks[""].splitlines() if line != "..." and line not in lines] == []
