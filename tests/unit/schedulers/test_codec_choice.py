"""Codecs by direction: values stay whole where sending less of them would save no time."""

from __future__ import annotations

from flwr_splitkd.schedulers.codec import WORTH, choose_codecs
from flwr_splitkd.schedulers.pipeline import pipelined_step_s

BYTES = {"none": 4.0, "bfloat16": 2.0, "int8": 1.03}


def by_codec(seconds: float) -> dict[str, float]:
    return {name: seconds * size / 4.0 for name, size in BYTES.items()}


def chosen(uplink_s: float, downlink_s: float, *, device_s: float = 1.0, M: int = 8, depth: int = 8) -> tuple[str, str]:
    return choose_codecs(
        by_codec(uplink_s),
        by_codec(downlink_s),
        device_s=device_s,
        edge_s=0.1,
        latency_s=0.0,
        num_microbatches=M,
        depth=depth,
    )


def test_a_fast_link_loses_nothing() -> None:
    assert chosen(0.01, 0.01) == ("none", "none")
    assert chosen(0.01, 0.01, M=1, depth=1) == ("none", "none")


def test_the_slowest_direction_alone_is_made_smaller() -> None:
    assert chosen(8.0, 0.01) == ("int8", "none")
    assert chosen(0.01, 8.0) == ("none", "int8")


def test_half_is_enough_where_it_brings_the_way_below_the_slowest_stage() -> None:
    assert chosen(1.9, 0.0, M=64, depth=64) == ("bfloat16", "none")


def test_in_lock_step_every_second_counts() -> None:
    """What pipelining would hide is waited for: there the same link is worth a codec."""
    assert chosen(0.5, 0.0, M=64, depth=64) == ("none", "none")
    assert chosen(0.5, 0.0, M=1, depth=1) == ("int8", "none")


def test_never_more_than_the_tolerance_slower_than_the_fastest() -> None:
    for uplink_s in (0.0, 0.3, 0.9, 1.4, 3.0, 9.0):
        for downlink_s in (0.0, 0.5, 2.0):
            for M, depth in ((1, 1), (4, 1), (4, 4), (16, 3)):
                up, down = chosen(uplink_s, downlink_s, M=M, depth=depth)
                steps = {
                    pair: pipelined_step_s(
                        device_s=1.0,
                        uplink_s=by_codec(uplink_s)[pair[0]],
                        edge_s=0.1,
                        downlink_s=by_codec(downlink_s)[pair[1]],
                        latency_s=0.0,
                        num_microbatches=M,
                        depth=depth,
                    )
                    for pair in [(up, down), ("int8", "int8")]
                }
                assert steps[up, down] <= (1 + WORTH) * steps["int8", "int8"]


def test_a_direction_with_one_codec_keeps_it() -> None:
    fixed = choose_codecs(
        {"float16": 9.0},
        by_codec(9.0),
        device_s=1.0,
        edge_s=1.0,
        latency_s=0.0,
        num_microbatches=4,
        depth=2,
    )
    assert fixed == ("float16", "int8")
