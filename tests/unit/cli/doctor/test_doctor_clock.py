"""Clocks: the kernel's opinion, and how far a server's is away."""

from __future__ import annotations

import sys

import pytest

from flwr_splitkd.cli.doctor.clock import KernelClock, check_kernel_clock, check_skew, read_kernel_clock
from flwr_splitkd.cli.doctor.finding import Status
from flwr_splitkd.cli.doctor.superlink import Answer, ask_http
from http_servers import serving


def answer(date_s: float | None, before_s: float, after_s: float) -> Answer:
    return Answer(status=200, body=b"", date_s=date_s, before_s=before_s, after_s=after_s)


@pytest.mark.parametrize(
    ("date_s", "status", "seen"),
    [
        # The server's time is from 1000.0 to 1002.0, between 1000.2 and 1000.4 of this clock.
        (1000, Status.OK, "no difference within 1.8 s"),
        (1006, Status.WARNING, "5.6 s behind at least"),
        (1005, Status.OK, "4.6 s behind at least"),
        (1305, Status.WARNING, "304.6 s behind at least"),
        (1306, Status.WRONG, "305.6 s behind at least"),
        (994, Status.OK, "4.2 s ahead at least"),
        (993, Status.WRONG, "5.2 s ahead at least"),
    ],
)
def test_skew_that_is_sure(date_s: float, status: Status, seen: str) -> None:
    found = check_skew("http://edge", answer(date_s, 1000.2, 1000.4))
    assert (found.status, found.seen) == (status, seen)
    assert found.expected == "at most 5 s ahead, 305 s behind"
    assert ("timedatectl set-ntp true" in found.remedy) == (status is not Status.OK)


def test_a_slow_answer_says_less() -> None:
    # Nine seconds under way: the server's clock may have been asked at their end.
    assert check_skew("http://edge", answer(1006, 1000.0, 1009.0)).status is Status.OK


def test_a_server_that_tells_no_time() -> None:
    assert check_skew("http://edge", answer(None, 1.0, 2.0)).status is Status.SKIPPED


@pytest.mark.parametrize(
    ("ahead_s", "status", "word"),
    [(0.0, Status.OK, "no difference"), (3600.0, Status.WRONG, "behind"), (-3600.0, Status.WRONG, "ahead")],
)
def test_a_real_server(ahead_s: float, status: Status, word: str) -> None:
    with serving({}, ahead_s=ahead_s) as port:
        found = check_skew("it", ask_http(f"http://127.0.0.1:{port}/", tls=None, timeout_s=5.0))
    assert found.status is status and word in found.seen


def test_the_kernel_s_opinion() -> None:
    right = check_kernel_clock(KernelClock(is_synchronised=True, max_error_s=0.0123))
    assert (right.status, right.seen) == (Status.OK, "synchronised, off by 0.0123 s at most")
    wrong = check_kernel_clock(KernelClock(is_synchronised=False, max_error_s=16.0))
    assert wrong.status is Status.WARNING and "set-ntp true" in wrong.remedy and "--time-from" in wrong.remedy
    assert check_kernel_clock("adjtimex says 'no'").status is Status.SKIPPED


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="adjtimex is Linux's")
def test_this_kernel_is_asked() -> None:
    clock = read_kernel_clock()
    if isinstance(clock, KernelClock):  # the maximum error is what the kernel gives up at, 16 s, or less
        assert 0 <= clock.max_error_s <= 16.0
    else:  # a sandbox may forbid it, and then says so
        assert clock.startswith("adjtimex says ")
