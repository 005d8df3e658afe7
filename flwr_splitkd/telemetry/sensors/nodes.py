"""Files below ``/sys`` and ``/proc`` that hold one number: the number, or why there is none."""

from __future__ import annotations

import errno
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from flwr_splitkd.telemetry.sensors.reading import Reading

__all__ = ["Node", "folders", "measured"]

_MOST_BYTES = 1 << 16
_MOST_SHOWN = 40
"""Characters of what is not a number that a reason quotes."""


@dataclass(frozen=True, slots=True)
class Node:
    """A file of the machine's.

    Parameters
    ----------
    root
        ``/``, or where a recorded tree lies.
    source
        Its path on the machine, from ``/`` on.
    low
        The least that its number can be.

    Attributes
    ----------
    path
        Where it is read.
    """

    root: Path
    source: str
    low: float = 0.0
    path: str = field(init=False)  # joined once: a node is read ten times a second

    def __post_init__(self) -> None:
        """Join the path."""
        object.__setattr__(self, "path", os.path.join(self.root, self.source.lstrip("/")))

    def text(self) -> tuple[str, str]:
        """What it says, without blanks around it, and an empty reason; or nothing and the reason."""
        try:
            with open(self.path, "rb", buffering=0) as file:  # one read: the kernel makes the value at that moment
                return file.read(_MOST_BYTES).decode(errors="replace").strip(" \t\n\0"), ""
        except OSError as error:
            return "", _why(self.source, error)

    def number(self, *, low: float | None = None, high: float = math.inf) -> tuple[float | None, str]:
        """Its number and an empty reason; or None and the reason.

        Parameters
        ----------
        low, high
            What it can be; a number beyond is none. The node's own `low` when not given.
        """
        low = self.low if low is None else low
        text, reason = self.text()
        if reason:
            return None, reason
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            return None, f"{self.source} says {text[:_MOST_SHOWN]!r}; expected a number."
        if not low <= value <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
            return None, f"{self.source} says {text}; expected {bounds}."
        return value, ""


def _why(source: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"{source} is not there: this kernel's driver has none, or a container hides it."
    if isinstance(error, PermissionError):
        return f"permission denied: {source} is not for this user. Run as root, or make it readable by a udev rule with chmod."
    if error.errno in (errno.EAGAIN, errno.ENODATA):
        return f"{source} has no value now ({error.strerror}): what it measures is switched off."
    return f"{source} cannot be read: {error.strerror or error}."


def measured(
    quantity: str,
    name: str,
    *nodes: Node,
    scale: float = 1.0,
    low: float | None = None,
    high: float = math.inf,
) -> Reading:
    """A reading of the product of nodes, times `scale`.

    Parameters
    ----------
    quantity, name
        As in `Reading`, whose source is the first node.
    nodes
        At least one.
    low, high
        What the number of each can be, before `scale`; each node's own `low` when not given.
    """
    product = 1.0
    for node in nodes:
        value, reason = node.number(low=low, high=high)
        if value is None:
            return Reading(quantity=quantity, name=name, source=node.source, value=None, reason=reason)
        product *= value
    if not math.isfinite(product * scale):  # each is a number, and what they make is none
        reason = f"{' times '.join(node.source for node in nodes)} is {product * scale}; expected a number."
        return Reading(quantity=quantity, name=name, source=nodes[0].source, value=None, reason=reason)
    return Reading(quantity=quantity, name=name, source=nodes[0].source, value=product * scale)


def folders(root: Path, parent: str, pattern: str) -> list[str]:
    """Names in a folder of the machine's that match a whole pattern, by their numbers; none where it cannot be listed."""
    try:
        names = [path.name for path in (root / parent.lstrip("/")).iterdir()]
    except OSError:
        return []
    return sorted((name for name in names if re.fullmatch(pattern, name)), key=_by_number)


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name)]
