"""`flwr-splitkd new`: names, folders, and that what it makes is whole. tests/apps runs it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from flwr_splitkd import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["flwr-splitkd", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_what_it_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "new", "My-first.app") == 0
    assert "cd My-first.app" in capsys.readouterr().out
    made = {str(path.relative_to(tmp_path / "My-first.app")) for path in (tmp_path / "My-first.app").rglob("*.*")}
    package = {f"my_first_app/{name}.py" for name in ("__init__", "client_app", "server_app", "task")}
    assert made == {"README.md", "pyproject.toml", ".gitignore", *package}
    for name in made:
        text = (tmp_path / "My-first.app" / name).read_text()
        assert "$" not in text, name
        if name.endswith(".py"):
            ast.parse(text, feature_version=(3, 10))
    project = (tmp_path / "My-first.app" / "pyproject.toml").read_text()
    assert 'name = "My-first.app"' in project
    assert 'serverapp = "my_first_app.server_app:app"' in project


def test_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    assert call(monkeypatch, "new", "x", "--directory", str(tmp_path / "empty")) == 0
    assert (tmp_path / "empty" / "x" / "server_app.py").exists()


@pytest.mark.parametrize("name", ["1app", "-x", "a b", "a/b", "app!", "class", "", "app-"])
def test_names_that_are_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "new", "--", name) == 1
    assert f"`name` is {name!r}; expected letters" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["flwr", "json", "Flwr-SplitKD"])
def test_names_that_are_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "new", name) == 1
    assert "is installed already; choose another" in capsys.readouterr().err


def test_nothing_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    assert call(monkeypatch, "new", "x") == 1
    assert "x exists; expected a new or an empty folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["mine.txt"]


def test_help_and_version_are_quick_and_light() -> None:
    code = (
        "import sys; sys.argv = ['flwr-splitkd', '--help']\n"
        "from flwr_splitkd.cli import main\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib', 'flwr') if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "report" in output and "new" in output
    assert output.rstrip().endswith("[]")
    command = [sys.executable, "-m", "flwr_splitkd", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith("flwr_splitkd 0.")
