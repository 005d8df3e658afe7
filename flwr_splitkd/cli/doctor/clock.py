"""Whether this machine's clock is right, as far as anybody here can tell.

What a wrong clock breaks: certificates look expired or not yet valid; Flower refuses an authenticated SuperNode whose signed time
is more than 5 s in its future or 305 s in its past (``SYSTEM_TIME_TOLERANCE`` and ``TIMESTAMP_TOLERANCE``, the same in 1.30 and
1.41), and counts the life of a device's answers from the device's clock; logs of two machines do not fit together. What it does not
break: the data plane's tokens live by the edge's monotonic clock, and seconds that are measured are those of monotonic clocks.

Sources: Linux, adjtimex(2) for the kernel's own opinion; RFC 9110, section 6.6.1 for ``Date``, which has whole seconds. A TLS
handshake tells no time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass

from flwr_splitkd.cli.doctor.finding import Finding, ok, skipped, warning, wrong
from flwr_splitkd.cli.doctor.superlink import Answer

__all__ = ["MOST_AHEAD_S", "MOST_BEHIND_S", "KernelClock", "check_kernel_clock", "check_skew", "read_kernel_clock"]

MOST_AHEAD_S, MOST_BEHIND_S = 5.0, 305.0
"""What Flower allows an authenticated SuperNode."""

_STA_UNSYNC = 0x0040
_OF_DATE_S = 2.0
"""How far a server's clock may be beyond its `Date`."""
_SYNCHRONISE = "sudo timedatectl set-ntp true, or chrony with a server that this machine reaches, such as the edge"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelClock:
    """The kernel's opinion of its clock.

    Parameters
    ----------
    is_synchronised
        Whether something keeps it right.
    max_error_s
        The most that it may be off, if so.
    """

    is_synchronised: bool
    max_error_s: float


class _Timex(ctypes.Structure):
    """The beginning of Linux's ``struct timex``, and more room than the rest of it takes."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    )


def read_kernel_clock() -> KernelClock | str:
    """Ask the kernel, which anyone may; why it cannot be asked where it cannot."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no adjtimex"
    timex = _Timex()  # modes 0: nothing is set
    try:
        failed = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex)) < 0
    except (OSError, AttributeError) as error:
        return f"there is no adjtimex: {error}"
    if failed:
        return f"adjtimex says {os.strerror(ctypes.get_errno())!r}"
    return KernelClock(is_synchronised=not timex.status & _STA_UNSYNC, max_error_s=1e-6 * timex.maxerror)


def check_kernel_clock(clock: KernelClock | str) -> Finding:
    """Whether something keeps the clock right.

    Parameters
    ----------
    clock
        From `read_kernel_clock`.
    """
    name = "kernel's clock"
    if isinstance(clock, str):
        return skipped(name, f"not known: {clock}")
    if clock.is_synchronised:
        return ok(name, f"synchronised, off by {clock.max_error_s:.3g} s at most", "synchronised")
    return warning(
        name,
        "nothing keeps it synchronised, as far as the kernel knows",
        expected="synchronised",
        remedy=f"{_SYNCHRONISE}. In a virtual machine it may be the host's clock: compare it with `--time-from`.",
    )


def check_skew(server: str, answer: Answer) -> Finding:
    """How far this clock is from a server's, at least.

    The server's time d is cut off to a second and, as uvicorn does it, renewed once a second; it was told between b and a of this
    clock. So this clock is behind by more than ``d - a`` and by less than ``d + 2 - b``.

    Parameters
    ----------
    server
        For the message.
    answer
        Of the server.
    """
    name = f"clock against {server}"
    if answer.date_s is None:
        return skipped(name, f"its answer (HTTP {answer.status}) has no Date", "Give another `--time-from`.")
    least_s, most_s = answer.date_s - answer.after_s, answer.date_s + _OF_DATE_S - answer.before_s
    bound = f"at most {MOST_AHEAD_S:g} s ahead, {MOST_BEHIND_S:g} s behind"
    off_s, where = (least_s, "behind") if least_s > 0 else (-most_s, "ahead")
    if off_s <= 0:
        return ok(name, f"no difference within {max(-least_s, most_s):.2g} s", bound)
    seen = f"{off_s:.1f} s {where} at least"
    if off_s <= MOST_AHEAD_S:
        return ok(name, seen, bound)
    what = "Flower refuses an authenticated SuperNode, and certificates may look expired or not yet valid"
    if where == "behind" and off_s <= MOST_BEHIND_S:
        return warning(name, seen, expected=bound, remedy=f"{_SYNCHRONISE}: logs of the two do not fit together.")
    return wrong(name, seen, expected=bound, remedy=f"{_SYNCHRONISE}: {what}.")
