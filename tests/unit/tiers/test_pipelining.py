"""Micro-batches in flight, the teacher a step ahead, and its cache: the same training in less time, and fewer bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_turns import CNN_BLOCKS, OPTIMIZER, Cnn, Federation, images, llama, quick, sentences
from torch import Tensor, nn

from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.errors import ConfigError, DataError, ProtocolError, SplitKDError, StoreError
from flwr_splitkd.split import clip_coefficient, grad_norms, scale_gradients
from flwr_splitkd.tiers.device import steps as device_steps
from flwr_splitkd.tiers.edge import TurnSettings, teacher_cache, teaching
from flwr_splitkd.tiers.edge.teacher_cache import TeacherCache
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["quick"]  # a fixture, in force here too

SEQUENCE = 4 * 20 * 6
"""Bytes of the teacher's outcome for one."""


def batches(count: int = 3, size: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        ids = torch.randint(1, 40, (size, 6), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 4:] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


def unsplit(data: list[Any], teacher: nn.Module, *, parts: int, epochs: int = 1) -> dict[str, Tensor]:
    """Distil in one process, with as many micro-batches in a step, the norm of all gradients clipped to 1."""
    student = llama().train()
    teacher.train(False)
    optimizer = OPTIMIZER.build(student.parameters())
    loss = DistillationLoss(kd_ratio=0.5)
    order = [name for name, _ in student.named_parameters()]
    for batch in data * epochs:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        tokens = int((labels != -100).sum())
        pieces = zip(*(t.chunk(parts) for t in (batch["input_ids"], batch["attention_mask"], labels)), strict=True)
        for ids, mask, target in pieces:
            hidden = student.model(input_ids=ids, attention_mask=mask).last_hidden_state.flatten(0, 1)
            with torch.no_grad():
                taught = teacher.model(input_ids=ids, attention_mask=mask).last_hidden_state.flatten(0, 1)
            heads = (_head(model) for model in (student, teacher))
            terms = loss.from_hidden(hidden, next(heads), taught, next(heads), target.flatten(), num_tokens=tokens)
            terms.loss.backward()
        trainable = list(student.named_parameters())
        factor, _ = clip_coefficient(grad_norms(trainable), order, 1.0)
        scale_gradients((parameter for _, parameter in trainable), factor)
        optimizer.step()
        optimizer.zero_grad()
    return student.state_dict()


def _head(model: nn.Module) -> Any:
    from flwr_splitkd.models import find_head

    return find_head(model)


def _settings(**changes: Any) -> TurnSettings:
    return TurnSettings(max_grad_norm=1.0, **changes)


@pytest.mark.parametrize(("parts", "depth"), [(1, 1), (2, 1), (2, 2), (4, 2), (4, 3), (4, 4), (4, 9)])
def test_any_depth_trains_as_the_unsplit_model_with_the_same_micro_batches(
    parts: int, depth: int, tmp_path: Path
) -> None:
    settings = _settings(num_microbatches=parts)
    federation = Federation(tmp_path, teacher=llama(20), settings=settings)
    federation.turn(0, 2, batches(), pipeline_depth=depth)
    expected = unsplit(batches(), llama(20), parts=parts)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in federation.weights().items())


def test_as_many_micro_batches_are_in_flight_as_the_plan_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    in_flight = 0
    begin, finish = device_steps.Steps._begin, device_steps.Steps._finish

    def count_begin(self: Any, *arguments: Any) -> Any:
        nonlocal in_flight
        in_flight += 1
        seen.append(in_flight)
        return begin(self, *arguments)

    def count_finish(self: Any, *arguments: Any) -> Any:
        nonlocal in_flight
        in_flight -= 1
        return finish(self, *arguments)

    monkeypatch.setattr(device_steps.Steps, "_begin", count_begin)
    monkeypatch.setattr(device_steps.Steps, "_finish", count_finish)
    federation = Federation(tmp_path, settings=_settings(num_microbatches=4))
    federation.turn(0, 2, batches(2), pipeline_depth=3)
    assert seen == [1, 2, 3, 3] * 2
    assert in_flight == 0


def test_evaluation_is_pipelined_too(tmp_path: Path) -> None:
    lock_step = Federation(tmp_path / "one", settings=_settings(num_microbatches=1))
    pipelined = Federation(tmp_path / "four", settings=_settings(num_microbatches=4))
    one, _ = lock_step.turn(0, 2, batches(), mode="evaluate")
    four, _ = pipelined.turn(0, 2, batches(), mode="evaluate", pipeline_depth=4)
    assert four.cross_entropy == pytest.approx(one.cross_entropy, rel=1e-6)
    assert (one.num_batches, four.num_batches) == (3, 12)


def test_a_small_last_batch_has_fewer_micro_batches(tmp_path: Path) -> None:
    federation = Federation(tmp_path, settings=_settings(num_microbatches=4))
    outcome, report = federation.turn(0, 2, [*batches(1), *batches(1, size=3)], pipeline_depth=4)
    assert report is not None
    assert (outcome.num_batches, report.num_steps, report.num_examples) == (4 + 3, 2, 11)


def test_a_batch_whose_parts_do_not_line_up_is_refused_by_name(tmp_path: Path) -> None:
    federation = Federation(tmp_path, settings=_settings(num_microbatches=2))
    batch = {**batches(1)[0], "position_ids": torch.arange(6)[None]}
    with pytest.raises(DataError, match=r"`position_ids` of a batch has shape \(1, 6\).*`num_microbatches`"):
        federation.turn(0, 2, [batch])


@pytest.mark.parametrize(("name", "value"), [("num_microbatches", 0), ("pipeline_depth", -1)])
def test_settings_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` is {value}"):
        TurnSettings(**{name: value})


# ---- the teacher


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """(step of the data, step at work) whenever the teacher is told to work."""
    calls: list[tuple[int, int]] = []
    teach = teaching.Teaching.teach

    def record(self: Any, message: WireMessage, current_step: int) -> None:
        calls.append((message.body.step, current_step))
        teach(self, message, current_step)

    monkeypatch.setattr(teaching.Teaching, "teach", record)
    yield calls


def test_the_teacher_is_a_step_ahead(tmp_path: Path, worked: list[tuple[int, int]]) -> None:
    federation = Federation(tmp_path, teacher=llama(20))
    federation.turn(0, 2, sentences(4))
    assert [step for step, _ in worked] == [0, 1, 2, 3]
    # Before the first Forward nothing can be ahead; afterwards its data are there before the step that needs them begins.
    assert all(current <= step for step, current in worked)


def test_what_was_looked_at_ahead_is_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every micro-batch is checked and moved to the half's device once, also where the teacher hears of it before its step."""
    checked: list[int] = []
    check = device_steps.check_token_ids

    def count(inputs: Any, student: Any) -> None:
        checked.append(len(inputs["input_ids"]))
        check(inputs, student)

    monkeypatch.setattr(device_steps, "check_token_ids", count)
    for name, teacher in (("taught", llama(20)), ("alone", None)):
        federation = Federation(tmp_path / name, teacher=teacher, settings=_settings(num_microbatches=2))
        federation.turn(0, 2, batches(), pipeline_depth=2)
        assert checked == [4] * 2 * 3, name
        checked.clear()


def test_a_token_that_the_student_lacks_ends_the_turn_first_and_looked_at_ahead(tmp_path: Path) -> None:
    wrong = {name: tensor.clone() for name, tensor in batches(1)[0].items()}
    wrong["input_ids"][7, 5] = 40
    for data in ([wrong], [*batches(1), wrong]):
        federation = Federation(tmp_path / str(len(data)), settings=_settings(num_microbatches=2))
        with pytest.raises(DataError, match=r"`input_ids` has 40; expected 0..39"):
            federation.turn(0, 2, data)


def _cache(tmp_path: Path, memory: int = 1 << 20, disk: int = 0) -> TeacherCache:
    return TeacherCache(tmp_path / "teacher-cache", memory_bytes=memory, disk_bytes=disk)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sequences in each of the teacher's passes."""
    sizes: list[int] = []
    outputs = teaching.Teaching._outputs

    def record(self: Any, data: Any) -> Tensor:
        made = outputs(self, data)
        sizes.append(len(made))
        return made

    monkeypatch.setattr(teaching.Teaching, "_outputs", record)
    yield sizes


def test_from_the_second_epoch_on_neither_the_teacher_runs_nor_its_embeddings_travel(
    tmp_path: Path, passes: list[int]
) -> None:
    plain = Federation(tmp_path / "plain", teacher=llama(20), settings=_settings(num_microbatches=2))
    cached = Federation(
        tmp_path / "cached", teacher=llama(20), settings=_settings(num_microbatches=2), cache=_cache(tmp_path)
    )
    plain_outcome, _ = plain.turn(0, 2, batches(), epochs=3, pipeline_depth=2)
    assert passes == [4] * 2 * 3 * 3
    passes.clear()
    outcome, _ = cached.turn(0, 2, batches(), epochs=3, pipeline_depth=2)
    assert passes == [4] * 2 * 3  # the first epoch's
    assert all(torch.equal(tensor, plain.weights()[name]) for name, tensor in cached.weights().items())
    assert outcome.loss == plain_outcome.loss
    embeddings = 4 * 20 * 6 * 8 * 3 * 2  # float32 x width x positions x sequences x steps x epochs left out
    saved = plain_outcome.uplink_payload_bytes - outcome.uplink_payload_bytes
    names = 16 * 8 * 3 * 3 + 8 * 8 * 3  # of every sequence, and the positions of those that were sent
    assert saved == embeddings - names


def test_the_next_turn_of_the_device_needs_nothing_and_another_device_everything(
    tmp_path: Path, passes: list[int]
) -> None:
    federation = Federation(tmp_path, teacher=llama(20), cache=_cache(tmp_path))
    federation.turn(0, 2, batches())
    passes.clear()
    federation.turn(0, 3, batches())
    assert passes == []
    federation.turn(1, 2, batches())
    assert passes == [8, 8, 8]


def test_another_batch_misses_and_a_mixed_one_sends_what_lacks(tmp_path: Path, passes: list[int]) -> None:
    federation = Federation(tmp_path, teacher=llama(20), cache=_cache(tmp_path))
    plain = Federation(tmp_path / "plain", teacher=llama(20))
    first, second = batches(2)
    mixed = {name: torch.cat([first[name][:3], second[name][3:]]) for name in first}
    shorter = {name: tensor[:, :5] for name, tensor in first.items()}
    for one in (plain, federation):
        one.turn(0, 2, [first])
    passes.clear()
    federation.turn(0, 2, [mixed, shorter])
    assert passes == [5, 8]
    plain.turn(0, 2, [mixed, shorter])
    # A pass of other sequences may differ in its last bits.
    for name, tensor in federation.weights().items():
        assert torch.allclose(tensor, plain.weights()[name], rtol=1e-4, atol=1e-6)


def test_another_codec_misses(tmp_path: Path, passes: list[int]) -> None:
    federation = Federation(tmp_path, teacher=llama(20), cache=_cache(tmp_path))
    federation.turn(0, 2, batches(1))
    federation.turn(0, 2, batches(1), uplink_codec="bfloat16", downlink_codec="bfloat16")
    assert passes == [8, 8]


def test_a_teacher_whose_first_blocks_run_on_the_device_is_cached_too(tmp_path: Path, passes: list[int]) -> None:
    torch.manual_seed(11)
    federation = Federation(
        tmp_path,
        build=Cnn,
        teacher=Cnn(),
        teacher_blocks=CNN_BLOCKS,
        teacher_on_device=Cnn,
        task="classification",
        blocks=CNN_BLOCKS,
        cache=_cache(tmp_path),
    )
    federation.turn(0, 1, images(2), epochs=3)
    assert passes == [4, 4]


def test_a_full_cache_keeps_what_it_promised_and_no_more(tmp_path: Path, passes: list[int]) -> None:
    federation = Federation(tmp_path, teacher=llama(20), cache=_cache(tmp_path, memory=10 * SEQUENCE))
    plain = Federation(tmp_path / "plain", teacher=llama(20))
    federation.turn(0, 2, batches(2), epochs=2)
    # Ten of sixteen fit. A micro-batch that is kept in part counts as not kept at all.
    assert passes == [8, 8, 8]
    plain.turn(0, 2, batches(2), epochs=2)
    assert all(torch.equal(tensor, plain.weights()[name]) for name, tensor in federation.weights().items())


def _trained_as_without(tmp_path: Path, passes: list[int], *, epochs: int) -> TeacherCache:
    """Train with a cache that has room for three sequences in memory, and for all on disk, and without any: alike."""
    cache = _cache(tmp_path, memory=3 * SEQUENCE, disk=100 * SEQUENCE)
    federation = Federation(tmp_path, teacher=llama(20), cache=cache)
    plain = Federation(tmp_path / "plain", teacher=llama(20))
    for one in (plain, federation):
        passes.clear()
        one.turn(0, 2, batches(2), epochs=epochs)
    assert all(torch.equal(tensor, plain.weights()[name]) for name, tensor in federation.weights().items())
    return cache


def test_the_disk_takes_what_memory_does_not_hold(tmp_path: Path, passes: list[int]) -> None:
    cache = _trained_as_without(tmp_path, passes, epochs=2)
    assert passes == [8, 8]
    assert cache.bytes_in_memory <= 3 * SEQUENCE
    assert cache.bytes_on_disk >= 13 * SEQUENCE


@pytest.mark.parametrize(
    ("step", "microbatch", "complaint"),
    [(1, 0, "is of step 1"), (0, 1, "is of step 0, micro-batch 1"), (5, 0, "is of step 5")],
)
def test_teacher_data_out_of_order_are_refused(step: int, microbatch: int, complaint: str, tmp_path: Path) -> None:
    from flwr_splitkd.telemetry.spans import SpanRecorder

    teacher = Federation(tmp_path, teacher=llama(20)).objective.teacher
    assert teacher is not None
    one = teaching.Teaching(
        teacher, None, device="a", first_step=0, most_microbatches=1, spans=SpanRecorder(first_step=0)
    )
    with pytest.raises(ProtocolError, match=complaint):
        one.teach(WireMessage(pb.TeacherData(step=step, microbatch=microbatch)), current_step=0)
    with pytest.raises(ProtocolError, match="without TeacherData before it"):
        one.take(0, 0)


def test_what_was_never_kept_cannot_be_left_out(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    with pytest.raises(ProtocolError, match="left out a sequence"):
        cache.get("a", b"0" * 16)
    assert cache.put("a", b"0" * 16, torch.ones(3))
    with pytest.raises(ProtocolError, match="b left out a sequence"):
        cache.get("b", b"0" * 16)


def test_a_cache_drops_what_was_not_used_for_longest_unless_it_is_promised(tmp_path: Path) -> None:
    cache = _cache(tmp_path, memory=8, disk=8)
    one = torch.ones(1)
    for key in (b"1", b"2", b"3", b"4"):
        assert cache.put("a", key, one)
    assert (cache.bytes_in_memory, cache.bytes_on_disk) == (8, 8)
    cache.get("a", b"1")
    assert cache.put("b", b"5", one)
    assert cache.pin("a") == [b"1", b"3", b"4"]
    assert not cache.put("c", b"6", torch.ones(2)), "one of b's may go, and that is not enough"
    cache.unpin("a")
    assert cache.put("c", b"6", torch.ones(2))
    assert len(cache) == 3


def test_a_damaged_file_of_the_cache_ends_the_turn_and_is_forgotten(tmp_path: Path) -> None:
    cache = _cache(tmp_path, memory=0, disk=100)
    cache.put("a", b"1", torch.ones(2))
    (file,) = (tmp_path / "teacher-cache").glob("*/*")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SplitKDError, match="What the teacher made of a sequence cannot be read any more") as raised:
        cache.get("a", b"1")
    assert not isinstance(raised.value, StoreError), "which would end the run"
    assert cache.pin("a") == []


def test_a_disk_that_is_full_costs_the_cache_its_room_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = _cache(tmp_path, memory=8, disk=100)
    one = torch.ones(1)
    assert all(cache.put("a", key, one) for key in (b"1", b"2", b"3"))
    written: list[Path] = []

    def full(path: Path, *_: Any, **__: Any) -> None:
        written.append(path)
        raise StoreError("no space is left")

    monkeypatch.setattr(teacher_cache, "write_tensors", full)
    cache.pin("a")
    assert not cache.put("b", b"4", one)
    assert cache.names("a") == [b"1", b"2", b"3"] and cache.names("b") == []
    assert (cache.bytes_in_memory, cache.bytes_on_disk) == (8, 4)
    assert "writes no more there: no space is left" in caplog.text
    assert not cache.put("b", b"4", one), "all that is in memory is promised"
    cache.unpin("a")
    assert cache.put("b", b"4", one) and cache.names("a") == [b"1", b"3"]
    assert len(written) == 1 and torch.equal(cache.get("a", b"1"), one)


def test_a_disk_that_fills_up_loses_no_turn(tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    write = teacher_cache.write_tensors

    def soon_full(path: Path, tensors: dict[str, Tensor], *, durable: bool) -> None:
        written.append(path)
        if len(written) > 5:
            raise StoreError("no space is left")
        write(path, tensors, durable=durable)

    monkeypatch.setattr(teacher_cache, "write_tensors", soon_full)
    _trained_as_without(tmp_path, passes, epochs=3)
    # Eight of sixteen are kept, those of the first batch; the second one goes through the teacher in every epoch.
    assert passes == [8, 8, 8, 8] and len(written) == 6


def test_the_largest_logits_alone_are_smaller_and_near(tmp_path: Path, passes: list[int]) -> None:
    cache = _cache(tmp_path)
    federation = Federation(tmp_path / "k", teacher=llama(20), teacher_top_k=8, cache=cache)
    exact = Federation(tmp_path / "exact", teacher=llama(20))
    few, _ = federation.turn(0, 2, batches(2), epochs=2)
    assert passes == [8, 8]
    assert cache.bytes_in_memory == 2 * 8 * 6 * 4 * 2 * (8 + 1)
    all_, _ = exact.turn(0, 2, batches(2), epochs=2)
    assert few.teacher_rest_mass is not None
    assert 0.5 < few.teacher_rest_mass <= 1, "random weights: nearly flat distributions"
    assert all_.teacher_rest_mass is None
    assert few.loss == pytest.approx(all_.loss, rel=0.02)
    assert few.loss != all_.loss


def test_the_largest_logits_need_a_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`teacher_top_k` is 40; expected 1..39"):
        Federation(tmp_path, teacher=llama(20), teacher_top_k=40)
    with pytest.raises(ConfigError, match="`teacher_top_k` is 2 for a classifier"):
        Federation(
            tmp_path / "classes",
            build=Cnn,
            teacher=Cnn(),
            teacher_blocks=CNN_BLOCKS,
            task="classification",
            blocks=CNN_BLOCKS,
            teacher_top_k=2,
        )


def test_error_feedback_gives_back_what_the_downlink_codec_left_out(tmp_path: Path) -> None:
    """Three steps of the same batch: the second and third are rounded otherwise than without it."""
    ended: dict[str, dict[str, Tensor]] = {}
    for name, codec, feedback in (("exact", "none", False), ("rounded", "int8", False), ("fed-back", "int8", True)):
        settings = TurnSettings(downlink_codec=codec, error_feedback=feedback)  # type: ignore[arg-type]
        federation = Federation(tmp_path / name, settings=settings)
        federation.turn(0, 2, sentences(1), epochs=3)
        ended[name] = federation.weights()
    assert any(not torch.equal(ended["rounded"][name], tensor) for name, tensor in ended["fed-back"].items())
    assert any(not torch.equal(ended["exact"][name], tensor) for name, tensor in ended["fed-back"].items())
