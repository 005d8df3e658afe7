"""What a device holds: a small example by hand, what each setting adds."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs import RUNTIME_BYTES, DeviceMemory, ModelShape, Workload, device_memory
from flwr_splitkd.costs.memory import kept_values

STUDENT = ModelShape(
    name="student",
    hidden_size=2,
    embedding_width=2,
    vocab_size=5,
    block_parameters=np.array([1000.0, 2000.0, 4000.0, 8000.0]),
    block_flops_per_token=np.array([16.0, 16.0, 64.0, 16.0]),
    block_flops_per_pair=np.full(4, 8.0),
    embedding_parameters=10,
    head_parameters=2,
    head_flops_per_token=20.0,
    tied=True,
)
TEACHER = replace(STUDENT, name="teacher", embedding_width=3, vocab_size=7)
WORKLOAD = Workload(batch_size=4, sequence_length=8, num_batches=1)
# Per token: 4 projections + (4 - 4) / 3 + 6 x 2; the third block's are four times as many: 16 + 12 / 3 + 12.
KEPT = (16, 16, 32)


def _memory(**changes: Any) -> DeviceMemory:
    teacher = changes.pop("teacher", TEACHER)
    return device_memory(changes.pop("student", STUDENT), teacher, replace(WORKLOAD, **changes))


def test_terms_by_hand() -> None:
    """32 tokens, 4 bytes a weight and a value, two moments."""
    memory = _memory(runtime_bytes=5e8)
    assert memory.weights.tolist() == [4_000, 12_000, 28_000]
    assert memory.embedding.tolist() == [40] * 3
    assert memory.teacher.tolist() == [7 * 3 * 4] * 3
    assert memory.gradients.tolist() == memory.weights.tolist()
    assert memory.moments.tolist() == (2 * memory.weights).tolist()
    assert memory.activations.tolist() == [4 * 32 * kept for kept in (KEPT[0], sum(KEPT[:2]), sum(KEPT))]
    assert memory.messages.tolist() == [32 * (2 * (2 + 3) * 4 + 8)] * 3
    assert memory.runtime.tolist() == [5e8] * 3
    assert memory.optimizer.tolist() == pytest.approx([4e3 * 1.6, 12e3 + 2 * 0.3 * 8e3, 28e3 + 2 * 0.3 * 16e3])


def test_kept_values_by_hand() -> None:
    assert kept_values(STUDENT).tolist() == [*KEPT, KEPT[0]]


def test_kept_values_that_a_shape_has() -> None:
    """In place of the formula's; pairs count once for each token of the sample."""
    told = replace(STUDENT, block_kept_per_token=np.full(4, 50.0))
    assert kept_values(told, 8).tolist() == [50] * 4
    with_maps = replace(told, block_kept_per_pair=np.array([0.0, 3.0, 3.0, 3.0]))
    assert kept_values(with_maps).tolist() == [50] * 4
    assert kept_values(with_maps, 8).tolist() == [50, 74, 74, 74]
    assert _memory(student=with_maps).activations.tolist() == [128 * kept for kept in (50, 124, 198)]


def test_maps_grow_with_the_sample_and_not_with_the_batch() -> None:
    """As many tokens in half as many samples: maps of twice the size."""
    with_maps = replace(STUDENT, block_kept_per_pair=np.full(4, 3.0))
    short, long = (_memory(student=with_maps, batch_size=32 // s, sequence_length=s).activations for s in (8, 16))
    assert (long - _memory().activations).tolist() == (2 * (short - _memory().activations)).tolist()
    parts = _memory(student=with_maps, num_microbatches=2).activations
    assert (2 * parts).tolist() == short.tolist()


def test_activations_go_while_gradients_come() -> None:
    """Cut 2: the second block's gradient is there while both blocks' activations are, both gradients with the first one's alone."""
    one, two, three = (128.0 * kept for kept in KEPT)
    expected = [
        4e3 + one,
        max(8e3 + one + two, 12e3 + one),
        max(16e3 + one + two + three, 24e3 + one + two, 28e3 + one),
    ]
    assert _memory().backward.tolist() == expected
    assert (_memory().backward < _memory().gradients + _memory().activations)[1:].all()


def test_many_activations_make_another_moment_the_worst() -> None:
    """A hundred times the tokens: the most is where the backward pass begins, not where it ends."""
    memory = _memory(batch_size=400)
    assert memory.backward.tolist() == (np.array([4e3, 8e3, 16e3]) + memory.activations).tolist()


def test_what_is_held_at_each_moment() -> None:
    memory = _memory(runtime_bytes=1.0)
    held = memory.weights + memory.embedding + memory.teacher + memory.moments + 1
    assert memory.held.tolist() == held.tolist()
    assert memory.begin.tolist() == memory.end.tolist() == (held + memory.frames).tolist()
    assert memory.step.tolist() == (held + np.maximum(memory.backward + memory.messages, memory.optimizer)).tolist()
    assert memory.peak.tolist() == np.max([memory.begin, memory.step, memory.end], axis=0).tolist()
    assert set(memory.at(2)) == {field.name for field in fields(memory)}
    assert memory.at(2)["weights"] == 12_000


def test_the_optimizers_step_is_the_worst_where_batches_are_small() -> None:
    memory = _memory(batch_size=1, sequence_length=1)
    assert memory.step.tolist() == (memory.held + memory.optimizer).tolist()


def test_microbatches_take_less_and_depth_more() -> None:
    whole, halves, both = _memory(), _memory(num_microbatches=2), _memory(num_microbatches=2, pipeline_depth=2)
    assert (2 * halves.activations).tolist() == both.activations.tolist() == whole.activations.tolist()
    ahead = 2 * 32 * 3 * 4  # teacher embeddings travel a step ahead, of all micro-batches
    assert (2 * (halves.messages - ahead)).tolist() == (both.messages - ahead).tolist()
    # Gradients of the micro-batch before are there throughout.
    assert halves.backward.tolist() == (halves.gradients + halves.activations).tolist()
    deeper = _memory(num_microbatches=2, pipeline_depth=9)
    assert deeper.activations.tolist() == both.activations.tolist(), "there are no more than there are"
    assert _memory(pipeline_depth=4).peak.tolist() == whole.peak.tolist()


def test_accumulated_batches_are_micro_batches_of_their_own() -> None:
    one, two = _memory(), _memory(gradient_accumulation_steps=2, pipeline_depth=2)
    assert two.activations.tolist() == (2 * one.activations).tolist()
    assert two.messages.tolist() == (2 * one.messages).tolist()
    assert two.backward.tolist() == (two.gradients + two.activations).tolist()


def test_uneven_microbatches_count_as_the_largest() -> None:
    uneven, two = _memory(batch_size=4, num_microbatches=3), _memory(batch_size=2)
    assert uneven.activations.tolist() == two.activations.tolist()


def test_what_does_not_train_has_neither_gradients_nor_moments() -> None:
    memory = _memory(trained_share=0.1)
    assert memory.gradients.tolist() == pytest.approx([400, 1200, 2800])
    assert memory.moments.tolist() == pytest.approx([800, 2400, 5600])
    trained = _memory(train_embeddings=True)
    assert (trained.gradients - _memory().gradients).tolist() == [40] * 3
    assert (trained.moments - _memory().moments).tolist() == [80] * 3
    assert _memory(kept_moments=0).moments.tolist() == [0] * 3


def test_no_teacher() -> None:
    memory = _memory(teacher=None)
    assert memory.teacher.tolist() == [0] * 3
    assert memory.messages.tolist() == [32 * (2 * 2 * 4 + 8)] * 3


def test_the_process_itself_is_left_out_unless_asked_for() -> None:
    assert _memory().runtime.tolist() == _memory().frames.tolist() == [0] * 3
    assert (_memory(runtime_bytes=RUNTIME_BYTES).peak - _memory().peak >= RUNTIME_BYTES).all()
