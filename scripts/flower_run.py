"""Run a Flower App in a federation of its own, and leave nothing behind.

Used by `make demo`, by the integration tests and by the benchmarks, so that there is one way to do this::

    with simulation(logs, supernodes=10) as federation:      # or deployment(logs, supernodes=2, tls=certificates)
        outcome = federation.run(app, {"num-server-rounds": 2}, timeout_s=300.0, on_line=print)
    assert outcome.completed, outcome.tail()

Both kinds start `flower-superlink` as a child process on free loopback ports, with a `FLWR_HOME`, a temporary
directory and a working directory of their own, and submit the app with `flwr run`. In a simulation the
SuperLink gets `--simulation`, which is also what a bare `flwr run` starts behind the scenes; there it would
be detached, on a fixed port, and outlive the run. In a deployment there is one `flower-supernode` process per
device. With a folder of certificates (`flwr-splitkd certificates`) a deployment uses TLS and admits only
SuperNodes whose public key has been registered. A command prefix such as ``ip netns exec edge`` puts the
SuperLink, or a SuperNode, into a network of its own.

The command line differs between Flower versions: the newer SuperLink serves every API over HTTP on one
`--port`, the older one has three gRPC addresses. What the installed one understands is read from its
`--help`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import psutil

__all__ = [
    "ENDING_SIGNALS",
    "RAY_DID_NOT_START",
    "Federation",
    "FederationError",
    "Outcome",
    "Run",
    "alive",
    "deployment",
    "shielded",
    "simulation",
]

Value = str | int | float | bool

_CONNECTION = "splitkd"
_START_TIMEOUT_S = 60.0
_CLI_TIMEOUT_S = 60.0
_TERMINATE_GRACE_S = 3.0
_KILL_TIMEOUT_S = 20.0
# The log stream ends by itself some polls after its run; on a busy machine that takes a while.
_LOG_GRACE_S = 30.0
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a process to end, and lets it clean up."""
RAY_DID_NOT_START = ("The current node timed out during startup", ", in start_head_processes", ", in init_ray")
"""Any of them in the log of a simulation tells that it failed before anything of the app ran on a device."""
_POLL_S = 0.1
_CONNECTS = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()"
# Each `flwr ls` costs most of a second of CPU, so the end of the log stream tells that a run is over and this
# is only the safety net.
_STATUS_POLL_S = 20.0


class FederationError(RuntimeError):
    """A Flower process did not start, refused a command, or could not be stopped."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    run_id
        Flower's id of the run.
    status
        Flower's own words, such as ``finished:completed``, ``finished:failed`` or ``finished:stopped``;
        ``timeout`` if the run was still going when the time was up (it has been stopped then).
    details
        Flower's explanation of the status, or an empty string.
    seconds
        From before `flwr run` was called until the end of the run was noticed.
    log
        The run's log, as `flwr log` shows it.
    """

    run_id: int
    status: str
    details: str
    seconds: float
    log: str

    @property
    def completed(self) -> bool:
        """Whether the run finished, and finished well."""
        return self.status == "finished:completed"

    def tail(self, lines: int = 60) -> str:
        """Return the status and the last lines of the log, for an assertion message."""
        end = "\n".join(self.log.splitlines()[-lines:])
        return f"run {self.run_id} ended as {self.status!r} after {self.seconds:.1f} s {self.details}\n{end}"


class Run:
    """A submitted run, and the thread that collects its log."""

    def __init__(self, federation: Federation, run_id: int, started_s: float, on_line: Callable[[str], None]) -> None:
        self.run_id = run_id
        self.log_path = federation.logs / f"run-{run_id}.log"
        self._federation = federation
        self._started_s = started_s
        self._on_line = on_line
        self._stream = federation.spawn(["flwr", "log", str(run_id), _CONNECTION, "--stream"], stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, args=(self._stream.stdout,), daemon=True)
        self._reader.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe, self.log_path.open("w", encoding="utf-8") as file:
            for raw in pipe:
                line = raw.decode("utf-8", errors="replace")
                file.write(line)
                file.flush()
                self._on_line(line.rstrip("\n"))

    def status(self) -> tuple[str, str]:
        """Return Flower's status of the run and its details (a `flwr ls`, most of a second of CPU)."""
        reply = self._federation.flwr_json(["ls", _CONNECTION, "--run-id", str(self.run_id)])
        row = reply["runs"][0]
        details = row.get("status-details") or ""
        return str(row["status"]), "" if details == "N/A" else str(details)

    def stop(self) -> None:
        """Ask Flower to stop the run (`flwr stop`)."""
        self._federation.flwr(["stop", str(self.run_id), _CONNECTION])

    def wait(self, timeout_s: float) -> Outcome:
        """Wait for the end of the run.

        Parameters
        ----------
        timeout_s
            Seconds from now. When they are over the run is stopped and reported as ``timeout``.

        Returns
        -------
        Outcome
            Never raises because the run failed: that is a result.
        """
        deadline = time.monotonic() + timeout_s
        status, details = "timeout", f"still running after {timeout_s:g} s"
        while True:
            self._reader.join(max(0.0, min(_STATUS_POLL_S, deadline - time.monotonic())))
            now, why = self.status()
            if now.startswith("finished"):
                status, details = now, why
                break
            if time.monotonic() >= deadline:
                self.stop()
                break
            if not self._reader.is_alive():
                time.sleep(1.0)
        self._reader.join(_LOG_GRACE_S)
        seconds = time.monotonic() - self._started_s
        log = self.log_path.read_text(encoding="utf-8") if self.log_path.exists() else ""
        return Outcome(run_id=self.run_id, status=status, details=details, seconds=seconds, log=log)


class Federation:
    """A SuperLink, its SuperNodes, and everything that they start.

    Use it through `simulation` or `deployment`, which take it down again.

    Attributes
    ----------
    home
        The `FLWR_HOME` of every process here. It is removed at the end.
    logs
        Where the logs of the processes and runs are kept: ``superlink.log``, ``supernode-<i>.log``,
        ``run-<id>.log``.
    host
        The address on which the SuperLink is reached.
    tls
        Folder of certificates and SuperNode keys; None for plaintext without authentication.
    prefix
        What the commands of the SuperLink's side start with.
    superlink
        The SuperLink's process.
    supernodes
        The SuperNodes' processes by partition id; empty in a simulation.
    """

    def __init__(
        self,
        logs: Path,
        *,
        environment: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        tls: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.logs = logs
        self.host = host
        self.tls = None if tls is None else tls.resolve()
        self.prefix = tuple(prefix)
        self.logs.mkdir(parents=True, exist_ok=True)
        # A short path on purpose: Ray puts UNIX sockets below it, whose paths are limited to 107 bytes.
        self._root = Path(tempfile.mkdtemp(prefix="skd-"))
        self.home = self._root / "home"
        self._cwd = self._root / "cwd"
        for folder in (self.home, self._cwd):
            folder.mkdir()
        self.environment = _environment(self._root, self.home) | dict(environment or {})
        self.superlink: subprocess.Popen[bytes] | None = None
        self.supernodes: dict[int, subprocess.Popen[bytes]] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._fleet_address = ""
        self._federation_config: dict[str, Value] = {}

    # -- processes ---------------------------------------------------------------------------------

    def spawn(
        self,
        command: Sequence[str],
        *,
        log: str | None = None,
        stdout: int | None = None,
        prefix: Sequence[str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a Flower command in this federation's environment, on the SuperLink's side or with a prefix of its own.

        Every process is the leader of its own session, so that Ctrl-C reaches only the caller, who then takes
        everything down in order.
        """
        program = Path(sysconfig.get_path("scripts")) / command[0]
        arguments = [*(self.prefix if prefix is None else prefix), str(program), *command[1:]]
        if log is not None:
            with (self.logs / log).open("ab") as file:
                return self._popen(arguments, file, subprocess.STDOUT)
        return self._popen(arguments, stdout, subprocess.STDOUT if stdout is not None else None)

    def _popen(self, arguments: list[str], stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=self.environment,
            cwd=self._cwd,
            start_new_session=True,
        )
        self._children.append(process)
        return process

    def start_superlink(self, *, simulation: bool) -> None:
        """Start the SuperLink and wait until it answers."""
        command = ["flower-superlink", *self._superlink_security()]
        if simulation:
            command.append("--simulation")
        if _speaks_http():
            port = _free_port()
            control = self._fleet_address = f"{self.host}:{port}"
            command += ["--host", self.host, "--port", str(port)]
        else:
            control, self._fleet_address = f"{self.host}:{_free_port()}", f"{self.host}:{_free_port()}"
            command += ["--control-api-address", control, "--serverappio-api-address", "127.0.0.1:0"]
            if not simulation:
                command += ["--fleet-api-address", self._fleet_address]
        trust = "insecure = true" if self.tls is None else f"root-certificates = {_toml(str(self.tls / 'ca.crt'))}"
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\naddress = "{control}"\n{trust}\n',
            encoding="utf-8",
        )
        self.superlink = self.spawn(command, log="superlink.log")
        self._await_port(control, self.superlink, "superlink.log")

    def _superlink_security(self) -> list[str]:
        if self.tls is None:
            return ["--insecure"]
        authority, certificate, key = (str(self.tls / name) for name in ("ca.crt", "server.pem", "server.key"))
        files = ["--ssl-ca-certfile", authority, "--ssl-certfile", certificate, "--ssl-keyfile", key]
        return [*files, "--enable-supernode-auth"]

    def simulate(self, supernodes: int, client_cpus: int, cpus: int | None = None) -> None:
        """Make the following runs simulate this many devices."""
        self._federation_config = {"num-supernodes": supernodes, "client-resources-num-cpus": client_cpus}
        if cpus is not None:
            self._federation_config["init-args-num-cpus"] = cpus

    def register_supernode(self, public_key: Path) -> int:
        """Let the owner of a key in as a SuperNode; returns its node id."""
        reply = self.flwr_json(["supernode", "register", str(public_key.resolve()), _CONNECTION])
        return int(reply["node-id"])

    def start_supernode(
        self, partition_id: int, num_partitions: int, *, key: Path | None = None, prefix: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start one device's SuperNode; it connects on its own.

        Parameters
        ----------
        partition_id, num_partitions
            Go into its node config.
        key
            Its private key, where the SuperLink authenticates SuperNodes.
        prefix
            What its command starts with.
        """
        port = _free_port()
        command = ["flower-supernode", "--superlink", self._fleet_address]
        command += ["--insecure"] if self.tls is None else ["--root-certificates", str(self.tls / "ca.crt")]
        if key is not None:
            command += ["--auth-supernode-private-key", str(key.resolve())]
        if _speaks_http():
            command += ["--host", "127.0.0.1", "--port", str(port)]
        else:
            command += ["--clientappio-api-address", f"127.0.0.1:{port}"]
        command += ["--node-config", f"partition-id={partition_id} num-partitions={num_partitions}"]
        process = self.spawn(command, log=f"supernode-{partition_id}.log", prefix=prefix)
        self.supernodes[partition_id] = process
        return process

    def _await_port(self, address: str, process: subprocess.Popen[bytes], log: str) -> None:
        host, _, port = address.rpartition(":")
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            # In a process of its own, because the port may be in another network than this one's.
            probe = [*self.prefix, sys.executable, "-S", "-c", _CONNECTS, host, port]
            if subprocess.run(probe, capture_output=True).returncode == 0:
                return
            time.sleep(_POLL_S)
        output = (self.logs / log).read_text(encoding="utf-8", errors="replace")[-4000:]
        raise FederationError(
            f"{process.args!r} did not answer on {address} within {_START_TIMEOUT_S:g} s "
            f"(exit code {process.poll()}); its output:\n{output}"
        )

    # -- runs --------------------------------------------------------------------------------------

    def flwr(self, arguments: Sequence[str]) -> str:
        """Run a `flwr` command to its end and return what it printed."""
        process = self.spawn(["flwr", *arguments], stdout=subprocess.PIPE)
        try:
            output, _ = process.communicate(timeout=_CLI_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise FederationError(
                f"`flwr {' '.join(arguments)}` did not return within {_CLI_TIMEOUT_S:g} s; see the logs in {self.logs}"
            ) from None
        text = str(output.decode("utf-8", errors="replace"))
        if process.returncode != 0:
            raise FederationError(f"`flwr {' '.join(arguments)}` exited with {process.returncode}:\n{text}")
        return text

    def flwr_json(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Run a `flwr` command with ``--format json`` and return its reply."""
        text = self.flwr([*arguments, "--format", "json"])
        start = text.find("{")
        if start < 0:
            raise FederationError(f"`flwr {' '.join(arguments)}` printed no JSON:\n{text}")
        reply: dict[str, Any] = json.JSONDecoder().raw_decode(text[start:])[0]
        if not reply.get("success", False):
            raise FederationError(f"`flwr {' '.join(arguments)}` failed: {reply.get('error-message', reply)}")
        return reply

    def submit(
        self,
        app: Path,
        overrides: Mapping[str, Value] | None = None,
        on_line: Callable[[str], None] | None = None,
    ) -> Run:
        """Submit an app directory with `flwr run`.

        Parameters
        ----------
        app
            The folder with the app's ``pyproject.toml``.
        overrides
            Run config; Flower accepts only keys that the app's ``[tool.flwr.app.config]`` has.
        on_line
            Called with every line of the run's log as it arrives, from another thread.

        Raises
        ------
        FederationError
            If Flower refused the app or the overrides.
        """
        started_s = time.monotonic()
        command = ["run", str(app.resolve()), _CONNECTION]
        if overrides:
            # A file, because the command line's `key="value"` form cannot hold quotes, and blanks only with
            # luck.
            file = self.home / "overrides.toml"
            file.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in overrides.items()), encoding="utf-8")
            command += ["--run-config", str(file)]
        if self._federation_config:
            pairs = " ".join(f"{key}={_toml(value)}" for key, value in self._federation_config.items())
            command += ["--federation-config", pairs]
        reply = self.flwr_json(command)
        return Run(self, int(reply["run-id"]), started_s, on_line or (lambda line: None))

    def run(
        self,
        app: Path,
        overrides: Mapping[str, Value] | None = None,
        *,
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
    ) -> Outcome:
        """Submit an app and wait for its end; see `submit` and `Run.wait`.

        A simulation whose Ray did not start is submitted once more, and says so: Ray gives its own processes some
        seconds, limits that cannot be set and that a busy machine now and then exceeds. No device has been called then.
        """
        outcome = self.submit(app, overrides, on_line).wait(timeout_s)
        told = outcome.details + outcome.log
        if not outcome.completed and any(words in told for words in RAY_DID_NOT_START):
            note = f"run {outcome.run_id}: Ray did not start in the time it gives itself; submitting the app again"
            warnings.warn(note, RuntimeWarning, stacklevel=2)
            outcome = self.submit(app, overrides, on_line).wait(timeout_s)
        return outcome

    # -- the end -----------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """Return every live process of this federation, whoever started it.

        A process belongs here if it has this `FLWR_HOME`, works below this federation's folder, or descends
        from one that does: Ray detaches its processes from their parents, and its workers overwrite their
        environment with their title.
        """
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            if process.pid != os.getpid() and self._owns(process):
                found[process.pid] = process
                try:
                    found.update({child.pid: child for child in process.children(recursive=True)})
                except psutil.Error:
                    continue
        return [process for process in found.values() if alive(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            if process.environ().get("FLWR_HOME") == str(self.home):
                return True
            folder = Path(process.cwd())
        except (psutil.Error, OSError):
            return False
        return folder == self._root or self._root in folder.parents

    def close(self) -> None:
        """Stop every process and remove the temporary folder.

        Raises
        ------
        FederationError
            If a process survived even SIGKILL.
        """
        try:
            self._stop_all()
        finally:
            shutil.rmtree(self._root, ignore_errors=True)

    def _stop_all(self) -> None:
        # Those that run now, because an orphan can no longer be told by its parent.
        known = {process.pid: process for process in self.processes()}
        servers = [process for process in (*self.supernodes.values(), self.superlink) if process is not None]
        for server in servers:
            if server.poll() is None:
                server.terminate()
        psutil.wait_procs([known[p.pid] for p in servers if p.pid in known], timeout=_TERMINATE_GRACE_S)
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        while True:
            known.update({process.pid: process for process in self.processes()})
            left = [process for process in known.values() if alive(process)]
            if not left:
                break
            if time.monotonic() >= deadline:
                raise FederationError(f"still alive after SIGKILL: {left}; end them by hand")
            for process in left:
                _kill(process)
            psutil.wait_procs(left, timeout=1.0)
        for child in self._children:
            child.wait()


@contextmanager
def simulation(
    logs: Path,
    *,
    supernodes: int,
    client_cpus: int = 1,
    cpus: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Federation]:
    """Yield a federation that simulates its devices.

    Parameters
    ----------
    logs
        Folder for the logs; created.
    supernodes
        Number of virtual devices.
    client_cpus
        Whole CPUs that Flower sets aside per busy device; `cpus` / `client_cpus` devices work at the same time.
    cpus
        CPUs that Flower reckons with; those of this machine when not given.
    environment
        Variables to add to the processes' environment.
    """
    with _closing(Federation(logs, environment=environment)) as federation:
        federation.start_superlink(simulation=True)
        federation.simulate(supernodes, client_cpus, cpus)
        yield federation


@contextmanager
def deployment(
    logs: Path,
    *,
    supernodes: int,
    environment: Mapping[str, str] | None = None,
    tls: Path | None = None,
    host: str = "127.0.0.1",
    superlink_prefix: Sequence[str] = (),
    supernode_prefixes: Sequence[Sequence[str]] = (),
) -> Iterator[Federation]:
    """Yield a federation of one SuperLink process and `supernodes` SuperNode processes.

    Parameters
    ----------
    logs
        Folder for the logs; created.
    supernodes
        Number of devices; device i has ``partition-id=i`` and ``num-partitions=supernodes`` in its node
        config.
    environment
        Variables to add to the processes' environment.
    tls
        Folder with ``ca.crt``, ``server.pem``, ``server.key`` and a key pair ``supernode-<i>.key`` and
        ``.pub`` for each device: TLS, and authentication of the SuperNodes. None for neither.
    host
        Address on which the SuperLink listens and that the SuperNodes dial; the certificate must name it.
    superlink_prefix
        What the commands of the SuperLink and of `flwr` start with, such as ``ip netns exec edge``.
    supernode_prefixes
        The same for each SuperNode; none when not given.
    """
    prefixes = supernode_prefixes or [()] * supernodes
    if len(prefixes) != supernodes:
        raise ValueError(f"`supernode_prefixes` has {len(prefixes)} entries; expected one for each of {supernodes}")
    opened = Federation(logs, environment=environment, host=host, tls=tls, prefix=superlink_prefix)
    with _closing(opened) as federation:
        federation.start_superlink(simulation=False)
        for partition_id, prefix in enumerate(prefixes):
            key = None
            if federation.tls is not None:
                key = federation.tls / f"supernode-{partition_id}.key"
                federation.register_supernode(key.with_suffix(".pub"))
            federation.start_supernode(partition_id, supernodes, key=key, prefix=prefix)
        yield federation


@contextmanager
def _closing(federation: Federation) -> Iterator[Federation]:
    try:
        yield federation
    finally:
        with shielded():
            federation.close()


@contextmanager
def shielded() -> Iterator[None]:
    """Ignore the signals that ask this process to end, so that a second one does not interrupt the clean-up half-way."""
    # Signals can only be set from the main thread.
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING_SIGNALS} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(root: Path, home: Path) -> dict[str, str]:
    scripts = sysconfig.get_path("scripts")
    return dict(os.environ) | {
        # Flower starts its own helpers (`flower-superexec`, `flwr-serverapp`, ...) by bare name.
        "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        # Otherwise newer versions run `uv sync` for every run and replace what is installed here.
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_TMPDIR": str(root),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Devices print the same kind of line; Ray would show one of them and count the rest.
        "RAY_DEDUP_LOGS": "0",
        # Log lines must arrive when they are written, not when a block is full.
        "PYTHONUNBUFFERED": "1",
    }


@lru_cache(maxsize=1)
def _speaks_http() -> bool:
    program = Path(sysconfig.get_path("scripts")) / "flower-superlink"
    if not program.exists():
        raise FederationError(f"{program} does not exist; install flwr for {sys.executable}")
    text = subprocess.run([program, "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
    return "--port" in text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _toml(value: Value) -> str:
    # JSON and TOML write booleans, numbers and strings the same way.
    return json.dumps(value, ensure_ascii=False)


def alive(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie that nobody has waited for does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.Error:
        return
