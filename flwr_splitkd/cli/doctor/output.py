"""What `flwr-splitkd doctor` shows: a table of everything, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flwr_splitkd.cli.doctor.finding import Finding, Status, exit_code

__all__ = ["findings_json", "print_findings"]

_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.WRONG: "bold red", Status.SKIPPED: "dim"}


def findings_json(role: str, found: Mapping[str, Sequence[Finding]]) -> dict[str, Any]:
    """The findings as JSON takes them.

    Parameters
    ----------
    role
        Of the machine.
    found
        What each check found, by its name.
    """
    return {
        "role": role,
        "exit_code": exit_code(finding for findings in found.values() for finding in findings),
        "findings": [
            {
                "check": check,
                "name": finding.name,
                "status": finding.status.value,
                "seen": finding.seen,
                "expected": finding.expected,
                "remedy": finding.remedy,
            }
            for check, findings in found.items()
            for finding in findings
        ],
    }


def print_findings(role: str, found: Mapping[str, Sequence[Finding]]) -> None:
    """Print a table, a list of what to do, and how many there are of each kind."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # nothing that a machine says is markup

    console = Console()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("check", "", "of", "seen"):
        table.add_column(column, overflow="fold", no_wrap=column in ("check", ""))
    for check, findings in found.items():
        for number, finding in enumerate(findings):
            style = _STYLES[finding.status]
            cells = (check if number == 0 else "", finding.status.value, finding.name, finding.seen)
            table.add_row(*(Text(cell, style=style if index == 1 else "") for index, cell in enumerate(cells)))
    console.print(table)
    everything = [finding for findings in found.values() for finding in findings]
    for status, heading in ((Status.WRONG, "Wrong"), (Status.WARNING, "Warnings"), (Status.SKIPPED, "Skipped")):
        listed = [finding for finding in everything if finding.status is status and finding.remedy]
        if listed:
            console.print(Text(f"{heading}:", style=_STYLES[status]))
        for finding in listed:
            expected = f"; expected {finding.expected}" if finding.expected else ""
            # One line each, however narrow the terminal: to be copied, and to be searched.
            console.print(Text(f"  {finding.name}: {finding.seen.rstrip('.')}{expected}."), soft_wrap=True)
            console.print(Text(f"    {finding.remedy}"), soft_wrap=True)
    counts = Counter(finding.status.value for finding in everything)
    words = {
        status: status.value + ("s" if status is Status.WARNING and counts[status.value] > 1 else "")
        for status in Status
    }
    told = ", ".join(f"{counts[status.value]} {word}" for status, word in words.items() if counts[status.value])
    console.print(Text(f"{role}: {told}."))
