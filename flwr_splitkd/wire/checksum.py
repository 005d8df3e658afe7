"""CRC-32 of a chunk, as fast as this machine has it. Torch-free.

Python's own is the slowest step of a message: it reads 1 to 3 GB/s, and each side reads every byte. ISA-L's gives the same
sums by carry-less multiplication, several times faster; it comes with the extra ``fast`` and is used where it is installed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib import import_module, util
from typing import Any

__all__ = ["crc32", "implementation"]

implementation = "isal" if util.find_spec("isal") else "zlib"
"""Which of the two computes."""

crc32: Callable[[Any], int] = import_module("isal.isal_zlib").crc32 if implementation == "isal" else zlib.crc32
"""CRC-32 of any buffer of bytes, as in zlib and PNG."""
