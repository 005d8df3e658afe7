"""Run the SCCT app in a deployment with TLS: `make scct-demo`.

The cloud, a SuperLink and three authenticated SuperNodes are processes of their own on loopback, with certificates and secrets
made on the spot. The first run trains the built-in models; they are cached. Ends with tables of devices, epochs and answers.
Whatever happens, Ctrl-C included, no process or temporary file is left behind. Exits with 0 if the run completed, 1 if it
failed, 128 + the signal's number if it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from demo_command import Interrupted, add_common_options, newest_summary, print_line, raise_on_signals
from flower_run import FederationError, Outcome, Value, deployment
from flwr_splitkd.wire.certificates import edge_hosts, make_certificates, tls_files, write_new

__all__ = ["main"]

_HOST = "127.0.0.1"
_CLOUD_START_S = 120.0
_END_S = 15.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the SCCT app with a cloud, a SuperLink and SuperNodes over TLS.")
    parser.add_argument("--supernodes", type=int, default=3, help="number of devices")
    add_common_options(parser, app="scct")
    parser.epilog = "With --set slm=FOLDER --set llm=FOLDER nothing is trained before the run."
    return parser.parse_args()


def _models(app: Path, settings: Mapping[str, Value]) -> tuple[str, int]:
    """The language model, and the encoder's width: those that were named, or the built-in ones, trained if need be."""
    if {"slm", "llm"} <= set(settings):
        from transformers import AutoConfig

        return str(settings["llm"]), int(AutoConfig.from_pretrained(str(settings["slm"])).hidden_size)
    command = [sys.executable, "-m", "scct_app.prepare"]
    lines: list[str] = []
    with subprocess.Popen(command, cwd=app, stdout=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout or ():
                print_line(line.rstrip())
                lines.append(line.strip())
        except BaseException:
            process.kill()
            raise
    if process.returncode or not lines:
        raise FederationError(f"the built-in models could not be made (exit code {process.returncode})")
    folder, width = lines[-1].rsplit(maxsplit=1)
    return folder, int(width)


@contextmanager
def _cloud(folder: Path, llm: str, width: int, certificates: Path, logs: Path) -> Iterator[str]:
    """Run the cloud for the ``with`` block; its address."""
    files = tls_files(certificates)
    (folder / "edge.token").write_text(secrets.token_hex(32), encoding="ascii")
    config = folder / "cloud.toml"
    config.write_text(
        f"""\
address = "{_HOST}:0"
state-folder = "state"

[tls]
certificate = "{files.certificate}"
private-key = "{files.private_key}"
root-certificate = "{files.root_certificate}"

[llm]
name = "{llm}"

[edges.edge]
token-file = "edge.token"

[tasks.questions]
slm-width = {width}
method = "serial-adapter"
learning-rate = 3e-3
max-grad-norm = 1.0
max-new-tokens = 48
""",
        encoding="utf-8",
    )
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-u", "-m", "flwr_splitkd", "cloud", "--config", str(config)]
    log = logs / "cloud.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield _listening(process, log)
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listening(process: subprocess.Popen[bytes], log: Path) -> str:
    words = "The cloud listens at "
    deadline_s = time.monotonic() + _CLOUD_START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines():
            if line.startswith(words):
                print_line(line)
                return line.removeprefix(words).partition(";")[0]
        time.sleep(0.2)
    raise FederationError(f"the cloud did not start: {log.read_text(encoding='utf-8')[-2000:]}")


def _run(arguments: argparse.Namespace, runs: Path) -> Outcome:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skd-scct-")))
        llm, width = _models(arguments.app, dict(arguments.set))
        certificates = folder / "certificates"
        write_new(certificates, make_certificates(hosts=edge_hosts([_HOST]), supernodes=arguments.supernodes, days=1))
        cloud = stack.enter_context(_cloud(folder, llm, width, certificates, runs / "logs"))
        federation = stack.enter_context(
            deployment(
                runs / "logs",
                supernodes=arguments.supernodes,
                # All share this machine: whoever waits must not spin on the others' cores.
                environment={"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")},
                tls=certificates,
                host=_HOST,
            )
        )
        files = tls_files(certificates)
        overrides = {
            "run-dir": str(runs),
            "min-available-nodes": arguments.supernodes,
            "cloud-address": cloud,
            "cloud-token-file": str(folder / "edge.token"),
            "cloud-root-certificate": str(files.root_certificate),
            "data-address": f"{_HOST}:0",
            "advertised-address": _HOST,
            "tls-certificate": str(files.certificate),
            "tls-private-key": str(files.private_key),
            "tls-root-certificate": str(files.root_certificate),
            **dict(arguments.set),
        }
        return federation.run(arguments.app, overrides, timeout_s=arguments.timeout_s, on_line=print_line)


def main() -> int:
    """Run the demo and return the exit code."""
    arguments = _arguments()
    raise_on_signals()
    began_s, wall_s = time.monotonic(), time.time()
    runs = arguments.runs.resolve()
    try:
        outcome = _run(arguments, runs)
    except Interrupted as interrupted:
        print_line(f"interrupted by {interrupted.name}; nothing is left running")
        return interrupted.exit_code
    except FederationError as error:
        print(error, file=sys.stderr)
        return 1
    seconds = time.monotonic() - began_s
    if not outcome.completed:
        print(f"the run ended as {outcome.status} after {seconds:.0f} s {outcome.details}")
        print(f"its logs are in {runs / 'logs'}")
        return 1
    summary = newest_summary(runs, wall_s)
    print(f"completed in {seconds:.0f} s; results in {summary.parent if summary else runs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
