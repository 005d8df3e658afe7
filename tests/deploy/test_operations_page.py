"""What the pages for whoever operates it name exists: files, commands and their options, run config, ports."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from flwr_splitkd.cli import app
from flwr_splitkd.wire.handshake import PROTOCOL_VERSION
from import_graph import ROOT
from unit_files import environment_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OPERATIONS = ROOT / "docs" / "how-to" / "operations.md"
DEPLOY = ROOT / "deploy" / "README.md"
PAGES = [OPERATIONS, DEPLOY]
NEIGHBOURS = [ROOT / "docs" / "how-to" / name for name in ("deployment.md", "doctor.md", "metrics.md")]


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands(page: Path) -> list[str]:
    """Every command of the page's shell blocks, continued lines joined, comments gone."""
    blocks = re.findall(r"```bash\n(.*?)```", text(page), flags=re.DOTALL)
    joined = [re.sub(r"\\\n\s*", "", block) for block in blocks]
    return [line.partition("  #")[0].strip() for block in joined for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("page", [*PAGES, *NEIGHBOURS], ids=lambda page: page.name)
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert not re.findall(r"@@|TODO|FIXME|XXX", text(page))


@pytest.mark.parametrize("page", [*PAGES, *NEIGHBOURS], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text(page)):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [*PAGES, *NEIGHBOURS], ids=lambda page: page.name)
def test_anchors(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", text(page)):
        other = (page.parent / target) if target else page
        headings = re.findall(r"^#+ (.+)$", text(other), flags=re.MULTILINE)
        names = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in names, f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_this_repository(page: Path) -> None:
    found = set(re.findall(r"(?<![/\w.])((?:deploy|scripts|apps)/[\w./*-]+)", "\n".join(commands(page))))
    assert found
    for name in found:
        assert list(ROOT.glob(name.rstrip("/"))), name


@pytest.mark.parametrize("page", [*PAGES, *NEIGHBOURS[:2]], ids=lambda page: page.name)
def test_our_own_commands(page: Path) -> None:
    known: Any = typer.main.get_command(app)
    used = re.findall(r"flwr-splitkd ([a-z][\w-]*)([^\n`|;]*)", text(page))
    assert used
    for name, rest in used:
        if name not in known.commands:
            # `flwr-splitkd` as a name of files, images and the account
            assert not rest.strip().startswith("-"), name
            continue
        options = {option for parameter in known.commands[name].params for option in parameter.opts}
        given = set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", re.sub(r"\$\(.*", "", rest)))
        assert given <= options, f"flwr-splitkd {name}: {sorted(given - options)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_installation_scripts_options(page: Path) -> None:
    usage = text(ROOT / "deploy" / "install.sh").partition("TEXT\n}")[0]
    known = set(re.findall(r"--[a-z-]+", usage))
    lines = [line for line in commands(page) if "install.sh" in line]
    assert lines
    for line in lines:
        assert set(re.findall(r"(?<=\s)--[a-z-]+", line.partition("install.sh")[2])) <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_run_config_keys(page: Path) -> None:
    runs = re.findall(r"flwr run (\S+) edge --stream -c '(.*?)'", text(page), flags=re.DOTALL)
    assert runs
    for folder, pairs in runs:
        project = tomllib.loads(text(ROOT / "apps" / Path(folder).name / "pyproject.toml"))
        known = project["tool"]["flwr"]["app"]["config"]
        given = set(re.findall(r"([a-z][a-z-]+)=", re.sub(r'"[^"]*"', '""', pairs)))
        assert given and given <= set(known), sorted(given - set(known))


def test_ports_of_the_firewall_table() -> None:
    page = text(OPERATIONS)
    table = page.partition("## Firewall")[2].partition("Devices need no open port")[0]
    for unit in ("flower-superlink", "flower-supernode"):
        for port in re.findall(r"(?:--port |:)(\d{4})\b", environment_text(unit).partition("FLOWER_ADDRESSES")[2]):
            assert port in table, port
    nginx = text(ROOT / "deploy" / "fleet-only.nginx.conf")
    assert re.findall(r"listen (\d+)", nginx) == ["8443"] and "| 8443" in table
    assert "location /v1/fleet/ {" in nginx and "return 404;" in nginx


def test_an_environment_in_use_is_a_link() -> None:
    """A virtual environment cannot be moved, so that an update is another folder: no unit's path is installed into."""
    for page in PAGES:
        folders = re.findall(r"(?:--into|-m venv) (/opt/\S+)", "\n".join(commands(page)))
        assert folders and all(re.fullmatch(r"/opt/flwr_splitkd\.\d", folder) for folder in folders), page.name
        assert "ln -sfn flwr_splitkd.1 /opt/flwr_splitkd" in text(page)


def test_the_version_of_the_protocol() -> None:
    assert f"(version {PROTOCOL_VERSION})" in text(OPERATIONS)
    assert f"expected {PROTOCOL_VERSION}. Install the same flwr_splitkd" in text(OPERATIONS)
