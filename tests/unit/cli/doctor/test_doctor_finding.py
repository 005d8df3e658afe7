"""Findings, exit codes, and checks that hang or fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from flwr_splitkd.cli.doctor.finding import Finding, Status, exit_code, ok, skipped, warning, within, wrong

FINE = ok("a", "1")
WARNED = warning("b", "2", expected="3", remedy="raise it")
BROKEN = wrong("c", "4", expected="5", remedy="mend it")
UNKNOWN = skipped("d", "nobody asked")


@pytest.mark.parametrize(
    ("findings", "code"),
    [((), 0), ((FINE, WARNED, UNKNOWN), 0), ((FINE, BROKEN, WARNED), 1)],
)
def test_only_what_is_wrong_makes_an_exit_code(findings: tuple[Finding, ...], code: int) -> None:
    assert exit_code(findings) == code


def test_a_check_that_hangs_is_left_behind_with_what_it_found() -> None:
    released = threading.Event()

    def hangs() -> Iterator[Finding]:
        yield FINE
        released.wait(30)
        yield BROKEN

    first, late = within("disk", hangs, limit_s=0.05)
    released.set()
    assert first is FINE
    assert (late.name, late.status) == ("disk", Status.WRONG)
    assert late.seen == "no answer within 0.05 s" and "`--time-limit`" in late.remedy


def test_a_check_that_fails_is_a_finding_too() -> None:
    def fails() -> Iterator[Finding]:
        yield FINE
        raise KeyError("surprise")

    first, failed = within("ports", fails, limit_s=5.0)
    assert first is FINE
    assert failed.status is Status.WRONG and "KeyError: 'surprise'" in failed.seen and failed.remedy
