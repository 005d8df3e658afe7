"""Run the SCCT app in a deployment with TLS: `make scct-demo`.

The cloud, a SuperLink and three authenticated SuperNodes are processes of their own on loopback, with certificates and secrets
made on the spot. The first run trains the built-in models; they are cached. Ends with tables of devices, epochs and answers, and
with the two commands that ask what was trained: the cloud's configuration, state and secret stay in ``runs/cloud``.
Whatever happens, Ctrl-C included, no process or temporary file is left behind. Exits with 0 if the run completed, 1 if it
failed, 128 + the signal's number if it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from demo_command import Interrupted, add_common_options, new_summary, print_line, raise_on_signals, summaries
from flower_run import FederationError, Outcome, Value, deployment
from flwr_splitkd.store import cache_root
from flwr_splitkd.strategies.chain.progress import ChainProgress
from flwr_splitkd.wire.certificates import edge_hosts, make_certificates, tls_files, write_new

__all__ = ["main"]

_HOST = "127.0.0.1"
_CLOUD_START_S = 120.0
_END_S = 15.0
_DAYS = 30  # for which the certificates are good, and what was trained can be asked


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


def _kept(runs: Path, made: Mapping[str, bytes]) -> Path:
    """The cloud's folder among the runs, with its secret and certificate: there it can be started again, and asked."""
    folder = runs / "cloud" / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    write_new(folder, {path.name: made[path.name] for path in map(Path, _files_of_cloud(folder))})
    token = os.open(folder / "edge.token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(token, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    return folder


def _files_of_cloud(folder: Path) -> tuple[str | Path, ...]:
    files = tls_files(folder)
    return files.certificate, files.private_key, files.root_certificate


def _configuration(address: str, llm: str, width: int) -> str:
    name = Path(llm).resolve() if Path(llm).is_dir() else llm
    return f"""\
address = "{address}"
state-folder = "state"

[tls]
certificate = "server.pem"
private-key = "server.key"
root-certificate = "ca.crt"

[llm]
name = "{name}"

[edges.edge]
token-file = "edge.token"

[tasks.questions]
slm-width = {width}
method = "serial-adapter"
learning-rate = 3e-3
max-grad-norm = 1.0
max-new-tokens = 48
"""


@contextmanager
def _cloud(folder: Path, llm: str, width: int, logs: Path) -> Iterator[str]:
    """Run the cloud for the ``with`` block; its address, which is that of its next start too."""
    config = folder / "cloud.toml"
    config.write_text(_configuration(f"{_HOST}:0", llm, width), encoding="utf-8")
    logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-u", "-m", "flwr_splitkd", "cloud", "--config", str(config)]
    log = logs / "cloud.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        address = _listening(process, log)
        config.write_text(_configuration(address, llm, width), encoding="utf-8")
        yield address
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


def _run(arguments: argparse.Namespace, runs: Path) -> tuple[Outcome, Path]:
    """What became of the run, and the cloud's folder, which stays if it completed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skd-scct-")))
        llm, width = _models(arguments.app, dict(arguments.set))
        certificates = folder / "certificates"
        made = make_certificates(hosts=edge_hosts([_HOST]), supernodes=arguments.supernodes, days=_DAYS)
        write_new(certificates, made)
        kept = _kept(runs, made)
        give_up = stack.enter_context(ExitStack())
        give_up.callback(shutil.rmtree, kept, ignore_errors=True)
        cloud = stack.enter_context(_cloud(kept, llm, width, runs / "logs"))
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
        files, files_of_cloud = tls_files(certificates), tls_files(kept)
        overrides = {
            "run-dir": str(runs),
            "min-available-nodes": arguments.supernodes,
            "cloud-address": cloud,
            "cloud-token-file": str(kept / "edge.token"),
            "cloud-root-certificate": str(files_of_cloud.root_certificate),
            "data-address": f"{_HOST}:0",
            "advertised-address": _HOST,
            "tls-certificate": str(files.certificate),
            "tls-private-key": str(files.private_key),
            "tls-root-certificate": str(files.root_certificate),
            **dict(arguments.set),
        }
        outcome = federation.run(arguments.app, overrides, timeout_s=arguments.timeout_s, on_line=print_line)
        if outcome.completed:
            give_up.pop_all()
        return outcome, kept


def _how_to_ask(run: Path, cloud: Path) -> Iterator[str]:
    """The two commands that ask what was trained; the second one while the first one runs."""
    program = f"{sys.executable} -m flwr_splitkd"
    yield "To ask it, start its cloud again, and in another terminal ask:"
    yield f"  {program} cloud --config {cloud / 'cloud.toml'}"
    encoders = sorted((cache_root() / "encoders" / ChainProgress.load(run).run).glob("*/*"))
    device = f" --device {encoders[0].name}" if encoders else ""
    yield f'  {program} ask "What is the default of indent?" --context "dumps(obj, indent=None)" --run {run}{device}'


def main() -> int:
    """Run the demo and return the exit code."""
    arguments = _arguments()
    raise_on_signals()
    began_s = time.monotonic()
    runs = arguments.runs.resolve()
    before = summaries(runs)
    try:
        outcome, cloud = _run(arguments, runs)
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
    summary = new_summary(runs, before)
    print(f"completed in {seconds:.0f} s; results in {summary.parent if summary else runs}")
    if summary:
        print("\n".join(_how_to_ask(summary.parent, cloud)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
