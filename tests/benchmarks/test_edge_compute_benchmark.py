"""The benchmark of the edge's options in its smallest form, to its end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "edge_compute.py"


@pytest.mark.by_hand  # the compiler takes its time
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch compiles for a processor with a C++ compiler")
def test_every_option_has_a_row_and_a_reference(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--quick", "--device", "cpu", "--json", str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in written["rows"]] == ["bfloat16", "compiled blocks", "fused optimiser", "all three"]
    for row in written["rows"]:
        assert row["value"] > 0 and row["reference"] > 0 and row["ratio"] > 0 and row["n"] == 2
    assert "compiled blocks" in done.stdout and len(written["notes"]) == 1 + len(written["rows"])
