"""The case study against the planner, the baselines and itself."""

from __future__ import annotations

import csv
import io
from functools import cache

import numpy as np
import pytest

from flwr_splitkd.case_studies.split_kd.claims import (
    CLAIMS,
    Claim,
    claims_csv,
    count_claims,
    figure_csv,
    outcomes_csv,
    verdicts,
)
from flwr_splitkd.case_studies.split_kd.settings import MODELS, WORKLOAD, Setting, every_setting
from flwr_splitkd.case_studies.split_kd.study import CHANNELS, METHODS, Outcome, States, channel_states, run_study
from flwr_splitkd.costs import LinkState, cut_terms, named_shape
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers import device_only, plan_cut_and_frequency, server_only

# Every clock, slack and way to count at least once; several groups, and several settings in one of them.
SETTINGS = (
    Setting(),
    Setting(clock="half", slack=0.25),
    Setting(clock="optimal", slack=0.0),
    Setting(clock="base", static_power_w=300, slack=0.05),
    Setting(clock="quarter", static_power_w=300),
    Setting(models="paper-64-12-bf16-any-memory", clock="max", device_efficiency=0.3, counted="server"),
    Setting(models="paper-64-12-bf16-any-memory", clock="optimal", device_efficiency=0.3, counted="server", slack=0.5),
)


def states(seed: int = 0, streets: int = 2, rounds: int = 2) -> States:
    return channel_states(np.random.default_rng(seed), streets=streets, rounds=rounds)


@cache
def outcomes() -> tuple[Outcome, ...]:
    return tuple(run_study(SETTINGS, states()))


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_turns_are_those_of_the_planner_and_the_baselines(number: int) -> None:
    outcome, setting = outcomes()[number], SETTINGS[number]
    assert outcome.setting == setting
    teacher, student = (named_shape(name) for name in (MODELS[setting.models].teacher, MODELS[setting.models].student))
    server = setting.server()
    for c, r, d in ((0, 0, 0), (1, 3, 4), (2, 1, 9)):
        device, link = setting.devices()[d], states()[CHANNELS[c]][r][d]
        terms = cut_terms(student, teacher, WORKLOAD, device)
        parts = {"device": device, "server": server, "link": link}
        every = [plan_cut_and_frequency(terms, **parts, frequency="max", cuts=[cut]).cost.total_s for cut in terms.cuts]
        bound_s = (1 + setting.slack) * min(every)
        baseline = {"frequency": setting.frequency, "max_delay_s": bound_s}
        decisions = (
            plan_cut_and_frequency(terms, **parts, max_delay_s=bound_s),
            server_only(terms, **parts, **baseline),
            device_only(terms, **parts, **baseline),
        )
        for m, decision in enumerate(decisions):
            at = (m, c, r, d)
            assert outcome.seconds[at] == pytest.approx(decision.cost.total_s, rel=1e-9)
            assert outcome.joules[at] == pytest.approx(decision.cost.total_j, rel=1e-9)
            assert outcome.frequency_hz[at] == pytest.approx(decision.frequency_hz, rel=1e-9)
            assert outcome.cuts[at] == decision.cut
            assert outcome.late[at] == (decision.cost.total_s > bound_s * (1 + 1e-9))


def test_never_more_energy_than_a_baseline_that_meets_the_bound() -> None:
    in_time = 0
    for outcome in outcomes():
        assert not outcome.late[0].any()
        for m in (1, 2):
            met = ~outcome.late[m]
            in_time += int(met.sum())
            assert (outcome.joules[0][met] <= outcome.joules[m][met] * (1 + 1e-9)).all()
    assert in_time > 100, "some baselines meet their bounds"


def test_against_server_only_at_the_largest_clock_no_delay_is_saved() -> None:
    """A device computes slower than the server, so that the fastest turn is server-only's at the largest clock."""
    for outcome in outcomes():
        if outcome.setting.clock == "max":
            assert (outcome.seconds[0] >= outcome.seconds[1] * (1 - 1e-9)).all()
            assert verdicts(outcome)[0].worst <= 1e-9


def test_more_slack_takes_no_more_energy() -> None:
    settings = [Setting(slack=slack) for slack in (0.0, 0.1, 0.5)]
    tight, some, loose = (outcome.joules[0] for outcome in run_study(settings, states(rounds=1)))
    assert (tight >= some).all() and (some >= loose).all() and (tight > loose).any()


def test_channels_share_streets_and_differ_in_noise() -> None:
    drawn = states()
    assert list(drawn) == list(CHANNELS)
    assert all(len(rounds) == 4 and all(len(links) == 10 for links in rounds) for rounds in drawn.values())
    rates = {
        name: np.array([[link.uplink_bps for link in links] for links in rounds]) for name, rounds in drawn.items()
    }
    assert all((rate > 0).all() for rate in rates.values()), "a turn begins when there is a link"
    assert rates["good"].mean() > rates["normal"].mean() > rates["poor"].mean()
    assert np.ptp(rates["poor"]) > 0


def test_the_same_seed_gives_the_same_tables_and_another_seed_others() -> None:
    def tables(seed: int) -> tuple[str, str]:
        found = run_study(SETTINGS[:2], states(seed, streets=1))
        return claims_csv(found), outcomes_csv(found)

    assert tables(1) == tables(1)
    assert tables(1) != tables(2)


def test_order_and_company_do_not_matter() -> None:
    shuffled = run_study([SETTINGS[k] for k in (5, 2, 0, 4, 1, 6, 3)], states())
    by_setting = {outcome.setting: outcome for outcome in shuffled}
    for outcome in outcomes():
        np.testing.assert_array_equal(by_setting[outcome.setting].joules, outcome.joules)
        np.testing.assert_array_equal(by_setting[outcome.setting].seconds, outcome.seconds)


def test_progress_counts_settings() -> None:
    told: list[tuple[int, int]] = []
    run_study(SETTINGS[:4], states(streets=1, rounds=1), on_progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 4), (4, 4)]


def made(proposed: list[float], server: list[float], device: list[float], **values: object) -> Outcome:
    """An outcome with these joules in each round of every channel; seconds are the same numbers."""
    rows = np.array([proposed, server, device])[:, None, :, None]
    every = np.broadcast_to(rows, (3, len(CHANNELS), rows.shape[2], 1)).copy()
    return Outcome(
        setting=Setting(**values),
        seconds=every,
        joules=every.copy(),
        cuts=np.ones(every.shape, dtype=np.int64),
        frequency_hz=np.ones(every.shape),
        late=np.zeros(every.shape, dtype=np.bool_),
    )


def test_a_claim_is_about_the_worst_channel() -> None:
    outcome = made([7.0, 9.0], [10.0, 10.0], [16.0, 16.0])
    delay, energy, against_device = verdicts(outcome)
    assert delay.reductions == pytest.approx([0.2] * 3)
    assert delay.spreads == pytest.approx([0.1] * 3)
    assert against_device.reductions == pytest.approx([0.5] * 3)
    assert (delay.reached, energy.reached, against_device.reached) == (True, False, True)
    outcome.seconds[0, 1] = 8.5
    delay = verdicts(outcome)[0]
    assert delay.reductions == pytest.approx([0.2, 0.15, 0.2])
    assert delay.worst == pytest.approx(0.15) and not delay.reached


def test_counts() -> None:
    found = [
        made([7.0], [10.0], [10.0], clock="max"),  # all three
        made([8.0], [10.0], [10.0], clock="max"),  # 20 %: delay, and energy against device-only
        made([9.0], [10.0], [20.0], clock="half"),  # energy against device-only
    ]
    first, second = count_claims(found)
    assert (first.clock, first.settings, first.reached) == ("max", 2, (2, 1, 2))
    assert (first.delay_and_energy, first.every) == (1, 1)
    assert first.least == pytest.approx([0.2] * 3) and first.most == pytest.approx([0.3] * 3)
    assert (second.clock, second.reached, second.delay_and_energy, second.every) == ("half", (0, 0, 1), 0, 0)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_claims_table_follows_from_the_outcomes_table() -> None:
    numbers = {(row["setting"], row["channel"], row["method"]): row for row in rows(outcomes_csv(outcomes()))}
    claimed = rows(claims_csv(outcomes()))
    assert len(claimed) == len(SETTINGS) * len(CLAIMS) and len(numbers) == len(SETTINGS) * len(CHANNELS) * 3
    column = {"delay": "delay_mean_s", "energy": "energy_mean_j"}
    for row in claimed:
        claim = next(one for one in CLAIMS if one.name == row["claim"])
        name = column[claim.name.partition("-")[0]]
        reductions = []
        for channel in CHANNELS:
            mine, theirs = (
                float(numbers[row["setting"], channel, method][name]) for method in ("proposed", claim.baseline)
            )
            reductions.append(1 - mine / theirs)
            assert float(row[f"reduction_{channel}"]) == pytest.approx(reductions[-1], abs=1e-4)
        assert float(row["worst_reduction"]) == pytest.approx(min(reductions), abs=1e-4)
        assert (row["reached"] == "yes") == (float(row["worst_reduction"]) >= float(row["at_least"]))


def test_a_figure_s_table_has_what_the_figure_shows() -> None:
    claim: Claim = CLAIMS[1]
    shown = rows(figure_csv(outcomes()[:2], claim.measure, "j"))
    assert len(shown) == 2 * len(CHANNELS) * len(METHODS)
    first = shown[0]
    assert (first["setting"], first["channel"], first["method"]) == (SETTINGS[0].name, CHANNELS[0], METHODS[0])
    values = outcomes()[0].joules[0, 0].sum(axis=-1)
    assert float(first["mean_j"]) == pytest.approx(values.mean(), abs=1e-3)
    assert float(first["std_j"]) == pytest.approx(values.std(), abs=1e-3)


def test_a_vehicle_without_a_link_is_named() -> None:
    from flwr_splitkd.case_studies.split_kd.study import _first_link

    asked: list[float] = []

    def at(time_s: float) -> LinkState:
        asked.append(time_s)
        return LinkState(uplink_bps=0.0 if time_s < 63 else 5.0, downlink_bps=1.0)

    assert _first_link(at, 60.0).uplink_bps == 5.0
    assert asked == [60, 61, 62, 63]
    with pytest.raises(InfeasibleError, match="no link anywhere in its street from 0 s on"):
        _first_link(lambda _: LinkState(uplink_bps=1.0, downlink_bps=0.0), 0.0)


def test_out_of_range() -> None:
    with pytest.raises(ConfigError, match="`streets` is 0; expected at least 1"):
        states(streets=0)
    with pytest.raises(ConfigError, match="`rounds` is 0; expected at least 1"):
        states(rounds=0)


def test_the_grid_has_every_clock_in_every_group() -> None:
    assert run_study(every_setting(quick=True)[:5], states(streets=1, rounds=1))[4].setting.clock == "optimal"
