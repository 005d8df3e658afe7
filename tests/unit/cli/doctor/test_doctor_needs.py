"""What roles take, as the cost model predicts it."""

from __future__ import annotations

import pytest

from flwr_splitkd.cli.doctor.needs import need_of_cloud, need_of_device, need_of_edge
from flwr_splitkd.costs import GENERIC_DEVICE, RUNTIME_BYTES, Workload, cut_terms, device_memory, named_shape
from flwr_splitkd.errors import ConfigError

STUDENT, TEACHER = named_shape("gpt2/6"), named_shape("gpt2")
WORK = Workload(
    batch_size=2,
    sequence_length=32,
    num_batches=1,
    weight_bytes=2,
    activation_bytes=2,
    moments=2,
    runtime_bytes=RUNTIME_BYTES,
)


def test_a_device_takes_what_the_cost_model_says() -> None:
    need = need_of_device(STUDENT, TEACHER, WORK, 3)
    memory = device_memory(STUDENT, TEACHER, WORK)
    assert need.memory_bytes == memory.peak[2] and need.model_bytes == memory.peak[2] - RUNTIME_BYTES
    at = memory.at(3)
    assert need.disk_bytes == at["weights"] + at["embedding"] + at["teacher"] + at["moments"]
    assert (
        need.what
        == "the device's half of gpt2/6 at cut 3, taught by gpt2, 2 x 32 tokens, 2 bytes a weight and 2 moments"
    )
    assert need_of_device(STUDENT, TEACHER, WORK, None).cut == 1


def test_an_edge_takes_more_with_a_teacher_and_three_commits() -> None:
    need = need_of_edge(STUDENT, TEACHER, WORK, 2)
    assert need.model_bytes == cut_terms(STUDENT, TEACHER, WORK, GENERIC_DEVICE).server_memory_bytes[1]
    assert need.memory_bytes == need.model_bytes + RUNTIME_BYTES
    assert need.memory_bytes - need_of_edge(STUDENT, None, WORK, 2).memory_bytes == TEACHER.num_parameters * 2
    trains = STUDENT.num_parameters - STUDENT.embedding_parameters
    assert need.disk_bytes == 3 * 2 * (STUDENT.num_parameters + 2 * trains)


def test_a_cloud_takes_the_weights_at_least() -> None:
    need = need_of_cloud(TEACHER, 2.0)
    assert need.memory_bytes == 2 * TEACHER.num_parameters + RUNTIME_BYTES
    assert need.disk_bytes == need.model_bytes == 2 * TEACHER.num_parameters
    assert need.cuts_within(1e15) == ""


def test_cuts_that_fit() -> None:
    need = need_of_device(STUDENT, None, WORK, None)
    assert need.cuts_within(need.by_cut[2]) == "cuts 1..3 fit"
    assert need.cuts_within(need.by_cut[0]) == "cut 1 fits" and need.cuts_within(0.0) == "no cut fits"
    edge = need_of_edge(STUDENT, None, WORK, None)
    assert edge.cuts_within(edge.by_cut[2]) == "cuts 3..5 fit"


@pytest.mark.parametrize("cut", [0, 6])
def test_cuts_that_there_are_not(cut: int) -> None:
    with pytest.raises(ConfigError, match=f"`cut` is {cut}; expected 1..5 for the 6 blocks of gpt2/6"):
        need_of_device(STUDENT, None, WORK, cut)


def test_a_model_of_one_block() -> None:
    with pytest.raises(ConfigError, match="expected at least 2"):
        need_of_edge(named_shape("gpt2/1"), None, WORK, None)
