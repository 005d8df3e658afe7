"""Traces of rates: what they give when, and files that are none."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from flwr_splitkd.costs.links import Link, LinkState
from flwr_splitkd.costs.trace import TraceLink
from flwr_splitkd.errors import ConfigError, DataError

HEADER = "time_s,uplink_bps,downlink_bps\n"


def _file(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _uplinks(link: Link, *times_s: float) -> list[float]:
    return [link.at(time_s).uplink_bps for time_s in times_s]


def test_steps(tmp_path: Path) -> None:
    link = TraceLink.from_csv(_file(tmp_path, HEADER + "2,10,100\n4,20,200\n10.5,0,300\n"))
    assert _uplinks(link, 0, 1.999, 2, 3.999, 4, 10.499, 10.5, 1e9) == [10, 10, 10, 10, 20, 20, 0, 0]
    assert link.at(7) == LinkState(uplink_bps=20, downlink_bps=200)


def test_repeat_gives_the_last_row_the_length_of_the_one_before(tmp_path: Path) -> None:
    path = _file(tmp_path, HEADER + "2,10,1\n4,20,1\n7,30,1\n")  # rows of 2, 3 and 3 s: 8 s, from 2 s on
    link = TraceLink.from_csv(path, repeat=True)
    assert _uplinks(link, 0, 2, 4, 7, 9.9) == [10, 10, 20, 30, 30]
    assert _uplinks(link, 10, 11.9, 12, 15, 17.9, 18, 802) == [10, 10, 20, 30, 30, 10, 10]
    assert _uplinks(TraceLink.from_csv(path), 10, 802) == [30, 30]


def test_a_single_row_holds_for_ever(tmp_path: Path) -> None:
    path = _file(tmp_path, HEADER + "5,10,20\n")
    for repeat in (False, True):
        assert _uplinks(TraceLink.from_csv(path, repeat=repeat), 0, 5, 500) == [10, 10, 10]


def test_columns_in_any_order_and_company_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = '\ufeffcell, downlink_bps,"time_s", uplink_bps\r\nA,200, 0,1e2\r\n\r\n,,,\r\nA, 400,1.5,300\r\n'
    link = TraceLink.from_csv(str(_file(tmp_path, text)))
    assert link == TraceLink(times_s=(0, 1.5), uplink_bps=(100, 300), downlink_bps=(200, 400))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ", line 1: the header is '', in which 'time_s' is 0 times; expected time_s,uplink_bps,downlink_bps"),
        ("time_s,uplink_bps\n1,2\n", ", line 1: the header is 'time_s,uplink_bps', in which 'downlink_bps' is 0 times"),
        ("time_s,time_s,uplink_bps,downlink_bps\n", "in which 'time_s' is 2 times; expected time_s"),
        ("1,2,3\n4,5,6\n", ", line 1: the header is '1,2,3'"),
        (HEADER, ", line 1: there are 0 rows; expected at least 1"),
        (HEADER + "\n , ,\n", ", line 3: there are 0 rows; expected at least 1"),
        (HEADER + "0,1,1\n1,fast,1\n", ", line 3: 'uplink_bps' is 'fast'; expected a number"),
        (HEADER + "0,1,1\n\n1,1,\n", ", line 4: 'downlink_bps' is ''; expected a number"),
        (HEADER + "0,1\n", ", line 2: 'downlink_bps' is ''; expected a number"),
        (HEADER + "0,1,nan\n", ", line 2: 'downlink_bps' is nan; expected a finite number of at least 0"),
        (HEADER + "0,inf,1\n", ", line 2: 'uplink_bps' is inf; expected a finite number of at least 0"),
        (HEADER + "0,-1,1\n", ", line 2: 'uplink_bps' is -1.0; expected a finite number of at least 0"),
        (HEADER + "-1,1,1\n", ", line 2: 'time_s' is -1.0; expected a finite number of at least 0"),
        (HEADER + "nan,1,1\n", ", line 2: 'time_s' is nan; expected a finite number of at least 0"),
        (HEADER + "0,1,1\n2,1,1\n2,1,1\n", ", line 4: 'time_s' is 2.0; expected more than 2.0, the time before it"),
        (HEADER + "0,1,1\n2,1,1\n1,1,1\n", ", line 4: 'time_s' is 1.0; expected more than 2.0, the time before it"),
        (HEADER + '0,"1,1\n', ", line 2: unexpected end of data; expected comma-separated values"),
        (HEADER.encode() + b"0,\xff,1\n", " is not UTF-8 at byte 33; expected a CSV file in UTF-8"),
    ],
)
def test_files_that_are_no_trace(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(DataError) as caught:
        TraceLink.from_csv(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert str(caught.value).count(". ") >= 1, "a remedy follows"


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match=re.escape(f"{path} cannot be read (") + r".*Check the trace's path"):
            TraceLink.from_csv(path)


@pytest.mark.parametrize(
    ("times_s", "uplink_bps", "message"),
    [
        ((), (), "The trace has 0 times, 0 uplink and 0 downlink rates; expected the same number"),
        ((0.0, 1.0), (5.0,), "The trace has 2 times, 1 uplink and 1 downlink rates; expected the same number"),
        ((0.0,), (math.nan,), "row 0 of the trace: 'uplink_bps' is nan"),
        ((0.0, 0.0), (5.0, 5.0), "row 1 of the trace: 'time_s' is 0.0; expected more than 0.0"),
    ],
)
def test_rows_that_are_no_trace(times_s: tuple[float, ...], uplink_bps: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        TraceLink(times_s=times_s, uplink_bps=uplink_bps, downlink_bps=uplink_bps)


@pytest.mark.parametrize("time_s", [-0.1, math.nan, math.inf])
def test_times_that_are_none(time_s: float) -> None:
    link = TraceLink(times_s=(0.0,), uplink_bps=(1.0,), downlink_bps=(1.0,))
    with pytest.raises(ConfigError, match="`time_s` is .*; expected a finite number of at least 0 s"):
        link.at(time_s)
