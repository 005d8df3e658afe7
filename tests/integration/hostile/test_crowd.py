"""A hundred devices at once on one edge, half of them hostile: the other half finishes, and memory stays bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from crowd_devices import BAD

HERE = Path(__file__).parent
GOOD = BAD_ONES = 50
# Which of the bad ones have a ticket and are let in, and the words by which the edge cuts them off.
CUT_OFF = {
    "flood_before_the_turn": "sent GradientNorms; expected Forward",
    "flood_within_the_turn": "sent Forward; expected TurnDone",
    "dribble": "bytes moved between here and",
    "silent_in_its_turn": "sent nothing for 1 s|bytes moved between here and|expected Forward",
    "takes_nothing": "sent nothing for 1 s|bytes moved between here and|expected Forward",
    "lies_about_acknowledgements": "acknowledges 1099511627776 messages; expected at most",
    "lies_when_it_resumes": "sent nothing for 1 s|bytes moved between here and",
    "announces_a_tebibyte": "expected at most",
    "replays_its_ticket": "is lost",
}
_MOST_MB = 600.0
_LONGEST_S = 180.0


@contextmanager
def _process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, HERE / script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _read(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()[-3000:]
    return json.loads(line) if line.startswith("{") else line


def _write(process: subprocess.Popen[str], what: object = "") -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(what) + "\n")
    process.stdin.flush()


def _crowd(num_bad: int) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """What the edge reports, how the good devices ended, and what the bad ones did."""
    with (
        _process("crowd_edge.py", GOOD, num_bad) as edge,
        _process("crowd_devices.py") as bad,
        _process("crowd_devices.py") as good,
    ):
        begin = _read(edge)
        kinds = {f"node-{GOOD + i}": list(BAD)[i % len(BAD)] for i in range(num_bad)}
        _write(bad, {**begin, "devices": kinds})
        assert _read(bad) == "begun\n"
        _write(good, {**begin, "devices": {f"node-{i}": "good" for i in range(GOOD)}})
        assert _read(good) == "begun\n"
        _write(edge)
        ended = _read(good)
        _write(bad)
        told = _read(bad)
        _write(good)
        _write(edge)
        report = _read(edge)
        assert not (ended["torch"] or told["torch"] or report["torch"])
        return report, ended["ended"], kinds


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_hundred_devices_half_of_them_hostile(covered: Callable[[str, object], None]) -> None:
    alone, ended, _ = _crowd(0)
    assert ended == {f"node-{i}": "done" for i in range(GOOD)}
    assert alone["errors"] == {}

    report, ended, kinds = _crowd(BAD_ONES)
    assert ended == {f"node-{i}": "done" for i in range(GOOD)}
    assert sorted(report["turns_s"]) == sorted(ended)
    for name, kind in kinds.items():
        if kind in CUT_OFF:
            error = report["errors"][name]
            assert any(words in error for words in CUT_OFF[kind].split("|")), (kind, error)
        else:
            assert name not in report["errors"]
    assert report["places_left"] == 0 and report["threads_left"] == []
    assert report["peak_rss_mb"] < _MOST_MB
    assert report["duration_s"] < _LONGEST_S
    # Apart from the turns of the bad ones, each of which takes the edge up to a timeout.
    own_s, own_alone_s = sum(report["turns_s"].values()), sum(alone["turns_s"].values())
    covered(
        "100 devices on one edge, 50 of them hostile",
        f"{report['duration_s']:.1f} s after {alone['duration_s']:.1f} s with the 50 good ones alone, "
        f"of which their own turns {own_s:.1f} s after {own_alone_s:.1f} s ({own_s / own_alone_s:.1f} times); peak "
        f"{report['peak_rss_mb']:.0f} MB after "
        f"{alone['peak_rss_mb']:.0f} MB",
    )
