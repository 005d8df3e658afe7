"""The paper's Algorithm 2: split points by adaptive large neighbourhood search. A baseline, which needs the ``alns`` extra.

Wang et al. (SCCT), section IV.B: a destroy and a repair operator, drawn by a roulette wheel, make a new solution of the current
one; simulated annealing accepts or rejects it; operators are scored by what came of it. What is wrong or open:

- Lines 33 to 36 close a segment of tau steps without carrying the scores over into the weights, so that the wheel stays even.
  That is `reaction` 0. With more, the library adds a segment's scores up; the paper's mean of them would be used nowhere.
- Line 22 asks for ``D(s') < D(s)`` after s' has become s, so that sigma_2 is never given. The library gives it where it is meant.
- Neither operators nor temperatures are named; those here are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from flwr_splitkd.costs.chain import ChainResources, ChainWorkload, Ints, MemoryLimits
from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.chain.bound import decision
from flwr_splitkd.schedulers.chain.objective import RoundObjective
from flwr_splitkd.schedulers.chain.policy import AllocationPolicy, SplitDecision

__all__ = ["AlnsSettings", "AlnsSplitPoints"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlnsSettings:
    """Settings of the search.

    Parameters
    ----------
    start_temperature, end_temperature
        delta_s and delta_e, as shares of the first solution's seconds without the link to the cloud.
    cooling
        rho, the temperature after a step over that before it.
    segment
        tau, steps between two changes of the operators' weights.
    reaction
        How much of a weight is the last segment's score; 0 is Algorithm 2 as printed.
    scores
        sigma_1 to sigma_4: for the best solution so far, a better one than the current one, one that is accepted, one that is not.
    destroyed
        Share of the devices whose split points an operator takes away.
    """

    start_temperature: float = 0.05
    end_temperature: float = 5e-4
    cooling: float = 0.98
    segment: int = 20
    reaction: float = 0.2
    scores: tuple[float, float, float, float] = (8.0, 4.0, 2.0, 1.0)
    destroyed: float = 0.15

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises
        ------
        ConfigError
            If one is out of range.
        """
        check_number("end_temperature", self.end_temperature, above=0)
        check_number("start_temperature", self.start_temperature, above=self.end_temperature)
        check_number("cooling", self.cooling, above=0, maximum=1 - 1e-9)
        check_number("segment", self.segment, minimum=1)
        check_number("reaction", self.reaction, minimum=0, maximum=1)
        check_number("destroyed", self.destroyed, above=0, maximum=1)
        falling = all(a > b for a, b in zip(self.scores, self.scores[1:], strict=False))
        if len(self.scores) != 4 or not falling or self.scores[-1] < 0:
            raise ConfigError(f"`scores` is {self.scores}; expected four falling numbers of at least 0.")

    @property
    def steps(self) -> int:
        """Steps until the end temperature is reached."""
        return math.ceil(math.log(self.end_temperature / self.start_temperature) / math.log(self.cooling))


class AlnsSplitPoints:
    """Algorithm 2, a `SplitPointPolicy`.

    Parameters
    ----------
    rng
        Where the draws come from.
    settings
        Of the search.
    allocation
        Who divides the edge in an epoch: `Algorithm1` in the paper. The exact solution when not given.
    start
        s_0; the lowest split points that fit when not given. Shape ``[N]``.

    Raises
    ------
    ConfigError
        If the ``alns`` library is not installed.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        settings: AlnsSettings | None = None,
        *,
        allocation: AllocationPolicy | None = None,
        start: Ints | None = None,
    ) -> None:
        _library()
        self.rng, self.settings = rng, settings or AlnsSettings()
        self.allocation, self.start = allocation, start

    def choose(
        self, workload: ChainWorkload, draws: ChainResources, limits: MemoryLimits, handover_s: Float | None = None
    ) -> SplitDecision:
        """Search."""
        alns, accept, select, stop = _library()
        settings = self.settings
        objective = RoundObjective(workload, draws, limits=limits, handover_s=handover_s, allocation=self.allocation)
        first = _Solution(objective, self._start(objective))
        unit = first.objective() - objective.cloud_link_s
        search = alns.ALNS(self.rng)
        destroy, repair = _destroyers(objective, settings.destroyed), _repairers(objective)
        for name, operator in destroy.items():
            search.add_destroy_operator(operator, name=name)
        for name, operator in repair.items():
            search.add_repair_operator(operator, name=name)
        with np.errstate(over="ignore"):  # the library's e to the power of an improvement
            result = search.iterate(
                first,
                select.SegmentedRouletteWheel(
                    list(settings.scores), 1 - settings.reaction, settings.segment, len(destroy), len(repair)
                ),
                accept.SimulatedAnnealing(
                    settings.start_temperature * unit, settings.end_temperature * unit, settings.cooling
                ),
                stop.MaxIterations(settings.steps),
            )
        best = result.best_state
        history = tuple(float(value) for value in result.statistics.objectives)
        return decision(objective, best.points, best.objective(), "Algorithm 2", history, bound=True)

    def _start(self, objective: RoundObjective) -> Ints:
        points = objective.lowest if self.start is None else np.asarray(self.start, dtype=np.int64)
        if not objective.fits(points[None])[0]:
            points = objective.fitted(objective.lowest, np.arange(len(points)))
        return points


class _Solution:
    """What the library calls a state; a split point of 0 has been taken away."""

    def __init__(self, of: RoundObjective, points: Ints) -> None:
        self.of, self.points = of, points
        self._value: float | None = None

    def objective(self) -> float:
        if self._value is None:
            self._value = float(self.of.evaluate(self.points[None])[0][0])
        return self._value


def _destroyers(objective: RoundObjective, share: float) -> dict[str, Any]:
    count = max(1, round(share * len(objective.lowest)))
    devices = np.arange(len(objective.lowest))

    def without(solution: _Solution, which: Ints) -> _Solution:
        points = solution.points.copy()
        points[which] = 0
        return _Solution(objective, points)

    def anyone(solution: _Solution, rng: np.random.Generator) -> _Solution:
        return without(solution, rng.choice(devices, count, replace=False))

    def longest(solution: _Solution, rng: np.random.Generator) -> _Solution:
        """Who computes longest on the device, half of the time by chance someone else."""
        seconds = objective.problem.device_s.mean(axis=0)[devices, solution.points - 1]
        return without(solution, np.argsort(-seconds * rng.uniform(0.5, 1.0, len(devices)))[:count])

    return {"anyone": anyone, "longest": longest}


def _repairers(objective: RoundObjective) -> dict[str, Any]:
    def filled(solution: _Solution, rng: np.random.Generator, choose: Any) -> _Solution:
        points = solution.points.copy()
        for device in np.flatnonzero(points == 0):
            points[device] = choose(int(device))
        fit = objective.fitted(points, rng.permutation(len(points)))
        return _Solution(objective, fit)

    def anything(solution: _Solution, rng: np.random.Generator) -> _Solution:
        return filled(solution, rng, lambda device: rng.choice(1 + np.flatnonzero(objective.allowed[device])))

    def ends(solution: _Solution, rng: np.random.Generator) -> _Solution:
        return filled(solution, rng, lambda device: rng.choice((objective.lowest[device], objective.highest[device])))

    return {"anything": anything, "ends": ends}


def _library() -> tuple[Any, Any, Any, Any]:
    try:
        import alns
        import alns.accept
        import alns.select
        import alns.stop
    except ImportError as error:
        raise ConfigError(
            "Algorithm 2 needs the alns library, which is not installed. Run `pip install 'flwr_splitkd[alns]'`, or use "
            "`OptimalSplitPoints`."
        ) from error
    return alns, alns.accept, alns.select, alns.stop
