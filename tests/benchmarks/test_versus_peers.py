"""The benchmark against other ways to take a split step: they do the same arithmetic, or the benchmark says that they do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from _peer_grpc import pack, unpack
from _peer_halves import PlainDevice, PlainEdge
from _peer_nvflare import Deployment, deployment, nvflare_version
from _step_processes import Job, UnsplitSteps
from _step_worker import run_unsplit
from versus_peers import Measured, loss_difference

VERSUS_PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "versus_peers.py"


def steps(losses: list[float], student: str = "") -> UnsplitSteps:
    return UnsplitSteps(step_s=[0.1], student=student, losses=losses)


def measured(split: UnsplitSteps, unsplit: UnsplitSteps) -> Measured:
    return Measured(name="a peer", split=[split], unsplit=[unsplit], whole=[])


def test_the_plain_halves_train_what_the_unsplit_step_trains(tmp_path: Path) -> None:
    job = Job(cut=4, warmup=0, steps=2, batch_size=2)
    count = job.message()["steps"]
    device, edge = PlainDevice(job.cut, count, batch_size=2), PlainEdge(job.cut)
    for _ in range(count):
        device.backward(edge.gradient(device.forward()))
        edge.update()
    unsplit = run_unsplit(job.message(), tmp_path)["losses"]
    assert loss_difference(edge.losses, unsplit) <= 1e-6
    assert unsplit[0] != unsplit[-1]


def test_microbatches_change_the_unsplit_step_by_rounding_alone(tmp_path: Path) -> None:
    losses = [
        run_unsplit(Job(cut=4, warmup=0, steps=1, batch_size=4, num_microbatches=count).message(), tmp_path)["losses"]
        for count in (1, 2)
    ]
    assert loss_difference(*losses) <= 1e-5


def test_tensors_come_out_of_the_hand_written_message_as_they_went_in() -> None:
    sent = {"a": torch.randn(3, 5).T, "labels": torch.tensor([[1, -100]]), "mask": torch.ones(2, 2, dtype=torch.bool)}
    received = unpack(pack(sent))
    assert list(received) == list(sent)
    assert all(torch.equal(received[name], tensor) for name, tensor in sent.items())


def test_other_losses_end_the_benchmark() -> None:
    assert "1e-06" in measured(steps([2.000002]), steps([2.0])).check
    with pytest.raises(SystemExit, match="a peer.*expected at most 1e-05"):
        _ = measured(steps([2.1]), steps([2.0])).check


def test_fewer_losses_are_other_losses() -> None:
    assert loss_difference([1.0], [1.0, 2.0]) == float("inf")
    with pytest.raises(SystemExit):
        _ = measured(steps([]), steps([])).check


def test_an_equal_student_needs_no_losses_and_another_does() -> None:
    assert "bit for bit" in measured(steps([], "digest"), steps([2.0], "digest")).check
    with pytest.raises(SystemExit):
        _ = measured(steps([], "other"), steps([2.0], "digest")).check


def test_an_interpreter_without_nvflare_is_told_what_to_install() -> None:
    with pytest.raises(SystemExit, match="cannot run NVFlare's job.*pip install nvflare"):
        nvflare_version(Path(sys.executable))


def test_a_deployment_that_ends_early_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("no such job\n")
    jobs, answers = os.pipe(), os.pipe()
    try:
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            process.wait()
            with pytest.raises(SystemExit, match="did not answer(.|\\n)*no such job"):
                Deployment(process, jobs[1], answers[0], tmp_path / "log.txt").run({"steps": 1})
    finally:
        for descriptor in (*jobs, *answers):
            os.close(descriptor)


def test_unequal_threads_are_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"\(2, 1\).*equal"),
        deployment(Path(sys.executable), inline=False, threads=(2, 1), cores=None),
    ):
        pass
