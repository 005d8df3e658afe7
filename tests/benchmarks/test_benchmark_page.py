"""Benchmarks' figures as one page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_page", BENCHMARKS / "_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_result_is_on_the_page_and_what_did_not_run_is_named() -> None:
    result = {
        "benchmark": "kd_loss (quick)",
        "command": "python benchmarks/kd_loss.py --json runs/bench/kd_loss.json --quick --with /home/somebody/env/bin/python",
        "commit": "0123456789abcdef",
        "rows": [
            {"name": "time", "value": 0.5, "unit": "s", "reference": 0.25, "ratio": 2.0, "spread": 0.01, "n": 5},
            {"name": "memory", "value": 12345.6, "unit": "MB", "low": 1.0, "high": 2.0},
        ],
        "conditions": {"machine": "x86_64 with 2 cores", "load": "0.1"},
        "notes": ["bound 2.5: met"],
    }
    page = _module().page([result], ["codec", "kd_loss"])
    assert "## kd_loss (quick)\n" in page
    assert "`python benchmarks/kd_loss.py --quick --with python` at" in page, "no folders of one machine"
    assert "at 0123456789ab; machine x86_64 with 2 cores, load 0.1" in page
    assert "| time | 0.5 | s | 0.25 | 2 | 0.01 | 5 |" in page
    assert "| memory | 12,346 | MB |  |  | 1 to 2 | 1 |" in page
    assert "bound 2.5: met" in page
    assert page.rstrip().endswith("## Not run\n\n`codec.py`")
