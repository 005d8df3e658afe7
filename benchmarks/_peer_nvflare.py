"""Start NVFlare's multi-process form in a network namespace of its own, and have its Collab job take steps.

As a script, run by NVFlare's interpreter inside the namespace: submit the job and wait for its end.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Deployment", "deployment", "nvflare_version"]

HERE = Path(__file__).resolve().parent
START_TIMEOUT_S = 240.0
ANSWER_TIMEOUT_S = 300.0
# The server and the client listen on all interfaces, and leave processes behind when they are killed: in namespaces of
# their own nobody reaches them, and they end with the first process. "exec" needs a shell for the loopback interface.
_NAMESPACES = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
_SCRIPT = 'ip link set lo up && exec "$@"'


def nvflare_version(python: Path) -> str:
    """Return the version of NVFlare of another interpreter.

    Raises
    ------
    SystemExit
        If it has none, or lacks what the halves import.
    """
    code = "import nvflare.collab, importlib.metadata as m, _peer_halves; print(m.version('nvflare'))"
    done = subprocess.run([python, "-c", code], env=_environment(python, 1), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{python} cannot run NVFlare's job: {done.stderr.strip().splitlines()[-1]}. Make it so: python -m venv env; "
            "env/bin/pip install torch; env/bin/pip install nvflare transformers peft jaxtyping 'protobuf<7'."
        )
    return done.stdout.split()[-1]


class Deployment:
    """A running Collab job.

    Parameters
    ----------
    process
        What `deployment` started.
    jobs, answers
        Descriptors of the two pipes.
    log
        Where NVFlare's output goes.
    """

    def __init__(self, process: subprocess.Popen[bytes], jobs: int, answers: int, log: Path) -> None:
        self._process, self._jobs, self._answers, self._log = process, jobs, answers, log
        self._buffer = b""

    def run(self, job: dict[str, Any], timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """Have it take steps.

        Raises
        ------
        SystemExit
            If it ends, or does not answer in time.
        """
        os.write(self._jobs, json.dumps(job).encode() + b"\n")
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], 1.0)
            if ready:
                self._buffer += os.read(self._answers, 1 << 16)
            elif self._process.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"NVFlare's job did not answer. The end of its log:\n{self._tail()}")
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _tail(self) -> str:
        logs = [self._log, *sorted(self._log.parent.glob("poc/**/log*.txt"))]
        return "\n".join(f"--- {log}\n" + "\n".join(log.read_text().splitlines()[-25:]) for log in logs)


@contextmanager
def deployment(
    python: Path, *, inline: bool, threads: tuple[int, int], cores: tuple[int, int] | None
) -> Iterator[Deployment]:
    """Start a server and one client, and their job's processes.

    Parameters
    ----------
    python
        Interpreter of an environment with NVFlare.
    inline
        Put tensors into the messages, instead of NVFlare's default: a reference, from which the receiver downloads them.
    threads
        Torch's threads in the server's job and in the client's; NVFlare starts both with one environment, so they are equal.
    cores
        One for the server's job, one for the client's; None leaves them to the system. NVFlare's parent processes, which
        forward messages between the two, are never pinned.
    """
    if threads[0] != threads[1]:
        raise ValueError(f"`threads` is {threads}; expected two equal numbers.")
    with tempfile.TemporaryDirectory(prefix="peer-nvflare-") as name:
        folder = Path(name)
        for pipe in ("jobs", "answers"):
            os.mkfifo(folder / pipe)
        # Opened for both, so that neither side waits for the other to open it.
        jobs, answers = (os.open(folder / pipe, os.O_RDWR) for pipe in ("jobs", "answers"))
        settings = json.dumps({"folder": name, "inline": inline, "cores": cores or [None, None]})
        command = [*_NAMESPACES, *([] if os.geteuid() == 0 else ["--map-root-user"])]
        command += ["sh", "-c", _SCRIPT, "sh", str(python.absolute()), str(HERE / "_peer_nvflare.py"), settings]
        environment = _environment(python, threads[0]) | {"NVFLARE_POC_WORKSPACE": str(folder / "poc"), "HOME": name}
        with (folder / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                yield Deployment(process, jobs, answers, folder / "log.txt")
            finally:
                # Its orderly end takes longer than a minute, and has nothing to keep.
                process.kill()
                process.wait()
                os.close(jobs)
                os.close(answers)


def _environment(python: Path, threads: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "PYTHONHOME")}
    modules = [HERE, HERE.parent, HERE.parent / "apps" / "split_kd"]
    # NVFlare's scripts start "python3"; its processes hand their PYTHONPATH on.
    programs = [str(python.absolute().parent), *kept.get("PATH", os.defpath).split(os.pathsep)]
    return {
        **kept,
        "OMP_NUM_THREADS": str(threads),
        "PATH": os.pathsep.join(programs),
        "PYTHONPATH": os.pathsep.join(map(str, modules)),
    }


def main() -> None:
    """Submit the job and wait until it has ended."""
    import _peer_nvflare_job
    from nvflare.collab import CollabRecipe
    from nvflare.recipe import PocEnv

    settings = json.loads(sys.argv[1])
    recipe = CollabRecipe(
        job_name="split_step", server=_peer_nvflare_job, client=_peer_nvflare_job, sync_task_timeout=120
    )
    for set_prop, core in zip((recipe.set_server_prop, recipe.set_client_prop), settings["cores"], strict=True):
        set_prop("core", core)
    recipe.set_server_prop("folder", settings["folder"])
    if settings["inline"]:
        recipe.add_server_config({"tensor_download_chunk_size": 0})
        recipe.add_client_config({"tensor_download_chunk_size": 0})
    run = recipe.execute(PocEnv(num_clients=1))
    run.get_result(clean_up=False)
    print("status", run.get_status())


if __name__ == "__main__":
    main()
