"""An edge without a model, in a process of its own: serves turns one after another, and says how each one ended.

Started by test_crowd.py with the numbers of good and bad devices; writes its address and tickets as one line of JSON,
waits for a line, serves whoever connects until every good device has had its turn, and writes what happened as another line.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from hostile_frames import MODEL, ticket

from flwr_splitkd.errors import SplitKDError
from flwr_splitkd.wire.server import DataPlaneServer, Session
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

STEPS = 3
STEP_TIMEOUT_S = 1.0


def _peak_rss_mb() -> float:
    """Of this process alone: `getrusage` begins with what the process had that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) / 1024


def serve_turn(session: Session) -> None:
    """Begin, some steps whose answer is what came, turned round, and the result."""
    link = session.link
    assert link is not None
    link.admit()
    content = bytes(1 << 20)
    link.send(pb.Begin(), {"stem": EncodedTensor(pb.DTYPE_UINT8, (len(content),), pb.CODEC_NONE, content)})
    for step in range(STEPS):
        forward = link.receive("Forward", STEP_TIMEOUT_S)
        payload = bytes(forward.tensors["smashed"].payload)[::-1]
        answer = EncodedTensor(pb.DTYPE_UINT8, (len(payload),), pb.CODEC_NONE, payload)
        link.send(pb.Backward(step=step), {"gradient": answer})
    link.receive("TurnDone", STEP_TIMEOUT_S)
    link.send(pb.TurnResult(commit_id="000001"))


def main() -> None:
    good, bad = int(sys.argv[1]), int(sys.argv[2])
    server = DataPlaneServer(max_streams=128, handshake_timeout_s=5.0, grace_period_s=1.0)
    server.start(model=MODEL, codecs=())
    # A bad one before each good one: nobody gets his turn before they have been dealt with.
    order = sorted(range(good + bad), key=lambda i: (i - good, 0) if i >= good else (i, 1))
    sessions = {f"node-{i}": server.expect(ticket(i)) for i in order}
    tickets = {name: [s.ticket.session_id, s.ticket.token.hex(), s.ticket.node_id] for name, s in sessions.items()}
    print(json.dumps({"address": server.address, "tickets": tickets}), flush=True)
    sys.stdin.readline()

    errors, turns_s, started_s = {}, {}, time.monotonic()
    waiting = dict(sessions)
    good_left = {f"node-{i}" for i in range(good)}
    while True:
        with server.changed:
            patience_s = 30.0 if good_left else 0.0
            ready = server.changed.wait_for(
                lambda: next((n for n, s in waiting.items() if s.connected), None), patience_s
            )
        if ready is None:
            break
        session = waiting.pop(ready)
        begun_s = time.monotonic()
        try:
            serve_turn(session)
            turns_s[ready] = time.monotonic() - begun_s
        except SplitKDError as error:
            errors[ready] = f"{type(error).__name__}: {error}"[:300]
            assert session.link is not None
            session.link.fail(error)
        server.end(session)
        good_left.discard(ready)
    duration_s = time.monotonic() - started_s
    for name, session in waiting.items():  # bad ones whose turn never came, or was lost before it
        if session.link is not None and session.link.closed:
            errors[name] = f"{type(session.link.error).__name__}: {session.link.error}"
    sys.stdin.readline()  # everybody has gone
    deadline_s = time.monotonic() + 15
    while server.num_streams and time.monotonic() < deadline_s:
        time.sleep(0.05)
    left = server.num_streams
    server.stop()
    while any(t.name.startswith("splitkd") for t in threading.enumerate()) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    report = {
        "turns_s": turns_s,
        "errors": errors,
        "duration_s": duration_s,
        "peak_rss_mb": _peak_rss_mb(),
        "places_left": left,
        "threads_left": [t.name for t in threading.enumerate() if t.name.startswith("splitkd")],
        "torch": "torch" in sys.modules,
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
