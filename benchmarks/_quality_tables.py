"""The quality benchmark's tables, verdicts and figure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from _quality_arms import FOLLOWERS, LEADERS, OWN_PAIRS, PAIRS, REFERENCE, SPLIT
from _quality_figures import Range, best_rate, early, forgetting, heatmap, verdict
from _quality_runs import Result
from _quality_tasks import TaskKey
from _report import Row
from rich.table import Table

__all__ = ["Findings", "draw", "tables"]

# Behind a heatmap's numbers: white is unreadable on its light cells.
SHADE = {"facecolor": "black", "alpha": 0.45, "linewidth": 0, "boxstyle": "round"}
UNITS: dict[TaskKey, str] = {"lm": "perplexity", "classification": "% right"}


class Findings:
    """The runs of each arm at its best learning rate.

    Parameters
    ----------
    results
        Every run.
    teachers
        Held-out figure of each task's teacher.
    better_teacher
        That of the language model's better teacher.
    """

    def __init__(self, results: Sequence[Result], teachers: dict[TaskKey, float], better_teacher: float) -> None:
        self.teachers, self.better_teacher = teachers, better_teacher
        self._results = results
        self.best: dict[tuple[TaskKey, str], list[Result]] = {}
        for arm in (*LEADERS, *FOLLOWERS):
            runs = [run for run in results if (run.task, run.arm) == (arm.task, arm.name)]
            rate = best_rate(runs, lower_is_better=arm.task == "lm")
            self.best[arm.task, arm.name] = [run for run in runs if run.rate == rate]

    @property
    def all_equal(self) -> bool:
        """Whether unsplit training in the same order gave split training's weights, every tensor and every seed."""
        return all(run.equal is not False for run in self._results)

    def heldout(self, task: TaskKey, name: str) -> dict[int, float]:
        """Held-out figure of an arm by seed."""
        return {run.seed: run.heldout for run in self.best[task, name]}

    def own(self, task: TaskKey, name: str) -> dict[int, float]:
        """An arm's figure on the devices' own text at the end, mean over devices, by seed."""
        return {run.seed: statistics.fmean(run.own) for run in self.best[task, name]}

    def rows(self) -> list[Row]:
        """Every arm's held-out figure beside centralised KD's, and the teachers'."""
        rows = []
        for task, unit in UNITS.items():
            rows.append(Row(name=f"{task}: the teacher", value=self.teachers[task], unit=unit))
            if task == "lm":
                rows.append(Row(name="lm: the better teacher", value=self.better_teacher, unit=unit))
            references = self.heldout(task, REFERENCE)
            for (key, name), runs in self.best.items():
                if key != task:
                    continue
                figures = self.heldout(task, name)
                summary = Range.of(list(figures.values()))
                rows.append(
                    Row(
                        name=f"{task}: {name}, rate {runs[0].rate:g}",
                        value=summary.mean,
                        unit=unit,
                        reference=statistics.fmean(references.values()),
                        ratio=statistics.fmean(figures[seed] / references[seed] for seed in figures),
                        n=len(figures),
                        low=summary.low,
                        high=summary.high,
                    )
                )
        return rows

    def notes(self) -> list[str]:
        """What the columns mean, what is equal to what, and who wins."""
        compared = [run for run in self._results if run.equal is not None]
        equal = sum(bool(run.equal) for run in compared)
        return [
            "value: mean over seeds on the held-out text; low, high: over seeds; reference: "
            f"{REFERENCE}; ratio: mean of the seeds' ratios. Rates are chosen on validation text, each arm its own; an option "
            f"has that of {SPLIT}. The whole grid is in the JSON.",
            "FedAvg: as many optimiser steps in all, so each device takes its share at the same time as the others (new "
            "moments each round); x compute: as many steps as the others on every device, so as long as a turn-taking run "
            "where devices work in parallel. Its devices hold the whole student, and for KD the whole teacher.",
            f"same order: torch.equal of all weights with the split student's in {equal} of {len(compared)} runs.",
            "forgetting: how much worse a device's own text is at the end of the last round than right after its turn in that "
            "round; negative where later turns helped. Turns 4 x as long make one round, so there it is mostly learning.",
            *(self._verdict(task, name, other, own=False) for task, name, other in PAIRS),
            *(self._verdict(task, name, other, own=True) for task, name, other in OWN_PAIRS),
        ]

    def _verdict(self, task: TaskKey, name: str, other: str, *, own: bool) -> str:
        figures = self.own if own else self.heldout
        said = verdict(name, figures(task, name), other, figures(task, other), lower_is_better=task == "lm")
        return f"{task}, {'own' if own else 'held-out'} text: {said}"


def tables(findings: Findings) -> list[Table]:
    """For both tasks: figures on the way, forgetting by arm, and split KD's last round as a heatmap."""
    made = []
    for task, unit in UNITS.items():
        made.append(_curve_table(findings, task))
        table = Table(title=f"{task}: forgetting in the last round; each device's own text, {unit}")
        table.add_column("arm")
        for column in ("early devices forget", "all forget", "own text at the end", "worst device at the end"):
            table.add_column(column, justify="right")
        for (key, name), runs in findings.best.items():
            if key == task:
                table.add_row(name, *_forgetting_cells(task, runs))
        made.append(table)
        made.append(_heatmap_table(task, findings.best[task, SPLIT]))
    return made


def _curve_table(findings: Findings, task: TaskKey) -> Table:
    table = Table(
        title=f"{task}: held-out {UNITS[task]} on the way, at the rate that is best at the end; mean over seeds"
    )
    table.add_column("arm")
    steps = [step for step, _ in findings.best[task, SPLIT][0].curve]
    for step in steps:
        table.add_column(f"{step} steps", justify="right")
    for arm in LEADERS:
        if arm.task == task:
            curves = [[figure for _, figure in run.curve] for run in findings.best[task, arm.name]]
            table.add_row(arm.name, *(f"{statistics.fmean(column):.1f}" for column in zip(*curves, strict=True)))
    return table


def _forgetting_cells(task: TaskKey, runs: Sequence[Result]) -> list[str]:
    lower = task == "lm"
    unit = " %" if lower else " points"
    worst = max if lower else min
    lost = [forgetting(run, lower_is_better=lower) for run in runs if run.after_turn]
    cells = [Range.of([early(one) for one in lost]).text(1) + unit if lost else ""]
    cells.append(Range.of([statistics.fmean(one) for one in lost]).text(1) + unit if lost else "")
    cells.append(Range.of([statistics.fmean(run.own) for run in runs]).text(1))
    cells.append(Range.of([worst(run.own) for run in runs]).text(1))
    return cells


def _heatmap_table(task: TaskKey, runs: Sequence[Result]) -> Table:
    table = Table(title=f"{task}: {SPLIT}, last round, {UNITS[task]} on each device's own text; mean over seeds")
    table.add_column("text of")
    cells = heatmap(runs)
    for device in range(len(cells)):
        table.add_column(f"after turn {device}", justify="right")
    for device, row in enumerate(cells):
        shown = (f"[bold]{value:.1f}[/bold]" if turn == device else f"{value:.1f}" for turn, value in enumerate(row))
        table.add_row(f"device {device}", *shown)
    return table


def draw(findings: Findings, path: Path) -> None:
    """Write one PNG: held-out figures of every arm, and the heatmaps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(15, 14), layout="constrained", width_ratios=(1.3, 1))
    for (left, right), (task, unit) in zip(axes, UNITS.items(), strict=True):
        names = [name for key, name in findings.best if key == task]
        summaries = [Range.of(list(findings.heldout(task, name).values())) for name in names]
        means = [summary.mean for summary in summaries]
        errors = [
            [summary.mean - summary.low for summary in summaries],
            [summary.high - summary.mean for summary in summaries],
        ]
        left.barh(names, means, xerr=errors, color=["tab:orange" if n == SPLIT else "tab:blue" for n in names])
        left.axvline(findings.teachers[task], color="black", linestyle="--", label="the teacher")
        left.invert_yaxis()
        left.set_xlabel(f"held-out {unit}; bars: mean, whiskers: all seeds")
        left.set_title(f"{task}: {'lower' if task == 'lm' else 'higher'} is better")
        left.legend()
        cells = heatmap(findings.best[task, SPLIT])
        image = right.imshow(cells, cmap="viridis_r" if task == "lm" else "viridis")
        for device, row in enumerate(cells):
            for turn, value in enumerate(row):
                right.text(turn, device, f"{value:.0f}", ha="center", va="center", color="white", bbox=SHADE)
        right.set_xlabel("after the turn of device")
        right.set_ylabel("own text of device")
        right.set_title(f"{task}: {SPLIT}, last round, {unit}")
        figure.colorbar(image, ax=right, shrink=0.7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
