"""What a check found: a value, what was expected, and what to do about it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = ["Finding", "Status", "exit_code", "gib", "ok", "skipped", "warning", "within", "wrong"]


class Status(str, Enum):
    """How it is with one thing."""

    OK = "ok"
    WARNING = "warning"
    """It will run, with less than one might expect."""
    WRONG = "wrong"
    """It will not run, or not as its role needs."""
    SKIPPED = "skipped"
    """Not asked for, or nobody can know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a check looked at.

    Parameters
    ----------
    name
        Of the thing, such as ``"flwr"`` or ``"port 0.0.0.0:9095"``.
    status
        How it is.
    seen
        The value; why there is none if it was skipped.
    expected
        What it should be.
    remedy
        What to do; of what is wrong or a warning never empty.
    """

    name: str
    status: Status
    seen: str
    expected: str = ""
    remedy: str = ""


def gib(value_bytes: float) -> str:
    """Bytes in words."""
    return f"{value_bytes / (1 << 30):.2f} GiB"


def ok(name: str, seen: str, expected: str = "") -> Finding:
    """All is well with it."""
    return Finding(name=name, status=Status.OK, seen=seen, expected=expected)


def warning(name: str, seen: str, *, expected: str, remedy: str) -> Finding:
    """It will run, with less than one might expect."""
    return Finding(name=name, status=Status.WARNING, seen=seen, expected=expected, remedy=remedy)


def wrong(name: str, seen: str, *, expected: str, remedy: str) -> Finding:
    """It will not run, or not as its role needs."""
    return Finding(name=name, status=Status.WRONG, seen=seen, expected=expected, remedy=remedy)


def skipped(name: str, why: str, remedy: str = "") -> Finding:
    """It was not looked at, or cannot be known."""
    return Finding(name=name, status=Status.SKIPPED, seen=why, remedy=remedy)


def exit_code(findings: Iterable[Finding]) -> int:
    """1 if something is wrong; warnings alone are none."""
    return int(any(finding.status is Status.WRONG for finding in findings))


def within(name: str, check: Callable[[], Iterable[Finding]], *, limit_s: float) -> tuple[Finding, ...]:
    """Run a check in a thread of its own; one that hangs or fails is a finding, and the next one has its turn.

    Parameters
    ----------
    name
        Of the check.
    check
        May raise; what it found before counts.
    limit_s
        Seconds after which it is not waited for any longer; its thread is left behind and ends with the process.
    """
    found: list[Finding] = []

    def run() -> None:
        try:
            for finding in check():
                found.append(finding)
        except Exception as error:  # whatever it is, the other checks go on
            found.append(
                wrong(
                    name,
                    f"the check failed with {type(error).__name__}: {error}",
                    expected="an answer",
                    remedy="If that does not say what is wrong with this machine, report it with the command line.",
                )
            )

    thread = threading.Thread(target=run, name=f"doctor-{name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not thread.is_alive():
        return tuple(found)
    return (
        *found,
        wrong(
            name,
            f"no answer within {limit_s:g} s",
            expected=f"one within `--time-limit`, {limit_s:g} s",
            remedy="Look for a disk, a network or a driver that hangs; on a slow machine raise `--time-limit`.",
        ),
    )
