"""The README's code, verbatim, as an app of two files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flower_harness import federation, newest
from import_graph import ROOT

pytest.importorskip("torch", reason="the app needs it, in processes of its own")


def readme_app(folder: Path) -> Path:
    """Write the README's files."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"`(\w+_app\.py)`:\n\n```python\n(.*?)```", readme, flags=re.DOTALL))
    assert set(blocks) == {"server_app.py", "client_app.py"}
    package = folder / "my_app"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name, code in blocks.items():
        (package / name).write_text(code)
    project = re.search(r"```toml\n(.*?)```", readme, flags=re.DOTALL)
    assert project is not None
    (folder / "pyproject.toml").write_text(project[1])
    return folder


@pytest.mark.slow
def test_the_readme_app_runs(tmp_path: Path) -> None:
    with federation("simulation", tmp_path / "logs", supernodes=3) as running:
        outcome = running.run(readme_app(tmp_path / "app"), timeout_s=240.0)
        assert outcome.completed, outcome.tail()
        # It writes below the ServerApp's working directory, which ends with the federation.
        root = Path(str(running.home)).parent
        metrics = newest(root.rglob("metrics.jsonl")).read_text().splitlines()
        assert list(root.rglob("student/model.safetensors"))
    turns = [json.loads(line) for line in metrics if json.loads(line)["kind"] == "turn"]
    assert len(turns) == 9
    assert {turn["cut"] for turn in turns} == {4}
    assert all("error" not in turn for turn in turns)
    assert "9 of 9 turns completed" in outcome.log
