"""What `flwr-splitkd new` makes runs at once, and its student is one that transformers loads."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from flower_harness import federation, newest
from flower_run import RAY_DID_NOT_START, alive
from import_graph import ROOT

pytest.importorskip("torch", reason="the app needs it, in processes of its own")


@pytest.mark.slow
def test_the_made_app_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("FLWR_SPLITKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # on a busy machine the threads of so small a model wait for each other
    subprocess.run([sys.executable, "-m", "flwr_splitkd", "new", "made-app"], check=True, cwd=tmp_path)
    # A short lesson will do for the teacher, too; the test below runs the app as it is made.
    task = tmp_path / "made-app" / "made_app" / "task.py"
    code = task.read_text()
    assert code.count("TEACHER_STEPS = 200\n") == 1
    task.write_text(code.replace("TEACHER_STEPS = 200\n", "TEACHER_STEPS = 50\n"))
    with federation("simulation", tmp_path / "logs", supernodes=2) as running:
        settings = {"num-server-rounds": 1, "max-batches": 6, "run-dir": str(tmp_path / "runs")}
        outcome = running.run(tmp_path / "made-app", settings, timeout_s=240.0)
    assert outcome.completed, outcome.tail()
    run = newest((tmp_path / "runs").iterdir())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    before, after = (line["perplexity"] for line in lines if line["kind"] == "evaluation")
    assert after < before
    assert json.loads((run / "config.json").read_text())["strategy"]["cut"] == {"class": "FixedCut", "cut": 2}
    student = AutoModelForCausalLM.from_pretrained(run / "student")
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    prompt = tokenizer("Return the ", return_tensors="pt", add_special_tokens=False)
    text = tokenizer.decode(student.generate(prompt.input_ids, max_new_tokens=5)[0])
    assert text.startswith("Return the ")


def _end_what_belongs_to(home: Path, ray: Path) -> None:
    """Flower leaves a local SuperLink, which has this home; Ray's processes name their folder."""
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("FLWR_HOME") == str(home) or str(ray) in " ".join(process.cmdline())
        except psutil.Error:
            continue
        if mine and process.pid != os.getpid():
            os.kill(process.pid, signal.SIGKILL)
            psutil.wait_procs([process], timeout=10)
            assert not alive(process)


@pytest.mark.by_hand
@pytest.mark.timeout(1200)
def test_from_a_fresh_environment_with_the_commands_of_the_readme(tmp_path: Path) -> None:
    """`flwr-splitkd new x && cd x && flwr run . --stream`, with what pip installs and nothing else."""
    torch = re.search(r"^TORCH := (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert torch is not None
    venv, home = tmp_path / "venv", tmp_path / "home"
    home.mkdir()
    ray = Path(tempfile.mkdtemp(prefix="skd-"))  # short: it gets UNIX sockets, whose paths are limited to 107 bytes
    environment: Mapping[str, str] = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("FLWR", "RAY", "VIRTUAL_ENV"))},
        "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SPLITKD_CACHE": str(tmp_path / "cache"),
        "RAY_TMPDIR": str(ray),
    }

    def run(*command: str, cwd: Path = tmp_path) -> str:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout[-4000:], done.stderr[-4000:])
        return done.stdout + done.stderr

    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", "*.egg-info"))
    run(sys.executable, "-m", "venv", str(venv))
    run("pip", "install", "--quiet", torch[1])
    run("pip", "install", "--quiet", f"{source}[simulation]")
    try:
        run("flwr-splitkd", "new", "x")
        output = run("flwr", "run", ".", "--stream", cwd=tmp_path / "x")
        if any(words in output for words in RAY_DID_NOT_START):
            output = run("flwr", "run", ".", "--stream", cwd=tmp_path / "x")
    finally:
        _end_what_belongs_to(home, ray)
        shutil.rmtree(ray, ignore_errors=True)
    assert "The student is in " in output, output[-4000:]
    student = Path(re.findall(r"The student is in (\S+)", output)[-1])
    check = (
        "import sys; from transformers import AutoModelForCausalLM\n"
        "print('parameters:', AutoModelForCausalLM.from_pretrained(sys.argv[1]).num_parameters())"
    )
    found = re.search(r"parameters: (\d+)", run("python", "-c", check, str(student)))
    assert found is not None and int(found[1]) > 100_000
