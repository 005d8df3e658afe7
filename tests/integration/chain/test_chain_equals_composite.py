"""Training over a chain of processes equals training of one composite model in one process, bit by bit.

Losses of every step, every encoder's weights and moments, the module's weights and moments. Dropout is on everywhere, both
clippings bite, and the devices' split points differ.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
from chain_parts import DEVICES, ENCODER_NORM, LAYERS, MODULE_NORM, NUM_BATCHES, first_weights
from chain_processes import Device, Site, assert_same, encoder_on_disk, module_on_disk, opened_chain
from composite import Composite, Iterated
from torch import Tensor

# peft 0.18 says so of any model
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")

STEPS = 20
ENCODERS = ("roberta", "bert", "modernbert")
POINTS = ((1, LAYERS // 2, LAYERS), (LAYERS // 2, LAYERS, 1), (LAYERS, 1, LAYERS // 2))
FIRST_LAST = ((1, 2, LAYERS), (LAYERS, 1, 2))
SECONDS: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def told(covered: Callable[[str, object], None]) -> Iterator[None]:
    yield
    covered("chain equals composite, bit by bit", "; ".join(f"{name} {took}" for name, took in SECONDS.items()))


class Trained:
    """The composite after so many steps, and what it said on the way."""

    def __init__(self, site: Site, task: str, encoder: str) -> None:
        composite = Composite(site.cloud.folder / "llm", task, encoder)
        try:
            self.said: list[Iterated] = [composite.iterate(range(DEVICES)) for _ in range(STEPS)]
        finally:
            composite.close()
        self.weights = [composite.weights(n) for n in range(DEVICES)]
        self.moments = [composite.moments(n) for n in range(DEVICES)]
        self.module = {name: p.detach() for name, p in composite.module.items()}
        self.module_moments = composite.module_moments()


@cache
def trained(site: Site, task: str, encoder: str) -> Trained:
    """Split points are nothing to it, and nor is the reference loss."""
    return Trained(site, task, encoder)


def devices(site: Site, folder: Path) -> dict[int, Device]:
    """Every case has its disks; processes stay."""
    while len(site.devices) < DEVICES:
        site.device(folder)
    for position, device in enumerate(site.devices[:DEVICES]):
        device.folder = folder / f"device-{position}"
    return dict(enumerate(site.devices[:DEVICES]))


def run(
    site: Site, folder: Path, task: str, encoder: str, rounds: tuple[tuple[int, ...], ...]
) -> tuple[list[Iterated], list[dict[str, object]]]:
    """Train over processes; what the edge saw of each iteration, and how long and how much it was."""
    members = devices(site, folder)
    said, figures = [], []
    with opened_chain(site.cloud, task, encoder, num_iterations=STEPS // len(rounds)) as chain:
        for points in rounds:
            started_s = time.monotonic()
            done = chain.round(members, dict(enumerate(points)))
            assert not done.errors and all("error" not in one for one in done.said.values()), (done.errors, done.said)
            for one in done.closed:
                assert not one.missed
                said.append(
                    Iterated(
                        {n: answer.loss for n, answer in one.answers.items()},
                        {n: answer.reference_loss for n, answer in one.answers.items() if answer.reference_loss},
                        one.stepped.grad_norm,
                    )
                )
            figures.append(
                {
                    "points": points,
                    "seconds": time.monotonic() - started_s,
                    "up": [done.outcomes[n].uplink_bytes for n in range(DEVICES)],
                    "down": [done.outcomes[n].downlink_bytes for n in range(DEVICES)],
                    "layers up": [done.outcomes[n].uplink_handover_bytes for n in range(DEVICES)],
                    "layers down": [done.outcomes[n].downlink_handover_bytes for n in range(DEVICES)],
                }
            )
        fetched = chain.edge.cloud.weights()
        # A builder may seed torch's generator, from which the others' dropout is drawn meanwhile.
        assert set(chain.built_on[1:]) <= {threading.current_thread().name, "splitkd-edge-compute"}
    weights, _, _ = module_on_disk(site.cloud, task, len(rounds))
    assert_same("module as fetched", fetched, weights)
    return said, figures


def assert_equal(
    site: Site,
    folder: Path,
    task: str,
    encoder: str,
    rounds: tuple[tuple[int, ...], ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    said, figures = run(site, folder, task, encoder, rounds)
    whole = trained(site, task.removesuffix("-reference"), encoder)
    pids = {
        "edge": os.getpid(),
        "cloud": site.cloud.pid,
        **{f"device {n}": site.devices[n].pid for n in range(DEVICES)},
    }
    with capsys.disabled():
        print(f"\n{encoder}, {task}: pids {pids}")
        for figure in figures:
            print("  " + ", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in figure.items()))
    SECONDS[f"{encoder}/{task}/{'>'.join(map(str, rounds))}"] = f"{sum(f['seconds'] for f in figures):.1f} s"  # type: ignore[misc]
    assert len(set(pids.values())) == 2 + DEVICES

    assert [one.losses for one in said] == [one.losses for one in whole.said]
    assert [one.grad_norm for one in said] == [one.grad_norm for one in whole.said]
    if task.endswith("-reference"):
        assert [one.reference_losses for one in said] == [one.reference_losses for one in whole.said]
        assert {n: one for n, one in said[0].reference_losses.items()} != said[0].losses
    else:
        assert not any(one.reference_losses for one in said)
    for n in range(DEVICES):
        weights, moments, info = encoder_on_disk(folder / f"device-{n}")
        assert_same(f"encoder of device {n}", weights, whole.weights[n])
        assert set(moments) == set(whole.moments[n])
        for name, entries in moments.items():
            assert_same(f"moments of {name} of device {n}", entries, whole.moments[n][name])
        assert (info["next_step"], info["server_round"]) == (STEPS, len(rounds))
        assert_moved(encoder, n, weights, moments)
    module, module_moments, steps = module_on_disk(site.cloud, task, len(rounds))
    assert steps == STEPS
    assert_same("module", module, whole.module)
    assert set(module_moments) == set(whole.module_moments) == set(module)
    for name, entries in module_moments.items():
        assert_same(f"moments of {name}", entries, whole.module_moments[name])


def assert_moved(encoder: str, device: int, weights: Mapping[str, Tensor], moments: Mapping[str, object]) -> None:
    """The comparison must be able to fail: training moved every matrix that the output depends on."""
    before = first_weights(encoder, device).state_dict()
    still = {name for name in moments if weights[name].dim() > 1 and torch.equal(weights[name], before[name])}
    assert not still and len(moments) > 2 * LAYERS


@pytest.mark.slow
def test_clipping_bites(site: Site) -> None:
    """Else the cases below would say nothing about it."""
    said = trained(site, "lora", "roberta").said
    assert min(one.grad_norm for one in said) > MODULE_NORM
    assert min(norm for one in said for norm in one.encoder_norms.values()) > ENCODER_NORM


def test_chain_equals_composite_while_split_points_change(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_equal(site, tmp_path, "lora", "roberta", FIRST_LAST, capsys)


def test_adapters_of_the_encoders(site: Site, tmp_path: Path) -> None:
    """Only adapters train and change hands, and as those of the composite do; split points change on the way."""
    composite = Composite(site.cloud.folder / "llm", "serial", "roberta", adapters=True)
    members, said, outcomes = devices(site, tmp_path), [], []
    with opened_chain(site.cloud, "serial", "roberta", num_iterations=5, adapters=True) as chain:
        for points in FIRST_LAST:
            done = chain.round(members, dict(enumerate(points)))
            assert not done.errors and all("error" not in one for one in done.said.values()), (done.errors, done.said)
            said += done.losses
            outcomes.append(done.outcomes)
    expected = []
    for _ in FIRST_LAST:
        composite.begin_round()
        expected += [composite.iterate(range(DEVICES)).losses for _ in range(5)]
    composite.close()
    assert said == expected
    for n in range(DEVICES):
        weights, moments, info = encoder_on_disk(tmp_path / f"device-{n}")
        assert info["next_step"] == 10
        assert_same(f"encoder of device {n}", weights, composite.weights(n))
        assert moments and all("lora_" in name for name in moments)
        for name, entries in composite.moments(n).items():
            assert_same(f"moments of {name} of device {n}", moments[name], entries)
        before = first_weights("roberta", n, adapters=True).state_dict()
        changed = {name for name, tensor in weights.items() if not tensor.equal(before[name])}
        assert changed == set(moments)
        # In the second round the edge has what it needs but for lowered split points; what it returns are adapters.
        returned = outcomes[1][n].downlink_handover_bytes
        edge = [name for name in moments if int(re.findall(r"layer\.(\d+)", name)[0]) >= FIRST_LAST[1][n]]
        assert returned == sum(
            weights[name].nbytes + sum(entry.nbytes for entry in moments[name].values()) for name in edge
        )


@pytest.mark.slow
@pytest.mark.parametrize("points", POINTS, ids=str)
@pytest.mark.parametrize("task", ["serial", "lora"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_chain_equals_composite(
    site: Site, encoder: str, task: str, points: tuple[int, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_equal(site, tmp_path, task, encoder, (points,), capsys)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "encoder"), [("serial", "bert"), ("lora", "modernbert"), ("serial", "distilbert")])
def test_chain_equals_composite_while_split_points_change_in_more_families(
    site: Site, task: str, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_equal(site, tmp_path, task, encoder, FIRST_LAST, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["serial-reference", "lora-reference"])
def test_the_reference_loss_is_right_and_changes_nothing(
    site: Site, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_equal(site, tmp_path, task, "roberta", (POINTS[0],), capsys)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["serial", "lora"])
def test_with_torch_s_cross_entropy_the_composite_is_the_same_but_for_rounding(site: Site, task: str) -> None:
    """The chunked kernel, which both sides share above, sums in another order than torch's."""
    kernel = Composite(site.cloud.folder / "llm", task, "roberta")
    torchs = Composite(site.cloud.folder / "llm", task, "roberta", own_loss=True)
    kernel.iterate(range(DEVICES))
    torchs.iterate(range(DEVICES))
    compared = 0
    for ours, theirs in zip(gradients(kernel), gradients(torchs), strict=True):
        # What is added to all keys alike does not change attention: the gradients of their biases are rounding alone.
        if theirs.norm() > 1e-9:
            assert float((ours - theirs).double().norm() / theirs.double().norm()) <= 1e-6
            compared += 1
    assert compared > 3 * 50
    for _ in range(STEPS - 1):
        one, other = kernel.iterate(range(DEVICES)), torchs.iterate(range(DEVICES))
        assert one.losses == pytest.approx(other.losses, rel=1e-5)
    kernel.close()
    torchs.close()


def gradients(composite: Composite) -> list[Tensor]:
    """Of the first step, times what AdamW makes of it."""
    moments = [*map(composite.moments, range(DEVICES)), composite.module_moments()]
    return [entries["exp_avg"] for one in moments for entries in one.values() if entries["exp_avg"].norm() > 0]


def test_batches_are_passed_over_twice() -> None:
    """Two rounds of the data are what one of twice the length is: so one composite serves both."""
    assert STEPS == 2 * NUM_BATCHES
