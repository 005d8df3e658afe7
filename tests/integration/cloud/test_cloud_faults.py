"""The cloud's process is killed, its network cut, its disk full: the module ends as if nothing had happened, or all hear why."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cloud_process import PLACES
from cloud_runs import (
    DEVICES,
    LORA,
    SERIAL,
    Cloud,
    Said,
    batch,
    expected,
    forked,
    is_same,
    opened,
    same_words,
    stored,
    train,
)
from fault_run import zygote_at
from relay import relayed
from torch import Tensor

from flwr_splitkd.errors import HandshakeError, PeerLostError, ProtocolError, SplitKDError, StoreError
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

STEPS = range(6)
# With commits after every second step, nearly every one of these falls behind some steps that are not durable.
NTH = {
    "within a backward pass": 11,
    "between answers and step": 4,
    "between step and answer": 4,
    "before a commit": 3,
    "within a commit": 3,
    "after a commit": 3,
    "after a commit, the answer lost": 4,
}

FAST = {"after a commit, the answer lost"}


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with zygote_at(
        tmp_path_factory.mktemp("zygote") / "socket", Path(__file__).parent, cloud="cloud_process"
    ) as socket:
        yield socket


@pytest.fixture
def cloud(zygote: str, tmp_path: Path) -> Iterator[Cloud]:
    with forked(zygote, tmp_path, tasks=[SERIAL, LORA]) as one:
        yield one


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, tuple[dict[str, Tensor], list[list[Said]]]]:
    return {task: expected(task, "edge", STEPS) for task in (SERIAL, LORA)}


@contextlib.contextmanager
def kept_alive(cloud: Cloud) -> Iterator[None]:
    """Whenever the cloud's process is gone, another one takes its place, as systemd would see to."""
    done = threading.Event()
    failures: list[str] = []

    def watch() -> None:
        while not done.wait(0.02):
            if not cloud.lives():
                try:
                    cloud.start()
                except AssertionError as error:
                    failures.append(str(error))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    except SplitKDError as error:
        raise AssertionError("\n".join([*failures, cloud.output()[-6000:]])) from error
    finally:
        done.set()
        watcher.join()


@pytest.mark.parametrize(
    "place", [place if place in FAST else pytest.param(place, marks=pytest.mark.slow) for place in PLACES]
)
def test_killed(cloud: Cloud, place: str, uninterrupted: dict[str, tuple[dict[str, Tensor], list[list[Said]]]]) -> None:
    task = LORA if "commit" in place else SERIAL
    cloud.start(die=place, nth=NTH[place])
    first = cloud.pid
    with opened(cloud.access(task)) as link, kept_alive(cloud):
        said = train(link, "edge", STEPS)
        link.end_round("run", 1)
        assert cloud.pid != first and link.num_reopened == 1
    state, words = uninterrupted[task]
    assert is_same(stored(cloud.folder, task), state)  # moments and the number of steps, too
    assert same_words(said, words)


@pytest.mark.slow
def test_killed_again_and_again(cloud: Cloud) -> None:
    steps = range(40)
    cloud.start()

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(cloud.pid, signal.SIGKILL)

    said: list[list[Said]] = []
    with opened(cloud.access(LORA)) as link, kept_alive(cloud):
        for begin in range(0, len(steps), 10):
            killer = threading.Timer(0.05, kill)
            killer.start()
            said += train(link, "edge", steps[begin : begin + 10])
            killer.join()
        link.end_round("run", 1)
        assert link.num_reopened >= 2
    state, words = expected(LORA, "edge", steps)
    assert is_same(stored(cloud.folder, LORA), state) and same_words(said, words)


def test_connections_that_are_cut(
    cloud: Cloud, uninterrupted: dict[str, tuple[dict[str, Tensor], list[list[Said]]]]
) -> None:
    """Both processes live: within the grace period the stream goes on, beyond it the task is opened anew."""
    cloud.start()
    with relayed(cloud.address) as relay, opened(cloud.access(LORA, address=relay.address)) as link:
        said = train(link, "edge", range(2))
        relay.cut()
        said += train(link, "edge", range(2, 4))
        assert relay.num_connections > 1 and link.num_reopened == 0
        before = relay.num_connections
        relay.refusing = True
        relay.cut()
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(train, link, "edge", range(4, 6))
            time.sleep(2.5)  # the cloud's grace period is 2 s
            relay.refusing = False
            said += rest.result(60)
        assert relay.num_connections > before and link.num_reopened == 1
        link.end_round("run", 1)
    state, words = uninterrupted[LORA]
    assert is_same(stored(cloud.folder, LORA), state) and same_words(said, words)


@pytest.mark.slow
def test_away_for_too_long(cloud: Cloud) -> None:
    """Whoever waits hears of it, and whoever comes later."""
    cloud.start(die="within a backward pass", nth=3)
    with opened(cloud.access(patience_s=1.0)) as link:
        with ThreadPoolExecutor(DEVICES) as pool:
            waiting = [pool.submit(link.differentiate, d, 0, *batch("edge", d, 0)) for d in range(DEVICES)]
            began_s = time.monotonic()
            failures = [future.exception(20) for future in waiting]
            # Which device's pass is the third depends on whose call came last.
            assert any(isinstance(failure, PeerLostError) for failure in failures)
            assert all(failure is None or isinstance(failure, PeerLostError) for failure in failures)
        assert time.monotonic() - began_s < 15
        with pytest.raises(PeerLostError, match="nobody listens at this address. Start it with `flwr-splitkd cloud`"):
            link.step([(0, 0)])


@pytest.mark.slow
def test_closed_while_the_cloud_is_away(cloud: Cloud) -> None:
    cloud.start()
    with opened(cloud.access(patience_s=300.0)) as link:
        cloud.kill()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(link.weights)
            time.sleep(0.3)
            began_s = time.monotonic()
            link.close()
            with pytest.raises(PeerLostError, match="The stream to the cloud is closed"):
                waiting.result(5)
        assert time.monotonic() - began_s < 11


@pytest.mark.slow
def test_a_cloud_that_has_forgotten(cloud: Cloud) -> None:
    """What its disk lost, an edge does not have any more either: no training on with another module."""
    cloud.start()
    with opened(cloud.access()) as link:
        train(link, "edge", range(5))
        cloud.kill()
        shutil.rmtree(cloud.folder)
        cloud.start()
        with pytest.raises(
            ProtocolError, match="came back at step 0 of task 'serial'; expected 5 or what it last committed"
        ):
            train(link, "edge", range(5, 6))


@pytest.mark.slow
def test_damaged_state(cloud: Cloud, uninterrupted: dict[str, tuple[dict[str, Tensor], list[list[Said]]]]) -> None:
    """The commit before the damaged one is used; the run goes back to its last round."""
    cloud.start()
    with opened(cloud.access()) as link:
        train(link, "edge", range(4))
        link.end_round("run", 1)
        train(link, "edge", range(4, 6))
    cloud.until(lambda: len(list((cloud.folder / SERIAL / "steps").glob("manifest-*"))) == 2)
    cloud.kill()
    newest = max((cloud.folder / SERIAL / "steps").glob("manifest-*"))
    newest.write_text(newest.read_text()[:40])
    half = cloud.folder / SERIAL / "steps" / "units" / "module-0.safetensors.tmp"
    half.write_bytes(b"half")
    cloud.start()
    assert f"{newest.name} is passed over: it is no manifest" in cloud.output()
    with opened(cloud.access(), pb.TASK_START_CONTINUE) as link:
        assert link.opened.next_step == 4
    with opened(cloud.access(), pb.TASK_START_ROUND, run="run", server_round=1) as link:
        train(link, "edge", range(4, 6))
        link.end_round("run", 2)
    assert is_same(stored(cloud.folder, SERIAL), uninterrupted[SERIAL][0])


def test_a_run_that_ends_within_its_first_round(cloud: Cloud) -> None:
    """It is resumed with the module as it was when the run began, which another run had trained."""
    cloud.start()
    with opened(cloud.access(LORA)) as link:
        train(link, "edge", range(2))
        link.end_round("before", 1)
    at_start = stored(cloud.folder, LORA)
    with opened(cloud.access(LORA), pb.TASK_START_CONTINUE, run="run") as link:
        assert link.opened.next_step == 2
        train(link, "edge", range(2, 5))
    cloud.kill()
    cloud.start()
    with opened(cloud.access(LORA), pb.TASK_START_ROUND, run="run") as link:
        assert link.opened.next_step == 2 and is_same(stored(cloud.folder, LORA), at_start)
    refused = opened(cloud.access(LORA), pb.TASK_START_ROUND, run="third")
    with pytest.raises(SplitKDError, match="no state of round 0 of run 'third'"), refused:
        pass


@pytest.mark.slow
def test_an_edge_that_was_started_again_within_a_round(
    cloud: Cloud, uninterrupted: dict[str, tuple[dict[str, Tensor], list[list[Said]]]]
) -> None:
    """Its run goes back to the round before, and so does the module; the first process's gradients are gone."""
    cloud.start()
    with opened(cloud.access(LORA)) as link:
        train(link, "edge", range(3))
        link.end_round("run", 1)
        at_round = stored(cloud.folder, LORA)
    with opened(cloud.access(LORA), pb.TASK_START_CONTINUE) as link:
        train(link, "edge", range(3, 5))
        link.differentiate(0, 5, *batch("edge", 0, 5))
        with opened(cloud.access(LORA), pb.TASK_START_ROUND, run="run", server_round=1) as second:
            assert second.opened.next_step == 3
            assert is_same(stored(cloud.folder, LORA), at_round)
            weights = {f"weight/{name}": tensor for name, tensor in second.weights().items()}
            assert weights and all(at_round[name].equal(tensor) for name, tensor in weights.items())
            train(second, "edge", range(3, 6))
            second.end_round("run", 2)
            with pytest.raises(HandshakeError, match="Another process has opened task 'lora' as edge 'edge'"):
                link.step([(0, 5)])
            assert second.num_reopened == 0
    assert is_same(stored(cloud.folder, LORA), uninterrupted[LORA][0])


@pytest.mark.slow
def test_a_round_that_is_not_there(cloud: Cloud) -> None:
    cloud.start()
    with opened(cloud.access()) as link:
        train(link, "edge", range(1))
        link.end_round("run", 1)
    with pytest.raises(SplitKDError, match="no state of round 7 of run 'run'; expected one of round 1 of run 'run'"):
        with opened(cloud.access(), pb.TASK_START_ROUND, run="run", server_round=7):
            pytest.fail("opened")


@pytest.mark.slow
def test_terminated(cloud: Cloud) -> None:
    """What was trained is durable, whatever the next commit was to be."""
    cloud.job["commit_every_steps"] = 100
    cloud.start()
    with opened(cloud.access(patience_s=1.0)) as link:
        train(link, "edge", range(3))
        began_s = time.monotonic()
        cloud.kill(signal.SIGTERM)
        assert time.monotonic() - began_s < 10
        assert is_same(stored(cloud.folder, SERIAL), expected(SERIAL, "edge", range(3))[0])
        cloud.start()
    with opened(cloud.access(), pb.TASK_START_CONTINUE) as link:
        assert link.opened.next_step == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
@pytest.mark.slow
def test_a_full_disk(zygote: str, tmp_path: Path) -> None:
    """The edge is told, the commit before is whole, and with some room the run goes on from its last round."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        with forked(zygote, tmp_path, folder=str(disk / "state")) as cloud:
            cloud.start()
            with opened(cloud.access()) as link:
                train(link, "edge", range(2))
                link.end_round("run", 1)
                before = stored(cloud.folder, SERIAL)
                filler = disk / "filler"
                with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(1 << 12))
                with pytest.raises(
                    SplitKDError, match="the cloud at .* reported: .*No space left on device.*is untouched"
                ):
                    train(link, "edge", range(2, 8))
            assert is_same(stored(cloud.folder, SERIAL), before)
            filler.unlink()
            with opened(cloud.access(), pb.TASK_START_ROUND, run="run", server_round=1) as link:
                train(link, "edge", range(2, 6))
                link.end_round("run", 2)
            assert is_same(stored(cloud.folder, SERIAL), expected(SERIAL, "edge", STEPS)[0])
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.slow
def test_another_configuration_than_that_of_the_state(cloud: Cloud, tmp_path: Path) -> None:
    cloud.start()
    with opened(cloud.access()) as link:
        train(link, "edge", range(1))
        link.end_round("run", 1)
    cloud.kill()
    shutil.move(cloud.folder / SERIAL, cloud.folder / LORA)
    with pytest.raises(
        AssertionError, match=f"StoreError: {cloud.folder / LORA} holds another module than task 'lora'"
    ):
        cloud.start()
    assert StoreError.__name__ in cloud.output()
