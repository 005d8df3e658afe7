"""The systemd units and their files of settings, read as systemd reads them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sysconfig
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from import_graph import ROOT

__all__ = [
    "BIN",
    "SYSTEMD",
    "UNITS",
    "command_line",
    "environment_text",
    "for_older_flower",
    "options_of",
    "read_environment",
    "read_unit",
    "unit_text",
]

SYSTEMD = ROOT / "deploy" / "systemd"
UNITS = {"flower-superlink": "edge", "flower-supernode": "device", "flwr-splitkd-cloud": "cloud"}
BIN = "/opt/flwr_splitkd/bin"


def read_unit(text: str) -> dict[str, list[str]]:
    """Every setting with its values in order, whatever its section; see systemd.syntax(7)."""
    settings: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            settings.setdefault(name, []).append(value.strip())
    return settings


def read_environment(text: str) -> dict[str, str]:
    """An EnvironmentFile, as systemd.exec(5) describes it: one pair of quotes around a value is not part of it."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            values[name] = value[1:-1] if quoted else value
    return values


def command_line(unit: Mapping[str, list[str]], environment: Mapping[str, str]) -> list[str]:
    """What ExecStart becomes: ``$NAME`` as a word becomes its words, ``${NAME}`` its value as it is; see systemd.service(5)."""
    (text,) = unit["ExecStart"]
    words: list[str] = []
    for word in shlex.split(text):
        if re.fullmatch(r"\$\w+", word):
            words += environment[word[1:]].split()
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda found: environment[found[1]], word))
    return words


def for_older_flower(text: str) -> str:
    """The environment file with the lines for Flower 1.30 in place of those for newer ones."""
    lines = text.splitlines()
    older = {line[1:].partition("=")[0] for line in lines if re.match(r"#[A-Z_]+=", line)}
    kept = [line for line in lines if line.partition("=")[0] not in older]
    return "\n".join(line[1:] if re.match(r"#[A-Z_]+=", line) else line for line in kept)


@lru_cache
def options_of(program: str) -> set[str]:
    done = subprocess.run(
        [Path(sysconfig.get_path("scripts")) / program, "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"--[a-z][a-z-]+", done.stdout))


def unit_text(unit: str) -> str:
    return (SYSTEMD / f"{unit}.service").read_text(encoding="utf-8")


def environment_text(unit: str) -> str:
    return (SYSTEMD / f"{UNITS[unit]}.env").read_text(encoding="utf-8")
