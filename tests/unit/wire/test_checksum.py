"""Whichever computes them, the sums are CRC-32."""

from __future__ import annotations

import random
import zlib

import pytest

from flwr_splitkd.wire import checksum


@pytest.mark.parametrize("size", [0, 1, 15, 64, 4097, 1 << 20])
def test_the_sums_are_zlibs(size: int) -> None:
    data = random.Random(size).randbytes(size)
    for buffer in (data, bytearray(data), memoryview(data)):
        assert checksum.crc32(buffer) == zlib.crc32(data)
    assert checksum.crc32(b"123456789") == 0xCBF43926  # the standard's check value
