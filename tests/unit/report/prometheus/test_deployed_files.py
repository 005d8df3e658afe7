"""The dashboard, Prometheus' configuration and the page about them: every name in them is one that is served."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded_runs import device, epoch, turns

pytest.importorskip("prometheus_client")

from prometheus_client.exposition import generate_latest as plain_text
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from test_cloud_metrics import READING

from flwr_splitkd.callbacks import LiveReading
from flwr_splitkd.faults import FAULTS
from flwr_splitkd.report.prometheus.cloud_metrics import cloud_metrics
from flwr_splitkd.report.prometheus.families import Asked
from flwr_splitkd.report.prometheus.run_metrics import RunMetrics
from flwr_splitkd.tiers.cloud.counters import REQUESTS, STAGES
from flwr_splitkd.wire.server import SESSION_STATES
from import_graph import ROOT

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "splitkd.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "how-to" / "metrics.md").read_text(encoding="utf-8")
NAME = re.compile(r"\b(?:splitkd|process)_[a-z_]+\b")
PROMTOOL = shutil.which("promtool")
SUFFIXES = re.compile(r"_(created|bucket|count|sum)$")


def _served() -> Iterator[tuple[str, dict[str, str]]]:
    """Every series that a run of either kind can have, or a cloud."""
    live = LiveReading(sessions=dict.fromkeys(SESSION_STATES, 0), num_steps=1)
    for name in ("SplitKD", "SCCT"):
        config = {"strategy": {"name": name, "planner": {"modelled": True}}, "versions": {"flwr": "1"}}
        metrics = RunMetrics("run", config, max_devices=8)
        metrics.watch(lambda: live)
        (turn,) = turns(1, ["orin"])
        costs = {"predicted_j": 1.0, "modelled_j": 1.0, "measured_device_j": 1.0, "measured_edge_j": 1.0}
        if name == "SCCT":
            metrics.epoch(epoch(1, 1))
            metrics.device(device(1, 1, "orin"))
        else:
            metrics.turn(replace(turn, costs=costs))
        metrics.evaluation({"loss": 1.0})
        for family in metrics.registry.collect():
            yield from ((sample.name, sample.labels) for sample in family.samples)
    for family in cloud_metrics(READING):
        yield from ((sample.name, sample.labels) for sample in family.samples)


SERVED = list(_served())
NAMES = {name for name, _ in SERVED}


def _targets() -> list[tuple[str, str]]:
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]


@pytest.mark.parametrize("name", ["SplitKD", "SCCT"])
def test_names_and_types_are_those_of_openmetrics(name: str) -> None:
    """Its parser is stricter than Prometheus' own: reserved suffixes, units, order, doubles."""
    config = {"strategy": {"name": name, "planner": {"modelled": True}}, "versions": {"flwr": "1"}}
    metrics = RunMetrics("run", config, max_devices=8)
    metrics.watch(lambda: LiveReading(sessions=dict.fromkeys(SESSION_STATES, 0), num_steps=1))
    metrics.registry.register(Asked(lambda: cloud_metrics(READING)))
    assert len(list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))) > 30


def test_the_page_has_every_metric_and_no_other() -> None:
    ours = {name for name in NAMES if name.startswith("splitkd_") and not name.endswith("_created")}
    documented = {name for name in NAME.findall(PAGE) if name.startswith("splitkd_")}
    families = {SUFFIXES.sub("", name) if SUFFIXES.sub("", name) in documented else name for name in ours}
    assert sorted(families - documented) == []
    assert sorted(documented - families) == []


@pytest.mark.parametrize("metric", sorted({name for _, expr in _targets() for name in NAME.findall(expr)}))
def test_the_dashboard_asks_for_what_is_served(metric: str) -> None:
    assert metric in NAMES


def test_the_dashboard_names_labels_and_values_that_there_are() -> None:
    values: dict[str, set[str]] = {}
    for _, labels in SERVED:
        for label, value in labels.items():
            values.setdefault(label, set()).add(value)
    for title, expr in _targets():
        for label, value in re.findall(r'(\w+)="([^"]*)"', expr):
            assert value in values[label], title
        for labels in re.findall(r"\bby \(([^)]*)\)", expr):
            assert set(labels.split(", ")) <= {*values, "le"}, title


def test_the_page_has_every_value_of_the_labels() -> None:
    tables = " ".join(line for line in PAGE.splitlines() if line.startswith("|"))
    shown = set(re.findall(r"\b[a-z_]+\b", tables))
    for values in (FAULTS, REQUESTS, STAGES, SESSION_STATES):
        assert [value for value in values if value not in shown] == []
    stages = {labels["stage"] for name, labels in SERVED if name == "splitkd_stage_seconds_total"}
    assert [stage for stage in stages if f"`{stage}`" not in PAGE] == []


# ---- the dashboard as Grafana loads it


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    assert DASHBOARD["id"] is None and DASHBOARD["uid"] and DASHBOARD["schemaVersion"] == 39
    assert f"Schema {DASHBOARD['schemaVersion']}" in PAGE
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource" and variables["datasource"]["query"] == "prometheus"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    known = {*variables, "__rate_interval", "__range", "__all"}
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("timeseries", "stat") and panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)) >= 1
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= known, panel["title"]
            assert target["datasource"] == panel["datasource"]
            assert target["instant"] is not target["range"], panel["title"]


@pytest.mark.parametrize("title", ["Run", "Runs for", "Ready", "Edges", "Not durable", "Open connections"])
def test_what_is_shown_as_of_now_is_of_now(title: str) -> None:
    """The last of a range of values would go on to be shown of a cloud that is dead, for as long as the range."""
    (panel,) = (panel for panel in DASHBOARD["panels"] if panel["title"] == title)
    assert [target["instant"] for target in panel["targets"]] == [True]


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"], panel["title"]


def test_prometheus_reads_where_the_page_and_the_defaults_say() -> None:
    text = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    assert re.findall(r'targets: \["([^"]*)"\]', text) == ["127.0.0.1:9464", "127.0.0.1:9465"]
    assert "127.0.0.1:9464" in PAGE and "127.0.0.1:9465" in PAGE


def test_what_is_installed_for_edge_and_cloud_can_serve_metrics() -> None:
    script = (ROOT / "deploy" / "install.sh").read_text(encoding="utf-8")
    extras = dict(re.findall(r"^(\w+)\) extras=\$\{extras:-([\w,]+)\} ;;$", script, re.MULTILINE))
    assert {role for role, names in extras.items() if "prometheus" in names.split(",")} == {"edge", "cloud"}


# ---- Prometheus' own opinion


def _promtool(*arguments: str, text: str = "") -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not there; Debian's package prometheus has it")
def test_promtool_has_nothing_to_say(tmp_path: Path) -> None:
    _promtool("check", "config", str(ROOT / "deploy" / "prometheus" / "prometheus.yml"))
    alerts = PAGE.partition("## Worth an alert")[2].split("```")[1]
    expressions = [line for line in alerts.splitlines() if line and not line.startswith("#")]
    assert len(expressions) > 3
    rules = [{"alert": f"Alert{number}", "expr": expr} for number, expr in enumerate(expressions)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "page", "rules": rules}]}))
    _promtool("check", "rules", str(tmp_path / "rules.yml"))


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not there; Debian's package prometheus has it")
@pytest.mark.parametrize("name", ["SplitKD", "SCCT"])
def test_promtool_finds_the_names_good(name: str) -> None:
    config = {"strategy": {"name": name, "planner": {"modelled": True}}, "versions": {"flwr": "1"}}
    metrics = RunMetrics("run", config, max_devices=8)
    metrics.watch(lambda: LiveReading(sessions=dict.fromkeys(SESSION_STATES, 0), num_steps=1))
    if name == "SCCT":
        metrics.epoch(epoch(1, 1))
        metrics.registry.register(Asked(lambda: cloud_metrics(READING)))
    _promtool("check", "metrics", text=plain_text(metrics.registry).decode())
