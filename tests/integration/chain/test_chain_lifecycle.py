"""A device joins, leaves on purpose, is lost, comes back: whatever it does, all of it equals the composite, bit by bit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from chain_parts import LAYERS, LLM_VOCAB, WIDTH, tiny_encoder
from chain_processes import (
    Chain,
    Device,
    Round,
    Site,
    assert_same,
    bytes_of,
    cloud_link,
    encoder_on_disk,
    module_on_disk,
    opened_chain,
)
from composite import Composite
from relay import relayed

from flwr_splitkd.models import build_skeleton
from flwr_splitkd.split import encoder_units, find_layout
from flwr_splitkd.store import CommitLog
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

# peft 0.18 says so of any model
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")

ENCODER, TASK, STEPS = "roberta", "serial", 4
POINTS = {0: 1, 1: 2, 2: LAYERS}
ALL, OTHERS = (0, 1, 2), (0, 2)


@pytest.fixture
def devices(site: Site, tmp_path: Path) -> Iterator[dict[int, Device]]:
    made = {n: Device(site.zygote, tmp_path / f"device-{n}") for n in ALL}
    assert len({os.getpid(), site.cloud.pid, *(device.pid for device in made.values())}) == 5
    yield made
    for device in made.values():
        device.close()


@pytest.fixture
def composite(site: Site) -> Iterator[Composite]:
    made = Composite(site.cloud.folder / "llm", TASK, ENCODER)
    yield made
    made.close()


@pytest.fixture
def chain(site: Site) -> Iterator[Chain]:
    with opened_chain(site.cloud, TASK, ENCODER, num_iterations=STEPS, grace_period_s=1.0) as made:
        yield made


def follow(composite: Composite, *iterations: Sequence[int]) -> list[dict[int, float]]:
    """What the composite makes of a round in which these devices take part, iteration by iteration."""
    composite.begin_round()
    return [composite.iterate(devices).losses for devices in iterations]


def assert_encoder(device: Device, n: int, composite: Composite) -> None:
    weights, moments, info = encoder_on_disk(device.folder)
    assert_same(f"encoder of device {n}", weights, composite.weights(n))
    expected = composite.moments(n)
    assert set(moments) == set(expected)
    for name, entries in moments.items():
        assert_same(f"moments of {name} of device {n}", entries, expected[name])
    assert info["next_step"] == composite.steps[n]


def assert_module(site: Site, chain: Chain, composite: Composite) -> None:
    weights, moments, steps = module_on_disk(site.cloud, TASK, chain.server_round)
    assert steps == composite.module_steps
    assert_same("module", weights, {name: p.detach() for name, p in composite.module.items()})
    for name, entries in composite.module_moments().items():
        assert_same(f"moments of {name}", moments[name], entries)


def server_units(folder: Path, point: int) -> list[str]:
    """What the edge holds at a split point, as it is versioned."""
    held = CommitLog(folder).latest
    assert held is not None
    units = encoder_units(find_layout(build_skeleton(lambda: tiny_encoder(ENCODER))), point)[1]
    return [name for unit in units for name in (unit, f"{unit}.frozen") if name in held.units]


def assert_fine(done: Round, devices: Mapping[int, Device]) -> None:
    assert not done.errors and all("error" not in done.said[n] for n in devices), (done.errors, done.said)


def test_what_a_round_measures(chain: Chain, devices: dict[int, Device]) -> None:
    """Each device's own seconds, the edge's for it, and payload both ways without the layers; while it goes on, and after it."""
    delay_s, seen = 0.2, []

    def look(number: int) -> None:
        seen.append({n: chain.meters[n].reading for n in ALL})

    done = chain.round(devices, POINTS, jobs={1: {"delay_s": delay_s}}, after=look)
    assert_fine(done, devices)
    for n in ALL:
        outcome, reading = done.outcomes[n], chain.meters[n].reading
        assert (reading.num_steps, reading.num_forwards) == (STEPS, STEPS)
        assert (outcome.device_s, outcome.uplink_s, outcome.downlink_s) == (
            reading.device_s,
            reading.uplink_s,
            reading.downlink_s,
        )
        assert 0 < outcome.edge_s < outcome.duration_s and 0 <= outcome.edge_wait_s < outcome.duration_s
        # Smashed data and gradients of 3 samples of 9 positions; up come inputs and labels besides.
        assert outcome.downlink_payload_bytes == STEPS * 3 * 9 * WIDTH * 4
        more = outcome.uplink_payload_bytes - outcome.downlink_payload_bytes
        assert 0 < more < STEPS * 1000
        assert outcome.uplink_payload_bytes + outcome.uplink_handover_bytes < outcome.uplink_bytes
        # During the round as far as the device has told: up to the batch before the one that it is at.
        counts = [one[n].num_steps for one in seen]
        assert counts == sorted(counts) and counts[0] <= 1 and counts[-1] >= STEPS - 1
        sums = [one[n].device_s for one in seen] + [reading.device_s]
        assert sums == sorted(sums)
    assert done.outcomes[1].device_s > STEPS * delay_s > done.outcomes[0].device_s
    middle = seen[2][1]
    assert middle.num_steps > 0 and middle.device_s >= middle.num_steps * delay_s


def test_a_device_that_joins_brings_its_own_encoder(
    site: Site, chain: Chain, devices: dict[int, Device], composite: Composite
) -> None:
    present = {0: devices[0], 2: devices[2]}
    assert_fine(done := chain.round(present, POINTS), present)
    assert done.losses == follow(composite, *[OTHERS] * STEPS)
    assert not devices[1].folder.exists()
    assert_fine(done := chain.round(devices, POINTS), devices)
    assert done.losses == follow(composite, *[ALL] * STEPS)
    # Its first encoder has no moments yet; the edge asked for its own blocks and the head, and for nothing else.
    parameters = dict(tiny_encoder(ENCODER).named_parameters())
    blocks = [
        p.nbytes for n, p in parameters.items() if n.startswith(("encoder.layer.2.", "encoder.layer.3.", "pooler"))
    ]
    assert done.outcomes[1].uplink_handover_bytes == sum(blocks)
    for n in ALL:
        assert_encoder(devices[n], n, composite)
    assert_module(site, chain, composite)


def test_a_device_that_leaves_has_its_whole_encoder_and_comes_back(
    site: Site, chain: Chain, devices: dict[int, Device], composite: Composite
) -> None:
    done = chain.round(devices, POINTS, jobs={1: {"leave_at": 3}})
    assert_fine(done, devices)
    assert done.losses == follow(composite, ALL, ALL, ALL, OTHERS)
    assert (done.outcomes[1].left, done.outcomes[1].num_steps, done.outcomes[0].left) == ("low battery", 3, "")
    assert [done.outcomes[n].num_examples for n in ALL] == [3 * STEPS, 3 * 3, 3 * STEPS]
    for n in ALL:
        assert_encoder(devices[n], n, composite)
    # It comes back where it left off, with another split point: the edge still has the layers that it lacks.
    assert_fine(done := chain.round(devices, {0: 1, 1: 3, 2: LAYERS}), devices)
    assert done.losses == follow(composite, *[ALL] * STEPS)
    assert done.outcomes[1].uplink_handover_bytes == 0
    for n in ALL:
        assert_encoder(devices[n], n, composite)
    assert_module(site, chain, composite)


@pytest.mark.parametrize("place", ["Forward", pytest.param("GradientNorms", marks=pytest.mark.slow)])
def test_a_device_that_dies_starts_again_from_its_backup(
    site: Site, chain: Chain, devices: dict[int, Device], composite: Composite, place: str
) -> None:
    assert_fine(done := chain.round(devices, POINTS), devices)
    assert done.losses == follow(composite, *[ALL] * STEPS)
    backup = composite.backup(1)

    at = 2
    done = chain.round(devices, POINTS, jobs={1: {"die_at": [place, STEPS + at]}})
    # What it brought counts, be its own step taken or not.
    brought = [ALL if index < at + (place == "GradientNorms") else OTHERS for index in range(STEPS)]
    assert done.losses == follow(composite, *brought)
    assert list(done.errors) == [1] and "device d1 is lost" in done.errors[1]
    composite.restore(1, backup)
    assert_encoder(devices[1], 1, composite)

    before = devices[1].pid
    devices[1].start_again()
    assert devices[1].pid != before
    assert_fine(done := chain.round(devices, {0: 1, 1: 1, 2: LAYERS}), devices)
    assert done.losses == follow(composite, *[ALL] * STEPS)
    for n in ALL:
        assert_encoder(devices[n], n, composite)
    assert_module(site, chain, composite)


@pytest.mark.slow
def test_the_edge_forgets_the_half_of_a_device_that_died(chain: Chain, devices: dict[int, Device]) -> None:
    chain.round(devices, POINTS)
    chain.round(devices, POINTS, jobs={1: {"die_at": ["Forward", STEPS]}})
    devices[1].start_again()
    whole = bytes_of(devices[1].folder, server_units(devices[1].folder, POINTS[1]))
    done = chain.round(devices, POINTS)
    assert [done.outcomes[n].uplink_handover_bytes for n in ALL] == [0, whole, 0]


def test_a_connection_that_is_cut_is_resumed_within_the_round(
    site: Site, devices: dict[int, Device], composite: Composite
) -> None:
    with (
        opened_chain(site.cloud, TASK, ENCODER, num_iterations=STEPS, grace_period_s=10.0) as chain,
        relayed(chain.edge.server.address) as relay,
    ):
        cuts = iter(range(2))
        done = chain.round(
            devices,
            POINTS,
            addresses={1: relay.address},
            after=lambda number: relay.cut() if next(cuts, None) is not None else None,
        )
        assert_fine(done, devices)
        assert done.losses == follow(composite, *[ALL] * STEPS)
        assert done.outcomes[1].num_resumed >= 1 and done.outcomes[0].num_resumed == 0
        for n in ALL:
            assert_encoder(devices[n], n, composite)
        assert_module(site, chain, composite)


def test_only_layers_that_changed_travel(chain: Chain, devices: dict[int, Device]) -> None:
    """Up: what the edge lacks. Down: the edge's half at each round's end, which is what refreshes the backup.

    Equation (18) of the paper charges a download when the split point rises. Here the layers have come with the end of the
    round before, and nothing travels then; the return itself, of all the edge holds, is what the paper leaves uncounted.
    """
    one = {0: devices[0]}
    folder = devices[0].folder

    def travelled(point: int) -> tuple[int, int]:
        outcome = chain.round(one, {0: point}).outcomes[0]
        assert outcome.downlink_bytes >= outcome.downlink_handover_bytes
        return outcome.uplink_handover_bytes, outcome.downlink_handover_bytes

    def size(*units: str) -> int:
        return bytes_of(folder, units)

    first_up, down = travelled(2)
    assert 0 < first_up < down == size("blocks.2", "blocks.3", "head"), "moments come with the return only"
    assert travelled(2) == (0, size("blocks.2", "blocks.3", "head"))
    assert travelled(3) == (0, size("blocks.3", "head"))
    assert travelled(LAYERS) == (0, 0)
    assert travelled(3) == (size("blocks.3", "head"),) * 2
    assert travelled(1) == (size("blocks.1", "blocks.2"), size("blocks.1", "blocks.2", "blocks.3", "head"))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("nan", "The smashed data of step 2 of device d1 has 864 of 864 values NaN or infinite"),
        pytest.param(
            "shape", "Smashed data of device d1 are torch.float32 of shape (3, 9, 31); expected", marks=pytest.mark.slow
        ),
        pytest.param("dtype", "Smashed data of device d1 are torch.float64", marks=pytest.mark.slow),
        pytest.param("integers", "Smashed data of device d1 are torch.int64", marks=pytest.mark.slow),
        pytest.param(
            "batch", "What device d1 sent for step 2 cannot be computed by the edge's half", marks=pytest.mark.slow
        ),
        pytest.param("labels", r"Labels of device d1 are torch.int64 of shape ()", marks=pytest.mark.slow),
        pytest.param("missing", "expected 'labels' as well", marks=pytest.mark.slow),
    ],
)
def test_a_device_that_sends_garbage_is_cut_off_and_the_others_go_on(
    site: Site, chain: Chain, devices: dict[int, Device], composite: Composite, how: str, words: str
) -> None:
    done = chain.round(devices, POINTS, jobs={1: {"spoil_at": ["Forward", 2], "how": how}})
    assert list(done.errors) == [1] and words in done.errors[1]
    assert words in done.said[1]["error"]
    assert done.losses == follow(composite, ALL, ALL, OTHERS, OTHERS)
    for n in OTHERS:
        assert_encoder(devices[n], n, composite)
    assert_module(site, chain, composite)


@pytest.mark.slow
def test_gradient_norms_that_are_no_numbers_undo_the_encoder_s_step(
    site: Site, chain: Chain, devices: dict[int, Device], composite: Composite
) -> None:
    done = chain.round(devices, POINTS, jobs={1: {"spoil_at": ["GradientNorms", 2], "how": "norms"}})
    assert list(done.errors) == [1] and "The gradient norm has 1 of 1 values NaN" in done.errors[1]
    assert done.losses == follow(composite, ALL, ALL, ALL, OTHERS)
    assert_module(site, chain, composite)


@pytest.mark.slow
def test_answers_that_are_none_of_the_llm_s_tokens_concern_their_device_alone(
    site: Site, chain: Chain, devices: dict[int, Device], composite: Composite
) -> None:
    done = chain.round(devices, POINTS, jobs={1: {"labels": LLM_VOCAB}})
    assert list(done.errors) == [1] and f"`labels` has the token {LLM_VOCAB}" in done.errors[1]
    assert done.losses == follow(composite, *[OTHERS] * STEPS)
    assert_module(site, chain, composite)


@pytest.mark.slow
def test_an_evaluation_changes_nothing(
    site: Site, chain: Chain, devices: dict[int, Device], composite: Composite
) -> None:
    assert_fine(chain.round(devices, POINTS), devices)
    follow(composite, *[ALL] * STEPS)
    done = chain.round(devices, POINTS, training=False)
    assert_fine(done, devices)
    assert all(0 < done.said[n]["scores"]["tokens"] <= 3 and done.outcomes[n].loss > 0 for n in ALL)
    assert [done.outcomes[n].uplink_handover_bytes for n in ALL] == [0, 0, 0]
    assert_fine(done := chain.round(devices, POINTS), devices)
    assert done.losses == follow(composite, *[ALL] * STEPS)
    assert [done.outcomes[n].uplink_handover_bytes for n in ALL] == [0, 0, 0]
    assert_module(site, chain, composite)


def test_a_gradient_that_came_too_late_for_the_round_does_not_stand_in_the_way(site: Site) -> None:
    """A device that starts again from its backup takes the same steps once more."""
    link = cloud_link(site.cloud.address, TASK, WIDTH)
    try:
        hidden = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
        mask, labels = torch.ones(2, 5, dtype=torch.long), torch.full((2, 3), 4)
        first = link.differentiate(0, 5, hidden, mask, labels)
        link.differentiate(1, 5, hidden, mask, labels)
        link.step([(1, 5)])
        link.end_round("late", 1)
        again = link.differentiate(0, 5, hidden * 2, mask, labels)
        assert again.loss != first.loss
        assert link.step([(0, 5)]).step == 1
    finally:
        link.close()


@pytest.mark.slow
def test_a_cloud_that_dies_and_comes_back_within_a_round_has_lost_nothing(
    site: Site, chain: Chain, devices: dict[int, Device], composite: Composite
) -> None:
    def fail(number: int) -> None:
        if number == 1:
            site.cloud.kill()
            site.cloud.start()

    assert_fine(done := chain.round(devices, POINTS, after=fail), devices)
    assert done.losses == follow(composite, *[ALL] * STEPS)
    assert chain.edge.cloud.num_reopened == 1
    for n in ALL:
        assert_encoder(devices[n], n, composite)
    assert_module(site, chain, composite)


def test_a_round_that_takes_place_again(
    site: Site, devices: dict[int, Device], composite: Composite, tmp_path: Path
) -> None:
    """The edge dies when devices and cloud have ended a round, and before it has noted so itself; twice."""
    for attempt in range(3):
        start = {} if attempt == 0 else {"start": pb.TASK_START_ROUND, "run": "run", "server_round": 1}
        with opened_chain(site.cloud, TASK, ENCODER, num_iterations=STEPS, start=start) as chain:
            if attempt == 0:
                chain.round(devices, POINTS)
            chain.server_round = 1
            # A device less in the attempts that come to nothing: their sums are others.
            members = {n: devices[n] for n in (ALL if attempt == 2 else OTHERS)}
            done = chain.round(members, POINTS)
            assert not done.errors
            assert {n: one["went_back"] for n, one in done.said.items()} == {n: attempt > 0 and n != 1 for n in members}
    for _ in range(2):
        composite.begin_round()
        for _ in range(STEPS):
            composite.iterate(ALL)
    for n in ALL:
        weights, _, info = encoder_on_disk(tmp_path / f"device-{n}")
        assert_same(f"encoder of device {n}", weights, composite.weights(n))
        assert (info["next_step"], info["server_round"], info["run"]) == (2 * STEPS, 2, "run")
    module, _, steps = module_on_disk(site.cloud, TASK, 2)
    assert steps == 2 * STEPS
    assert_same("module", module, {name: p.detach() for name, p in composite.module.items()})
