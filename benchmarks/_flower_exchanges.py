"""A split step's tensors, exchanged by Flower messages: a SuperLink and a SuperNode on loopback, one train message a step."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from _step_processes import Tensors

from flower_run import Value, deployment

__all__ = ["WARMUP", "FlowerExchanges", "flower_exchanges"]

APP = Path(__file__).with_name("flower_messages_app")
# The first message finds nothing compiled and the node's process not yet started once.
WARMUP = 1
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerExchanges:
    """Seconds of each counted exchange, and the bytes that the arrays of one had."""

    seconds: list[float]
    up_bytes: int
    down_bytes: int


def flower_exchanges(up: Tensors, down: Tensors, count: int) -> FlowerExchanges:
    """Exchange tensors of these shapes in a deployment of one SuperNode, `count` times after one that does not count.

    Raises
    ------
    SystemExit
        If Flower's run fails.
    """
    with tempfile.TemporaryDirectory(prefix="flower-messages-") as folder:
        result = Path(folder) / "exchanges.json"
        settings: dict[str, Value] = {
            "num-exchanges": count + WARMUP,
            "up": json.dumps(up),
            "down": json.dumps(down),
            "result": str(result),
        }
        with deployment(Path(folder) / "logs", supernodes=1) as federation:
            outcome = federation.run(APP, settings, timeout_s=TIMEOUT_S)
        if not outcome.completed:
            raise SystemExit(outcome.tail())
        exchanges = json.loads(result.read_text(encoding="utf-8"))
    print(json.dumps({"flower_exchanges": exchanges}), file=sys.stderr, flush=True)
    counted = exchanges[WARMUP:]
    return FlowerExchanges(
        seconds=[item["seconds"] for item in counted],
        up_bytes=counted[0]["up_bytes"],
        down_bytes=counted[0]["down_bytes"],
    )
