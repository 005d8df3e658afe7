from __future__ import annotations

import pytest

from flwr_splitkd.costs.checks import gib_at_least

GIB = 1 << 30


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0.0, "0 GiB"),
        (GIB, "1 GiB"),
        (2.5 * GIB, "2.5 GiB"),
        (1e8, "0.09314 GiB"),
        (2.00001 * GIB, "2.001 GiB"),
        (9999.5 * GIB, "1e+04 GiB"),
        (1, "9.314e-10 GiB"),
    ],
)
def test_sizes_are_rounded_up(size_bytes: float, text: str) -> None:
    assert gib_at_least(size_bytes) == text
    assert float(text.split()[0]) * GIB >= size_bytes
