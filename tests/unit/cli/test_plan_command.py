"""`flwr-splitkd plan`, as a person calls it."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from flwr_splitkd import cli
from flwr_splitkd.costs import (
    TABLE_II_DEVICES,
    TABLE_II_SERVER,
    LinkState,
    Workload,
    cut_terms,
    named_shape,
    to_json,
)
from flwr_splitkd.schedulers import plan_cut_and_frequency

SMALL = ["--student", "gpt2/6", "--teacher", "gpt2-medium", "--link", "wired-100m"]
WORKLOAD = Workload(
    batch_size=8,
    sequence_length=512,
    num_batches=50,
    activation_bytes=2,
    weight_bytes=2,
    moments=0,
    causal=True,
)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", "plan", *arguments])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0
) -> list[dict[str, Any]]:
    assert call(monkeypatch, *arguments, "--json") == code
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_the_paper_s_case(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("llama-3.2-1b (16 blocks) taught by llama-3.1-8b (32 blocks), server RTX 4090.\n")
    assert "Jetson AGX Orin 1.3 GHz: " in shown and "(50 m, line of sight, " in shown
    rows = re.findall(r"^ (>?) +(\d+) +[\d.]+ ", shown, flags=re.MULTILINE)
    assert [int(cut) for _, cut in rows] == list(range(1, 16))
    assert [int(cut) for mark, cut in rows if mark] == [1]
    assert "> cut 1, codec none, server at 0.21 GHz: " in shown


def test_json_is_what_the_planner_decides(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, "--device", "5", "--max-delay", "70", "--codecs", "none,int8", "--min-cut", "2"]
    (one,) = planned(monkeypatch, capsys, *arguments)
    device = TABLE_II_DEVICES[4]
    terms = cut_terms(named_shape("gpt2/6"), named_shape("gpt2-medium"), WORKLOAD, device, codecs=("none", "int8"))
    decision = plan_cut_and_frequency(
        terms,
        device=device,
        server=TABLE_II_SERVER,
        link=LinkState(uplink_bps=1e8, downlink_bps=1e8),
        max_delay_s=70,
        min_cut=2,
    )
    assert one["decision"]["reason"] == decision.reason
    assert (one["device"], one["profile"], one["uplink_bps"]) == (device.name, device.name, 1e8)
    options = {(option["cut"], option["codec"]): option for option in one["options"]}
    assert list(options) == [(cut, codec) for codec in ("none", "int8") for cut in range(1, 6)]
    chosen = options[decision.cut, decision.codec]
    assert chosen["total_s"] == pytest.approx(decision.cost.total_s)
    assert chosen["total_j"] == pytest.approx(decision.cost.total_j)
    for option in options.values():
        stages = sum(option[f"{stage}_s"] for stage in ("device", "uplink", "server", "downlink", "other"))
        assert stages == pytest.approx(option["total_s"])
    assert options[1, "int8"]["violations"] == {"min_cut": 1}


def test_infeasible_is_exit_code_1_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *SMALL, "--max-delay", "5") == 1
    shown = capsys.readouterr()
    assert shown.out.count(" delay") == 5 and "> cut" not in shown.out
    assert shown.err.startswith("flwr-splitkd: No cut of 1..5 is feasible for Jetson AGX Orin 1.3 GHz within 5 s")
    remedy = re.search(r"raise `max_delay_s` to ([\d.]+) s", shown.err)
    assert remedy
    (one,) = planned(monkeypatch, capsys, *SMALL, "--max-delay", remedy[1])
    assert one["decision"]["cut"] == 1
    (one,) = planned(monkeypatch, capsys, *SMALL, "--max-delay", "5", code=1)
    assert one["decision"] is None and "raise `max_delay_s`" in one["infeasible"]


def test_micro_batches_spare_the_server_memory_and_take_no_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (whole,), (four,) = (planned(monkeypatch, capsys, *SMALL, "--microbatches", parts) for parts in ("1", "4"))
    for one, other in zip(whole["options"], four["options"], strict=True):
        assert one["total_s"] == other["total_s"] and one["total_j"] == other["total_j"]
        assert one["server_memory_bytes"] > other["server_memory_bytes"]
    assert call(monkeypatch, *SMALL, "--microbatches", "4") == 0
    assert re.search(
        r"A turn: \d+ batches of \d+ x \d+ tokens in 4 micro-batches; no moments\.\n", capsys.readouterr().out
    )


def test_battery(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (free,) = planned(monkeypatch, capsys, *SMALL)
    spent = [option["device_compute_j"] + option["device_transmit_j"] for option in free["options"]]
    between = str((spent[2] + spent[3]) / 2)
    (bound,) = planned(monkeypatch, capsys, *SMALL, "--battery", between)
    assert ["battery" in option["violations"] for option in bound["options"]] == [False] * 3 + [True] * 2


def test_several_devices_and_profiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    board, edge = tmp_path / "board.json", tmp_path / "edge.json"
    board.write_text(json.dumps({**to_json(TABLE_II_DEVICES[2]), "name": "board"}))
    edge.write_text(json.dumps({**to_json(TABLE_II_SERVER), "name": "edge", "static_power_w": 80}))
    devices = ["--device", str(board), "--device", "9", "--device", "10", "--server", str(edge)]
    found = planned(monkeypatch, capsys, *SMALL, *devices)
    names = ["board", "Jetson AGX Xavier 1.2 GHz", "Jetson AGX Xavier 1.2 GHz (3)"]
    assert [one["device"] for one in found] == names
    assert {one["server"] for one in found} == {"edge"}
    assert all(option["server_static_j"] > 0 for option in found[0]["options"])
    assert call(monkeypatch, *SMALL, *devices) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name}: 100 Mbit/s up" in shown for name in names)


def test_a_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fleet.json"
    weak = {"name": "weak", "frequency_hz": 1e9, "cores": 64, "memory_bytes": 1e6}
    devices = {"0": {"profile": 1}, "van": {"profile": 7, "link": "poor"}, "weak": {"profile": weak}}
    file.write_text(json.dumps({"server": "RTX 4090", "devices": devices}))
    models = SMALL[:4]
    assert call(monkeypatch, *models, "--fleet", str(file)) == 1
    shown = capsys.readouterr()
    assert "0: Jetson AGX Orin 1.3 GHz" in shown.out and "van: Jetson Orin NX 0.76 GHz" in shown.out
    assert "weak" in shown.out and "not feasible" in shown.out and "A round of 2 turns" in shown.out
    assert "No cut of 1..5 is feasible for weak" in shown.err and "of memory" in shown.err
    found = planned(monkeypatch, capsys, *models, "--fleet", str(file), "--seed", "1", code=1)
    again = planned(monkeypatch, capsys, *models, "--fleet", str(file), "--seed", "1", code=1)
    other = planned(monkeypatch, capsys, *models, "--fleet", str(file), "--seed", "2", code=1)
    assert found == again
    assert found[1]["uplink_bps"] != other[1]["uplink_bps"]


def test_a_radio_s_distance(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    poor = json.dumps({"kind": "radio", "preset": "poor"})
    rates = [
        planned(monkeypatch, capsys, *SMALL, "--link", link, "--distance", distance)[0]["uplink_bps"]
        for link, distance in ((poor, "40"), (poor, "200"), ("poor", "200"), ("good", "200"))
    ]
    assert rates[0] > rates[1] == rates[2] and rates[3] > rates[2]
    assert all(math.isfinite(rate) and rate > 0 for rate in rates)


def test_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plan.png"
    arguments = [*SMALL, "--codecs", "none,int8", "--min-cut", "3", "--plot", str(picture)]
    assert call(monkeypatch, *arguments) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in capsys.readouterr().out
    assert planned(monkeypatch, capsys, *arguments)[0]["decision"]["cut"] == 3, "only JSON on the standard output"
    assert call(monkeypatch, *SMALL, "--plot", str(tmp_path / "no" / "plan.png")) == 1
    assert "`--plot` is" in capsys.readouterr().err


def test_no_teacher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (alone,) = planned(monkeypatch, capsys, *SMALL, "--teacher", "none", "--frequency", "max")
    (taught,) = planned(monkeypatch, capsys, *SMALL, "--frequency", "max")
    for without, with_one in zip(alone["options"], taught["options"], strict=True):
        assert without["server_s"] < with_one["server_s"] and without["uplink_s"] < with_one["uplink_s"]
        assert without["device_s"] == with_one["device_s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "11"], "The device is '11', and there is no file 11; expected 1..10"),
        (["--server", "A100"], "The server is 'A100'"),
        (["--student", "gpt5"], "The model is 'gpt5'"),
        (["--link", "wire"], "A link is 'wire'"),
        (["--link", "{"], "`--link` is '{', which cannot be read"),
        (["--link", "no.json"], "`--link` is 'no.json', which cannot be read"),
        (["--link", "wired-1g", "--distance", "5"], "`--distance` is 5 with the link 'wired-1g'; expected a radio"),
        (["--link", "good", "--distance", "-5"], "`--distance` is -5; expected at least 0 m"),
        (["--codecs", "zip"], "The codec is 'zip'"),
        (["--codecs", " "], "`codecs` is empty"),
        (["--max-delay", "0"], "`max_delay_s` is 0.0"),
        (["--batch-size", "0"], "`batch_size` is 0"),
        (["--fleet", "f.json", "--device", "1"], "leave out --device"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--student", "gpt2", "--teacher", "gpt2-medium"]
    assert call(monkeypatch, *models, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("flwr-splitkd: ") and error.count("\n") == 1 and message in error


def test_a_fleet_of_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fleet.json"
    file.write_text("{}")
    assert call(monkeypatch, "--fleet", str(file)) == 1
    assert "has no devices; expected at least one" in capsys.readouterr().err
