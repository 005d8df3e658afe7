"""What the paper leaves open in its case study, as named settings.

Li et al., "Split Knowledge Distillation for Large Models in IoT", section V gives machines (table II), models, vehicles, speed and
noise. It does not give what this module varies; docs/explanation/case-study-split-kd.md says why each is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from flwr_splitkd.costs import TABLE_II_DEVICES, TABLE_II_SERVER, DeviceProfile, ServerProfile, Workload
from flwr_splitkd.costs.checks import check_choice, check_number
from flwr_splitkd.schedulers import FrequencyPolicy

__all__ = ["CLOCKS", "MODELS", "REFERENCES", "WORKLOAD", "Clock", "Counted", "Models", "Setting", "every_setting"]

Clock = Literal["max", "base", "half", "quarter", "optimal"]
Counted = Literal["both", "server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """A teacher and a student.

    Parameters
    ----------
    teacher, student
        Names of `costs.named_shape`.
    memory
        ``"24GiB"`` holds the server to its own memory, ``"any-memory"`` to none.
    """

    teacher: str
    student: str
    memory: Literal["24GiB", "any-memory"]


# Sixty-four blocks of Llama-3.1-8B are 15.0 B parameters, 28 GiB in bfloat16 without a student: more than an RTX 4090 has.
MODELS: dict[str, Models] = {
    "real-32-16-bf16-24GiB": Models(teacher="llama-3.1-8b", student="llama-3.2-1b", memory="24GiB"),
    "paper-64-12-bf16-any-memory": Models(teacher="llama-3.2-8b/64", student="llama-3.2-1b/12", memory="any-memory"),
}
"""Block counts as published, and as the paper has them."""

CLOCKS: dict[Clock, float | None] = {"max": 2.52e9, "base": 2.23e9, "half": 1.26e9, "quarter": 0.63e9, "optimal": None}
"""At how many Hz the server runs in the baselines; None for the clock of least energy within the bound."""

WORKLOAD = Workload(
    batch_size=8,
    sequence_length=512,
    num_batches=50,
    activation_bytes=2,
    weight_bytes=2,
    moments=0,
    causal=True,
    num_microbatches=2,
)
"""A turn: 50 batches of 8 x 512 tokens, bfloat16, an optimiser without moments and two micro-batches a batch.

Moments would not fit into 24 GiB, nor would what 15 blocks keep of a whole batch.
"""

_SLACKS, _STATIC_POWERS_W = (0.0, 0.05, 0.1, 0.25, 0.5), (0.0, 60.0, 300.0)
_EFFICIENCIES, _COUNTED = (1.0, 0.3), ("both", "server")
# No limit, for whoever does not enforce one: a thousand times the largest model here.
_ANY_MEMORY_BYTES = float(1 << 45)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way to fill in what the paper leaves open.

    Parameters
    ----------
    models
        One of `MODELS`.
    clock
        Of the server in the baselines; one of `CLOCKS`.
    slack
        The delay bound of a turn is ``(1 + slack)`` times the fastest that any cut allows, at least 0.
    static_power_w
        What the server draws for as long as a turn lasts, at least 0.
    device_efficiency
        Share of their nominal speed that devices reach at the same power, in ``(0, 1]``.
    counted
        Whose joules count, and are minimised: ``"both"``, or the ``"server"``'s alone.

    Raises
    ------
    ConfigError
        If one is out of range.
    """

    models: str = "real-32-16-bf16-24GiB"
    clock: Clock = "max"
    slack: float = 0.1
    static_power_w: float = 0.0
    device_efficiency: float = 1.0
    counted: Counted = "both"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_choice("models", self.models, MODELS)
        check_choice("clock", self.clock, CLOCKS)
        check_choice("counted", self.counted, _COUNTED)
        check_number("slack", self.slack, minimum=0)
        check_number("static_power_w", self.static_power_w, minimum=0, unit="W")
        check_number("device_efficiency", self.device_efficiency, above=0, maximum=1)

    @property
    def name(self) -> str:
        """All of it in a word."""
        return (
            f"{self.models}/baseline-{self.clock}/slack-{self.slack:.0%}/static-{self.static_power_w:g}W/"
            f"device-{self.device_efficiency:.0%}/{self.counted}"
        )

    def server(self) -> ServerProfile:
        """Return the server of table II, with the baselines' clock as its nominal one."""
        nominal_hz = CLOCKS[self.clock] or TABLE_II_SERVER.max_frequency_hz
        memory = TABLE_II_SERVER.memory_bytes if MODELS[self.models].memory == "24GiB" else _ANY_MEMORY_BYTES
        return replace(
            TABLE_II_SERVER,
            nominal_frequency_hz=nominal_hz,
            static_power_w=self.static_power_w,
            memory_bytes=memory,
        )

    def devices(self) -> tuple[DeviceProfile, ...]:
        """Return the devices of table II, without power if theirs does not count."""
        share = 1.0 if self.counted == "both" else 0.0
        return tuple(
            replace(
                device,
                flops_per_cycle=device.flops_per_cycle * self.device_efficiency,
                power_coefficient=device.power_coefficient * share,
                transmit_power_w=device.transmit_power_w * share,
            )
            for device in TABLE_II_DEVICES
        )

    @property
    def frequency(self) -> FrequencyPolicy:
        """How the baselines choose the server's clock."""
        return "optimal" if self.clock == "optimal" else "nominal"


REFERENCES: tuple[Setting, ...] = tuple(
    Setting(models=models, clock=clock) for models in MODELS for clock in ("max", "half", "optimal")
)
"""What the figures show: 10 % slack, no static power, devices at nominal speed, everybody's joules."""


def every_setting(*, quick: bool = False) -> tuple[Setting, ...]:
    """Return the whole grid; with `quick` only the settings around `REFERENCES`, for a first look."""
    efficiencies = _EFFICIENCIES[:1] if quick else _EFFICIENCIES
    counted: tuple[Counted, ...] = ("both",) if quick else ("both", "server")
    slacks = (0.0, 0.1) if quick else _SLACKS
    powers = (0.0, 300.0) if quick else _STATIC_POWERS_W
    return tuple(
        Setting(
            models=models,
            clock=clock,
            slack=slack,
            static_power_w=power,
            device_efficiency=efficiency,
            counted=whose,
        )
        for models, efficiency, whose, power, slack, clock in product(
            MODELS, efficiencies, counted, powers, slacks, CLOCKS
        )
    )
