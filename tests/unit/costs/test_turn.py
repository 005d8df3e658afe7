"""What a turn costs: a small example by hand, and how each setting moves the cost."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs import (
    BlockTimes,
    CutTerms,
    DeviceProfile,
    LinkState,
    ModelShape,
    ServerProfile,
    Workload,
    cut_terms,
    device_memory,
    turn_cost,
)
from flwr_splitkd.costs.workload import CODEC_BYTES
from flwr_splitkd.errors import ConfigError

# Blocks of 3 S + S^2 FLOPs, so that 4 tokens take 28, and 20 with causal attention.
STUDENT = ModelShape(
    name="student",
    hidden_size=2,
    embedding_width=2,
    vocab_size=5,
    block_parameters=np.array([10.0, 20.0, 30.0]),
    block_flops_per_token=np.full(3, 3.0),
    block_flops_per_pair=np.full(3, 1.0),
    embedding_parameters=10,
    head_parameters=2,
    head_flops_per_token=20.0,
    tied=True,
)
TEACHER = ModelShape(
    name="teacher",
    hidden_size=4,
    embedding_width=3,
    vocab_size=5,
    block_parameters=np.array([50.0, 50.0]),
    block_flops_per_token=np.full(2, 5.0),
    block_flops_per_pair=np.full(2, 2.0),
    embedding_parameters=15,
    head_parameters=25,
    head_flops_per_token=30.0,
)
WORKLOAD = Workload(batch_size=2, sequence_length=4, num_batches=5, local_epochs=2, token_bytes=8.0)
DEVICE = DeviceProfile(name="device", frequency_hz=10.0, cores=2, power_coefficient=0.003, transmit_power_w=0.5)
SERVER = ServerProfile(
    name="server",
    min_frequency_hz=10.0,
    max_frequency_hz=100.0,
    cores=4,
    power_coefficient=0.001,
    static_power_w=7.0,
    idle_activity=0.5,
    idle_frequency_hz=20.0,
    transmit_power_w=3.0,
)
LINK = LinkState(uplink_bps=1000.0, downlink_bps=2000.0)


def _terms(**changes: Any) -> CutTerms:
    options = {"student": STUDENT, "teacher": TEACHER, "workload": WORKLOAD, "device": DEVICE} | changes
    first = [options.pop(name) for name in ("student", "teacher", "workload", "device")]
    return cut_terms(*first, **options)


def test_terms_by_hand() -> None:
    """10 steps of 8 tokens; a block takes 28 FLOPs a sample, the student's head 80, the teacher 2 x 52 + 120."""
    terms = _terms()
    assert terms.cuts.tolist() == [1, 2]
    assert terms.num_steps == 10
    assert terms.device_s.tolist() == pytest.approx([10 * 2 * 3 * 28 / 40, 10 * 2 * 3 * 56 / 40])
    assert terms.server_flops.tolist() == [10 * 2 * (224 + 3 * (56 + 80)), 10 * 2 * (224 + 3 * (28 + 80))]
    assert terms.uplink_bytes.tolist() == [10 * 8 * (2 * 4 + 3 * 4 + 8)] * 2
    assert terms.downlink_bytes.tolist() == [10 * 8 * 2 * 4] * 2
    assert terms.handover_uplink_bytes.tolist() == terms.handover_downlink_bytes.tolist() == [10 * 12, 30 * 12]
    assert terms.device_memory_bytes.tolist() == device_memory(STUDENT, TEACHER, WORKLOAD).peak.tolist()
    # Of 3 FLOPs a token projections are 3 / (2 x 2) wide, of 1 a pair twice the queries 1 / 2.
    kept = 8 * 4 * (0.75 + (0.75 - 0.5) / 3 + 6 * 2)
    assert terms.server_memory_bytes.tolist() == pytest.approx(
        [(72 * 3 - 10 * 2 + 50 + 2 + 140) * 4 + 2 * kept, (72 * 3 - 10 * 2 + 30 + 2 + 140) * 4 + kept]
    )
    halves = _terms(workload=replace(WORKLOAD, num_microbatches=2))
    assert (terms.server_memory_bytes - halves.server_memory_bytes).tolist() == pytest.approx([kept, kept / 2])
    joined = _terms(workload=replace(WORKLOAD, joined_devices=3))
    assert (joined.server_memory_bytes - terms.server_memory_bytes).tolist() == pytest.approx([4 * kept, 2 * kept])
    assert joined.device_memory_bytes.tolist() == terms.device_memory_bytes.tolist()
    assert terms.other_s.tolist() == [0, 0]


def test_turn_by_hand() -> None:
    terms = _terms()
    cost = turn_cost(terms, terms.index(1), frequency_hz=50.0, device=DEVICE, server=SERVER, link=LINK)
    device_s, uplink_s, server_s, downlink_s = 42.0, 8 * (2240 + 120) / 1000, 12640 / (50 * 8), 8 * (640 + 120) / 2000
    total_s = device_s + uplink_s + server_s + downlink_s
    assert (cost.device_s, cost.uplink_s, cost.server_s, cost.downlink_s) == pytest.approx(
        (device_s, uplink_s, server_s, downlink_s)
    )
    assert cost.total_s == pytest.approx(total_s)
    assert cost.device_compute_j == pytest.approx(0.003 * 10**3 * device_s)
    assert cost.device_transmit_j == pytest.approx(0.5 * uplink_s)
    assert cost.server_compute_j == pytest.approx(0.001 * 50**3 * server_s)
    assert cost.server_transmit_j == pytest.approx(3 * downlink_s)
    assert cost.server_static_j == pytest.approx(7 * total_s)
    assert cost.server_idle_j == pytest.approx(0.5 * 0.001 * 20**3 * (total_s - server_s))
    assert cost.device_j == pytest.approx(cost.device_compute_j + cost.device_transmit_j)
    parts = [cost.server_compute_j, cost.server_transmit_j, cost.server_static_j, cost.server_idle_j]
    assert cost.total_j == pytest.approx(cost.device_j + sum(parts))


def test_what_was_measured_on_top_makes_the_turn_longer() -> None:
    terms = _terms()
    later = replace(terms, other_s=np.array([5.0, 6.0]))
    plain, slow = (turn_cost(t, 1, frequency_hz=50.0, device=DEVICE, server=SERVER, link=LINK) for t in (terms, later))
    assert slow.total_s == pytest.approx(plain.total_s + 6)
    assert slow.server_static_j == pytest.approx(plain.server_static_j + 7 * 6)


def test_the_servers_seconds_that_no_clock_shortens() -> None:
    terms = replace(_terms(), server_offset_s=4.0)
    who = {"device": DEVICE, "server": SERVER, "link": LINK}
    plain = turn_cost(_terms(), 0, frequency_hz=50.0, **who)
    cost = turn_cost(terms, 0, frequency_hz=50.0, **who)
    assert cost.server_s == pytest.approx(plain.server_s + 4)
    assert cost.total_s == pytest.approx(plain.total_s + 4)
    assert cost.server_compute_j == plain.server_compute_j
    assert cost.server_static_j == pytest.approx(plain.server_static_j + 7 * 4)
    assert cost.server_idle_j == pytest.approx(plain.server_idle_j + 4 * 4)
    assert turn_cost(terms, 0, frequency_hz=1e12, **who).server_s == pytest.approx(4, abs=1e-6)


def test_without_a_teacher() -> None:
    with_teacher, alone = _terms(), _terms(teacher=None)
    assert (with_teacher.server_flops - alone.server_flops).tolist() == [10 * 2 * 224] * 2
    assert (with_teacher.uplink_bytes - alone.uplink_bytes).tolist() == [10 * 8 * 3 * 4] * 2
    # Its table of 15 weights, and its embeddings of 8 tokens as they are made and as they are sent.
    assert (with_teacher.device_memory_bytes - alone.device_memory_bytes).tolist() == [15 * 4 + 8 * 2 * 3 * 4] * 2
    assert (with_teacher.server_memory_bytes - alone.server_memory_bytes).tolist() == pytest.approx([140 * 4] * 2)
    assert with_teacher.downlink_bytes.tolist() == alone.downlink_bytes.tolist()


def test_causal_attention_takes_half_of_the_pairs() -> None:
    ratio = _terms(workload=replace(WORKLOAD, causal=True)).device_s / _terms().device_s
    assert ratio.tolist() == pytest.approx([20 / 28] * 2)


def test_options_are_every_cut_of_each_codec() -> None:
    terms = _terms(codecs=("int8", "none"))
    assert list(zip(terms.cuts.tolist(), terms.codecs, strict=True)) == [
        *((1, "int8"), (2, "int8")),
        *((1, "none"), (2, "none")),
    ]
    assert len(terms) == 4
    assert [terms.index(2, "int8"), terms.index(1), terms.index(2)] == [1, 2, 3]


@pytest.mark.parametrize("codec", sorted(CODEC_BYTES))
def test_a_codec_shrinks_smashed_data_and_gradients_only(codec: str) -> None:
    terms = _terms(codecs=("none", codec))
    value = CODEC_BYTES[codec]
    assert terms.uplink_bytes[2:].tolist() == pytest.approx([80 * (5 * value + 8)] * 2)
    assert terms.downlink_bytes[2:].tolist() == pytest.approx([80 * 2 * value] * 2)
    for name in ("device_s", "server_flops", "handover_uplink_bytes", "device_memory_bytes", "server_memory_bytes"):
        both = getattr(terms, name)
        assert both[2:].tolist() == both[:2].tolist()


def test_more_passes_repeat_the_steps_but_not_the_handover() -> None:
    once, twice = (_terms(workload=replace(WORKLOAD, local_epochs=epochs)) for epochs in (1, 2))
    for name in ("device_s", "server_flops", "uplink_bytes", "downlink_bytes"):
        assert getattr(twice, name).tolist() == pytest.approx((2 * getattr(once, name)).tolist())
    assert twice.handover_uplink_bytes.tolist() == once.handover_uplink_bytes.tolist()
    assert twice.device_memory_bytes.tolist() == once.device_memory_bytes.tolist()


def test_trained_embeddings_change_hands_and_take_memory() -> None:
    plain, trained = _terms(), _terms(workload=replace(WORKLOAD, train_embeddings=True))
    assert (trained.handover_uplink_bytes - plain.handover_uplink_bytes).tolist() == [10 * 12] * 2
    assert (trained.device_memory_bytes - plain.device_memory_bytes).tolist() == [10 * 3 * 4] * 2


def test_a_handover_that_is_known_better() -> None:
    terms = _terms(handover_bytes=np.array([7.0, 9.0]), codecs=("none", "int8"))
    assert terms.handover_uplink_bytes.tolist() == terms.handover_downlink_bytes.tolist() == [7, 9, 7, 9]


def test_measured_block_times_take_the_place_of_the_nominal_speed() -> None:
    times = BlockTimes(
        model="student",
        batch_size=1,
        sequence_length=16,
        forward_s=(1.0, 2.0, 4.0),
        backward_s=(3.0, 5.0, 6.0),
        embedding_s=0.5,
    )
    device = replace(DEVICE, blocks=times)
    # A batch has half of the measured tokens.
    assert _terms(device=device).device_s.tolist() == pytest.approx([10 * 4.5 / 2, 10 * 11.5 / 2])
    larger = _terms(device=device, workload=replace(WORKLOAD, batch_size=6))
    assert larger.device_s.tolist() == pytest.approx([3 * 10 * 4.5 / 2, 3 * 10 * 11.5 / 2])
    faster = replace(device, frequency_hz=1e9)
    assert _terms(device=faster).device_s.tolist() == _terms(device=device).device_s.tolist()


def test_memory_grows_with_the_cut_on_the_device_and_shrinks_on_the_server() -> None:
    rng = np.random.default_rng(0)
    blocks = 12
    student = replace(
        STUDENT,
        block_parameters=rng.uniform(0, 100, blocks),
        block_flops_per_token=np.full(blocks, 3.0),
        block_flops_per_pair=np.full(blocks, 1.0),
    )
    terms = _terms(student=student)
    assert (np.diff(terms.device_memory_bytes) > 0).all()
    assert (np.diff(terms.server_memory_bytes) < 0).all()
    assert (np.diff(terms.handover_uplink_bytes) > 0).all()
    assert (np.diff(terms.server_flops) < 0).all()
    larger = _terms(student=student, workload=replace(WORKLOAD, batch_size=4))
    assert (larger.device_memory_bytes > terms.device_memory_bytes).all()


def test_seconds_on_the_link() -> None:
    terms = _terms()
    assert np.isinf(terms.uplink_s(LinkState(uplink_bps=0, downlink_bps=1))).all()
    assert np.isfinite(terms.downlink_s(LinkState(uplink_bps=0, downlink_bps=1))).all()
    endless = LinkState(uplink_bps=math.inf, downlink_bps=math.inf)
    assert terms.uplink_s(endless).tolist() == terms.downlink_s(endless).tolist() == [0, 0]
    nothing = replace(terms, uplink_bytes=np.zeros(2), handover_uplink_bytes=np.zeros(2))
    assert nothing.uplink_s(LinkState(uplink_bps=0, downlink_bps=0)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codecs": ()}, "`codecs` is empty; expected at least one"),
        ({"codecs": ("zip",)}, "The codec is 'zip'; expected 'none' or one of ['bfloat16', 'float16', 'int8']"),
        ({"handover_bytes": np.zeros(3)}, "`handover_bytes` has shape (3,); expected (2,)"),
        (
            {
                "student": replace(
                    STUDENT,
                    **{
                        name: np.ones(1)
                        for name in ("block_parameters", "block_flops_per_token", "block_flops_per_pair")
                    },
                )
            },
            "student has 1 block; expected at least 2",
        ),
        (
            {
                "device": replace(
                    DEVICE,
                    blocks=BlockTimes(
                        model="other", batch_size=1, sequence_length=1, forward_s=(1, 1), backward_s=(1, 1)
                    ),
                )
            },
            "device was measured with the 2 blocks of other; expected the 3 of student",
        ),
    ],
)
def test_what_cannot_be_worked_out(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        _terms(**changes)


@pytest.mark.parametrize(("cut", "codec"), [(0, "none"), (3, "none"), (1, "int8")])
def test_no_such_option(cut: int, codec: str) -> None:
    message = f"There is no cut {cut} with the codec '{codec}'; expected cuts 1..2 with ['none']"
    with pytest.raises(ConfigError, match=re.escape(message)):
        _terms().index(cut, codec)


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("batch_size", 0, "at least 1"),
        ("sequence_length", 0, "at least 1"),
        ("num_batches", -1, "at least 1"),
        ("local_epochs", 0, "at least 1"),
        ("activation_bytes", -1.0, "a finite number of at least 0"),
        ("weight_bytes", math.inf, "a finite number of at least 0"),
        ("moments", -1, "a finite number of at least 0"),
        ("token_bytes", math.nan, "a finite number of at least 0"),
        ("gradient_accumulation_steps", 0, "at least 1"),
        ("num_microbatches", 0, "at least 1"),
        ("pipeline_depth", 0, "at least 1"),
        ("runtime_bytes", -1.0, "a finite number of at least 0"),
    ],
)
def test_a_workload_out_of_range(field: str, value: float, bound: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"`{field}` is {value}; expected {bound}")):
        replace(WORKLOAD, **{field: value})
