"""Run the demo app in a deployment with TLS and authenticated SuperNodes: `make deploy-demo`.

A SuperLink, a SuperNode for each device, and certificates made on the spot. As root on Linux each of them is in a
network namespace of its own, and each device's link to the edge has a rate of its own; elsewhere everything is on
loopback, which is said. Ends with a table of what each turn took and sent. Whatever happens, Ctrl-C included, no
process, namespace or temporary file is left behind. Exits with 0 if the run completed, 1 if it failed, 128 + the
signal's number if it was interrupted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo_command import Interrupted, add_common_options, new_summary, print_line, raise_on_signals, summaries
from flower_run import FederationError, Outcome, Value, deployment
from flwr_splitkd.wire.certificates import edge_hosts, make_certificates, tls_files, write_new
from lab_network import LabNetwork, NetworkError, lab_network

__all__ = ["main", "turns_table"]

_MIB = 1 << 20
_WIDTH = 110
# Small, so that the slowest link is done in half a minute.
_SETTINGS: dict[str, Value] = {"num-server-rounds": 2, "max-batches": 12}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run the demo app in a deployment with TLS and SuperNode authentication."
    )
    parser.add_argument(
        "--rates",
        type=_rates,
        default=[20.0, 50.0, 100.0],
        metavar="MBIT/S,...",
        help="each device's link to the edge, in Mbit/s; as many devices as rates (20,50,100)",
    )
    parser.add_argument("--loopback", action="store_true", help="no network namespaces, even where they are possible")
    add_common_options(parser)
    return parser.parse_args()


def _rates(text: str) -> list[float]:
    try:
        rates = [float(rate) for rate in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0.1 <= rate <= 100_000 for rate in rates):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of rates of 0.1 .. 100000 Mbit/s, such as 20,50,100")
    return rates


def _network(arguments: argparse.Namespace, stack: ExitStack) -> LabNetwork | None:
    """The network, or None where there is none to be had, with a line that says why."""
    reason = "as asked"
    if not arguments.loopback:
        try:
            lab = stack.enter_context(lab_network(arguments.rates))
        except NetworkError as error:
            reason = str(error)
        else:
            rates = ", ".join(f"{rate:g}" for rate in arguments.rates)
            print_line(f"edge and devices in network namespaces of their own, links of {rates} Mbit/s")
            return lab
    print_line(f"edge and devices on loopback, whose rate is not limited: {reason}")
    return None


def _run(arguments: argparse.Namespace, runs: Path) -> tuple[Outcome, bool]:
    """Run the app; how it ended, and whether the links had their rates."""
    devices = len(arguments.rates)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skd-deploy-")))
        lab = _network(arguments, stack)
        host = lab.host if lab else "127.0.0.1"
        certificates = folder / "certificates"
        write_new(certificates, make_certificates(hosts=edge_hosts([host]), supernodes=devices, days=1))
        # Each device has a disk of its own, which goes with it.
        disks = [("env", f"FLWR_SPLITKD_CACHE={folder / f'device-{device}'}") for device in range(devices)]
        federation = stack.enter_context(
            deployment(
                runs / "logs",
                supernodes=devices,
                # All share this machine: whoever waits must not spin on the others' cores.
                environment={"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")},
                tls=certificates,
                host=host,
                superlink_prefix=lab.edge if lab else (),
                supernode_prefixes=[
                    (*place, *disk) for place, disk in zip(lab.devices if lab else [()] * devices, disks, strict=True)
                ],
            )
        )
        files = tls_files(certificates)
        overrides = {
            **_SETTINGS,
            "run-dir": str(runs),
            "data-address": f"{host}:0",
            "advertised-address": host,
            "tls-certificate": str(files.certificate),
            "tls-private-key": str(files.private_key),
            "tls-root-certificate": str(files.root_certificate),
            **dict(arguments.set),
        }
        outcome = federation.run(arguments.app, overrides, timeout_s=arguments.timeout_s, on_line=print_line)
    return outcome, lab is not None


def turns_table(turns: Sequence[Mapping[str, Any]], rates_mbps: Sequence[float] | None) -> str:
    """Lay out the turns of a ``metrics.jsonl``.

    Parameters
    ----------
    turns
        Its lines of kind ``turn``.
    rates_mbps
        Each device's link by partition id, in Mbit/s; None if the links had no rate of their own.
    """
    table = Table(title="Turns; Mbit/s are a turn's bytes by its seconds, computing included", title_justify="left")
    for heading in ("round", "device", "link", "cut", "s", "MiB up", "MiB down", "hand-over", "Mbit/s up", "down"):
        table.add_column(heading, justify="right")
    for turn in turns:
        device = str(turn["device"])
        rate = f"{rates_mbps[int(device)]:g}" if rates_mbps is not None and device.isdecimal() else "-"
        head = (str(turn["server_round"]), device or "?", rate)
        if "cut" not in turn:
            table.add_row(*head, "-", "left out" if "error" in turn else "-")
            continue
        seconds = max(turn["duration_s"], 1e-9)
        sent = [turn[f"{way}_bytes"] for way in ("uplink", "downlink", "handover")]
        table.add_row(
            *head,
            str(turn["cut"]),
            f"{seconds:.1f}",
            *(f"{count / _MIB:.2f}" for count in sent),
            *(f"{count * 8 / seconds / 1e6:.1f}" for count in sent[:2]),
        )
    out = io.StringIO()
    Console(file=out, width=_WIDTH, color_system=None).print(table)
    return out.getvalue()


def main() -> int:
    """Run the demo and return the exit code."""
    arguments = _arguments()
    raise_on_signals()
    began_s = time.monotonic()
    runs = arguments.runs.resolve()
    before = summaries(runs)
    try:
        outcome, shaped = _run(arguments, runs)
    except Interrupted as interrupted:
        print_line(f"interrupted by {interrupted.name}; nothing is left running")
        return interrupted.exit_code
    except (FederationError, NetworkError) as error:
        print(error, file=sys.stderr)
        return 1
    seconds = time.monotonic() - began_s
    if not outcome.completed:
        print(f"the run ended as {outcome.status} after {seconds:.0f} s {outcome.details}")
        print(f"its logs are in {runs / 'logs'}")
        return 1
    summary = new_summary(runs, before)
    metrics = summary.with_name("metrics.jsonl") if summary else None
    if metrics and metrics.exists():
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        turns = [line for line in lines if line["kind"] == "turn"]
        print(turns_table(turns, arguments.rates if shaped else None), end="")
    print(f"completed in {seconds:.0f} s; results in {summary.parent if summary else runs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
