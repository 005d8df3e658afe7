"""Corrections: one turn settles the factor, other cuts tell it from the offset, and nothing runs away."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from flwr_splitkd.costs import (
    GENERIC_DEVICE,
    GENERIC_SERVER,
    CutTerms,
    DeviceEstimate,
    EdgeEstimate,
    LinkState,
    MeasuredTurn,
    Workload,
    correct,
    cut_terms,
    relative_error,
    turn_cost,
)
from flwr_splitkd.costs.estimates import Correction
from small_shape import small_shape

LINK = LinkState(uplink_bps=50e6, downlink_bps=80e6)


def _terms(local_epochs: int = 1) -> CutTerms:
    shape = small_shape()
    workload = Workload(batch_size=4, sequence_length=64, num_batches=10, local_epochs=local_epochs)
    return cut_terms(shape, shape, workload, GENERIC_DEVICE)


def _measured(terms: CutTerms, option: int, **changes: float) -> MeasuredTurn:
    """A turn in which everything is three times what the profile says, the link half of what it was."""
    server_s = float(terms.server_flops[option]) / GENERIC_SERVER.flops_at(GENERIC_SERVER.max_frequency_hz)
    up = float(terms.uplink_bytes[option] + terms.handover_uplink_bytes[option])
    down = float(terms.downlink_bytes[option] + terms.handover_downlink_bytes[option])
    values = {
        "device_s": 3 * float(terms.device_s[option]),
        "edge_s": 3 * server_s,
        "uplink_bytes": up,
        "downlink_bytes": down,
        "uplink_s": 8 * up / 25e6,
        "downlink_s": 8 * down / 40e6,
        "handover_uplink_bytes": float(terms.handover_uplink_bytes[option]),
        "handover_downlink_bytes": float(terms.handover_downlink_bytes[option]),
        "fixed_s": 0.5,
        "other_s": 0.1 * terms.num_steps,
    }
    return MeasuredTurn(option=option, num_steps=terms.num_steps, **{**values, **changes})


def _learn(
    device: DeviceEstimate, edge: EdgeEstimate, terms: CutTerms, turn: MeasuredTurn
) -> tuple[DeviceEstimate, EdgeEstimate]:
    nominal_s = float(terms.server_flops[turn.option]) / GENERIC_SERVER.flops_at(GENERIC_SERVER.max_frequency_hz)
    return device.observe(terms, turn), edge.observe(terms, turn, nominal_s=nominal_s)


@pytest.mark.parametrize("cut", [1, 4, 7])
@pytest.mark.parametrize("later", [1, 4, 7])
def test_one_turn_corrects_a_profile_that_is_three_times_off(cut: int, later: int) -> None:
    terms = _terms()
    device, edge = _learn(DeviceEstimate(link=LINK), EdgeEstimate(), terms, _measured(terms, cut - 1))
    corrected = correct(terms, device, edge)
    machines = {"device": GENERIC_DEVICE, "server": GENERIC_SERVER, "link": device.link}
    predicted = turn_cost(corrected, later - 1, frequency_hz=GENERIC_SERVER.max_frequency_hz, **machines)
    errors = relative_error(predicted, _measured(terms, later - 1))
    assert set(errors) == {"device_s", "uplink_s", "server_s", "downlink_s", "other_s"}
    # With another cut than the one that was measured, a little of it was taken for an offset.
    assert max(errors.values()) < (0.002 if later == cut else 0.2), errors


def test_an_offset_is_told_from_a_factor_by_turns_with_other_cuts() -> None:
    terms, correction = _terms(), Correction()
    offset = 2 * float(terms.device_s[0]) / terms.num_steps
    for cut in (1, 6, 2, 7, 3, 5):
        nominal = float(terms.device_s[cut - 1])
        measured = offset * terms.num_steps + 1.7 * nominal
        correction = correction.observe(measured=measured, nominal=nominal, num_steps=terms.num_steps)
    assert correction.offset == pytest.approx(offset, rel=0.2)
    assert correction.factor == pytest.approx(1.7, rel=0.1)


def test_a_device_that_slows_down_is_followed() -> None:
    correction = Correction()
    for _ in range(5):
        correction = correction.observe(measured=1.0, nominal=1.0, num_steps=10)
    for _ in range(3):
        correction = correction.observe(measured=4.0, nominal=1.0, num_steps=10)
    assert correction.offset * 10 + correction.factor == pytest.approx(4.0, rel=0.12)


@pytest.mark.parametrize(("measured", "nominal", "steps"), [(1.0, 0.0, 10), (1.0, 1.0, 0), (float("nan"), 1.0, 10)])
def test_what_says_nothing_changes_nothing(measured: float, nominal: float, steps: int) -> None:
    correction = Correction(factor=2.0)
    assert correction.observe(measured=measured, nominal=nominal, num_steps=steps) is correction


def test_corrections_stay_positive_whatever_was_measured() -> None:
    rng = np.random.default_rng(0)
    correction = Correction()
    for _ in range(500):
        correction = correction.observe(
            measured=float(rng.exponential(1.0)),
            nominal=float(rng.uniform(0.01, 10)),
            num_steps=int(rng.integers(1, 50)),
        )
        assert correction.offset >= 0 and correction.factor > 0
        assert np.isfinite([correction.offset, correction.factor]).all()


def test_the_newest_rate_counts_and_a_turn_without_payload_does_not() -> None:
    terms = _terms()
    estimate = DeviceEstimate(link=LINK).observe(terms, _measured(terms, 3))
    assert estimate.link.uplink_bps == pytest.approx(25e6) and estimate.link.downlink_bps == pytest.approx(40e6)
    silent = estimate.observe(terms, _measured(terms, 3, uplink_bytes=0.0, uplink_s=0.0))
    assert silent.link.uplink_bps == estimate.link.uplink_bps


def test_rates_of_one_link_are_averaged_and_another_link_counts_at_once() -> None:
    terms = _terms()
    measured = _measured(terms, 3)
    estimate = DeviceEstimate(link=LINK).observe(terms, measured)
    steady = estimate.observe(terms, replace(measured, downlink_s=measured.downlink_s / 1.5))
    assert steady.link.downlink_bps == pytest.approx(2 / (1 / 40e6 + 1 / 60e6))  # seconds for a bit, halfway
    dropped = estimate.observe(terms, replace(measured, downlink_s=20 * measured.downlink_s))
    assert dropped.link.downlink_bps == pytest.approx(2e6)


def test_layers_that_a_device_has_already_are_not_expected_again() -> None:
    terms = _terms()
    device, edge = DeviceEstimate(link=LINK), EdgeEstimate()
    for _ in range(6):
        device, edge = _learn(device, edge, terms, _measured(terms, 3, handover_downlink_bytes=0.0))
    other, _ = _learn(DeviceEstimate(link=LINK), edge, terms, _measured(terms, 3))
    corrected = correct(terms, device, edge)
    assert corrected.handover_downlink_bytes[3] == pytest.approx(0.0, abs=0.02 * terms.handover_downlink_bytes[3])
    assert corrected.handover_uplink_bytes[3] == pytest.approx(terms.handover_uplink_bytes[3])
    assert np.allclose(correct(terms, other, edge).handover_downlink_bytes, terms.handover_downlink_bytes)


def test_seconds_that_do_not_grow_with_the_steps_are_kept_apart() -> None:
    terms, longer = _terms(), _terms(local_epochs=3)
    device, edge = _learn(DeviceEstimate(link=LINK), EdgeEstimate(), terms, _measured(terms, 2))
    assert correct(terms, device, edge).other_s[2] == pytest.approx(0.5 + 0.1 * 10, rel=1e-3)  # but for the weak pull
    assert correct(longer, device, edge).other_s[2] == pytest.approx(0.5 + 0.1 * 30, rel=1e-3)


def test_seconds_around_the_steps_that_grow_with_the_cut_are_told_from_those_that_do_not() -> None:
    terms, edge = _terms(), EdgeEstimate()
    device = DeviceEstimate(link=LINK)
    for cut in (2, 6, 4, 2, 6):
        device = device.observe(terms, _measured(terms, cut - 1, fixed_s=0.1 + 0.05 * cut, other_s=0.0))
    predicted = correct(terms, device, edge).other_s
    assert predicted == pytest.approx(0.1 + 0.05 * terms.cuts, rel=0.15)


def test_estimates_survive_json() -> None:
    terms = _terms()
    device, edge = _learn(DeviceEstimate(link=LINK), EdgeEstimate(), terms, _measured(terms, 2))
    assert DeviceEstimate.from_json(json.loads(json.dumps(device.to_json()))) == device
    assert EdgeEstimate.from_json(json.loads(json.dumps(asdict(edge)))) == edge


def test_nothing_measured_corrects_nothing() -> None:
    terms = _terms()
    same = correct(terms, DeviceEstimate(link=LINK), EdgeEstimate())
    for name in ("device_s", "server_flops", "uplink_bytes", "downlink_bytes", "other_s"):
        assert np.array_equal(getattr(same, name), getattr(terms, name))
    assert replace(same, server_offset_s=1.0).server_offset_s == 1.0 and same.server_offset_s == 0.0
