"""Every arm of the quality benchmark, and which pairs of them its verdicts are about."""

from __future__ import annotations

from dataclasses import replace

from _quality_runs import Arm
from _quality_tasks import TaskKey

__all__ = ["FOLLOWERS", "LEADERS", "OWN_PAIRS", "PAIRS", "RATES", "REFERENCE", "SPLIT"]

SPLIT = "split KD"
REFERENCE = "centralised KD, shuffled"
SPLIT_CE = "split, CE only"
FEDAVG = "FedAvg, KD"
BETTER = "split KD, better teacher"

RATES: dict[TaskKey, tuple[float, ...]] = {"lm": (3e-4, 1e-3, 3e-3, 1e-2), "classification": (3e-4, 1e-3, 3e-3)}

LEADERS = (
    Arm(task="lm", name=SPLIT),
    Arm(task="lm", name=REFERENCE, method="shuffled"),
    Arm(task="lm", name=FEDAVG, method="fedavg"),
    Arm(task="lm", name=SPLIT_CE, kd_ratio=0.0),
    Arm(task="lm", name="centralised CE, shuffled", method="shuffled", kd_ratio=0.0),
    Arm(task="lm", name="FedAvg, CE", method="fedavg", kd_ratio=0.0),
    Arm(task="classification", name=SPLIT),
    Arm(task="classification", name=REFERENCE, method="shuffled"),
    Arm(task="classification", name=FEDAVG, method="fedavg"),
    Arm(task="classification", name=SPLIT_CE, kd_ratio=0.0),
)
"""Arms that try every learning rate."""


def _options(task: TaskKey) -> list[Arm]:
    """What the product offers against forgetting, one thing at a time; and two references."""
    plain = Arm(task=task, name=SPLIT, rate_of=SPLIT)
    return [
        replace(plain, name="turns 4 x as long", turn_length=4.0),
        replace(plain, name="turns 1/4 as long", turn_length=0.25),
        replace(plain, name="random order", random_order=True),
        replace(plain, name="rate / 3", rate_factor=1 / 3),
        replace(plain, name="rate falls to 0", decay=True),
        replace(plain, name="handover reset", handover="reset"),
        replace(plain, name="handover device", handover="device"),
        replace(plain, name="kd_ratio 1", kd_ratio=1.0),
        replace(plain, name="kd_ratio 0.5", kd_ratio=0.5),
        replace(plain, name="text dealt evenly (IID)", iid=True),
        replace(plain, name="centralised KD, rate falls", method="shuffled", decay=True, rate_of=REFERENCE),
    ]


FOLLOWERS = (
    Arm(task="lm", name="centralised KD, same order", method="same order", rate_of=SPLIT),
    Arm(task="lm", name="centralised CE, same order", method="same order", kd_ratio=0.0, rate_of=SPLIT_CE),
    Arm(task="classification", name="centralised KD, same order", method="same order", rate_of=SPLIT),
    Arm(task="lm", name="FedAvg, KD, x compute", method="fedavg", compute=6, rate_of=FEDAVG),
    Arm(task="lm", name=BETTER, better_teacher=True, rate_of=SPLIT),
    *_options("lm"),
    *_options("classification"),
)
"""Arms that run at the best learning rate of another."""

PAIRS: tuple[tuple[TaskKey, str, str], ...] = (
    ("lm", SPLIT, SPLIT_CE),
    ("lm", BETTER, SPLIT_CE),
    ("lm", SPLIT, REFERENCE),
    ("lm", SPLIT, "centralised CE, shuffled"),
    ("lm", SPLIT, FEDAVG),
    ("lm", SPLIT, "FedAvg, CE"),
    ("lm", SPLIT, "FedAvg, KD, x compute"),
    ("lm", "rate falls to 0", "centralised KD, rate falls"),
    ("classification", SPLIT, SPLIT_CE),
    ("classification", SPLIT, REFERENCE),
    ("classification", SPLIT, FEDAVG),
    ("classification", "turns 1/4 as long", SPLIT),
    ("classification", "turns 1/4 as long", FEDAVG),
    ("classification", "turns 1/4 as long", REFERENCE),
    ("classification", "handover reset", SPLIT),
)
"""Arms to compare by held-out text, seed by seed."""

OWN_PAIRS: tuple[tuple[TaskKey, str, str], ...] = (
    ("lm", SPLIT, SPLIT_CE),
    ("lm", BETTER, SPLIT_CE),
    ("lm", SPLIT, REFERENCE),
    ("lm", REFERENCE, "centralised CE, shuffled"),
)
"""Arms to compare by the devices' own text."""
