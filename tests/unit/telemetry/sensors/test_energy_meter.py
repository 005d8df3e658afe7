"""Joules between two moments, by a clock and sensors that the test moves."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from jetson_trees import make_tree, write

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.telemetry.sensors import EnergyMeter, JetsonSensors, Reading, find_sensors

ALONE_S = 3600.0
"""No sample but those that a test takes."""


class Sensors:
    """Readings by name: a quantity with a number, or with a reason."""

    name = "of the test"

    def __init__(self, **values: tuple[str, float | str]) -> None:
        self.values = values
        self.reads = 0

    def read(self) -> tuple[Reading, ...]:
        return self.energy()

    def energy(self) -> tuple[Reading, ...]:
        self.reads += 1
        return tuple(
            Reading(
                quantity=quantity,
                name=name,
                source="test",
                value=value if isinstance(value, float) else None,
                reason=value if isinstance(value, str) else "",
            )
            for name, (quantity, value) in self.values.items()
        )


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metered(clock: Clock) -> Callable[..., EnergyMeter]:
    return lambda *sensors: EnergyMeter(sensors, interval_s=ALONE_S, clock=clock)


def test_power_is_integrated_by_the_trapezoid_rule(clock: Clock, metered: Callable[..., EnergyMeter]) -> None:
    sensors = Sensors(VDD_IN=("power_w", 10.0))
    with metered(sensors) as meter:
        began = meter.begin()
        for watts, seconds in ((10.0, 2.0), (20.0, 1.0), (0.0, 0.5)):
            clock.now_s += seconds
            sensors.values["VDD_IN"] = ("power_w", watts)
            meter.begin()  # a sample
        energy = meter.joules(began)
    assert energy.joules == pytest.approx(20.0 + 15.0 + 5.0)
    assert (energy.parts, energy.reason) == (("VDD_IN",), "")


def test_counters_and_power_add_up(clock: Clock, metered: Callable[..., EnergyMeter]) -> None:
    gpu, processor = Sensors(gpu=("power_w", 100.0)), Sensors(package=("energy_j", 5000.0))
    with metered(gpu, processor) as meter:
        began = meter.begin()
        clock.now_s += 3.0
        processor.values["package"] = ("energy_j", 5030.5)
        energy = meter.joules(began)
    assert energy.joules == pytest.approx(300.0 + 30.5)
    assert energy.parts == ("gpu", "package")


def test_spans_that_overlap(clock: Clock, metered: Callable[..., EnergyMeter]) -> None:
    sensors = Sensors(package=("energy_j", 0.0))

    def spend(joules: float) -> None:
        sensors.values["package"] = ("energy_j", float(sensors.values["package"][1]) + joules)

    with metered(sensors) as meter:
        first = meter.begin()
        spend(1.0)
        second = meter.begin()
        spend(2.0)
        assert meter.joules(first).joules == pytest.approx(3.0)
        spend(4.0)
        assert meter.joules(second).joules == pytest.approx(6.0)
        assert meter.joules(first).joules == pytest.approx(7.0)  # it goes on


def test_a_moments_failure_is_bridged(
    clock: Clock, metered: Callable[..., EnergyMeter], monkeypatch: pytest.MonkeyPatch
) -> None:
    sensors = Sensors(VDD_IN=("power_w", 10.0))
    with metered(sensors) as meter:
        began = meter.begin()
        clock.now_s += 1.0
        sensors.values["VDD_IN"] = ("power_w", "has no value now")

        def recover(seconds: float) -> None:
            sensors.values["VDD_IN"] = ("power_w", 10.0)

        monkeypatch.setattr(time, "sleep", recover)
        assert meter.joules(began).joules == pytest.approx(10.0)


def test_what_cannot_be_read_at_the_end_is_unknown(clock: Clock, metered: Callable[..., EnergyMeter]) -> None:
    sensors = Sensors(VDD_IN=("power_w", 10.0), package=("energy_j", 1.0))
    with metered(sensors) as meter:
        began = meter.begin()
        sensors.values["VDD_IN"] = ("power_w", "has no value now")
        energy = meter.joules(began)
        assert (energy.joules, energy.reason) == (None, "VDD_IN: has no value now")
        late = meter.begin()
        sensors.values["VDD_IN"] = ("power_w", 10.0)
        clock.now_s += 2.0
        assert meter.joules(late).joules is None, "its beginning is not known"
        assert meter.joules(began).joules == pytest.approx(20.0)


def test_a_part_that_is_gone_is_unknown(metered: Callable[..., EnergyMeter]) -> None:
    sensors = Sensors(package=("energy_j", 1.0))
    with metered(sensors) as meter:
        began = meter.begin()
        sensors.values.clear()
        assert "energy_j is not there any more" in meter.joules(began).reason


def test_a_gap_is_not_filled(clock: Clock) -> None:
    sensors = Sensors(VDD_IN=("power_w", 10.0))
    with EnergyMeter([sensors], interval_s=0.6, clock=clock) as meter:
        began = meter.begin()
        clock.now_s += 6.1  # ten intervals and more, as after SIGSTOP
        energy = meter.joules(began)
        assert energy.joules is None
        assert energy.reason == "the power of VDD_IN was not read for 6.1 s"
        after = meter.begin()
        clock.now_s += 1.0
        assert meter.joules(after).joules == pytest.approx(10.0)


def test_a_counter_that_falls_is_no_number(metered: Callable[..., EnergyMeter]) -> None:
    sensors = Sensors(gpu=("energy_j", 50.0))
    with metered(sensors) as meter:
        began = meter.begin()
        sensors.values["gpu"] = ("energy_j", 2.0)
        assert "the counter of gpu fell from 50 to 2 J" in meter.joules(began).reason
        after = meter.begin()
        sensors.values["gpu"] = ("energy_j", 2.5)
        assert meter.joules(after).joules == 0.5


@pytest.mark.parametrize(
    ("quantity", "value", "reason"),
    [
        ("power_w", math.nan, "VDD_IN: it says nan; expected a number."),
        ("power_w", math.inf, "VDD_IN: it says inf; expected a number."),
        ("power_w", -0.5, "VDD_IN: it says -0.5 W; expected 0 to 10000."),
        ("power_w", 4294967.295, "VDD_IN: it says 4.29497e+06 W; expected 0 to 10000."),  # -1 as 32 bits, in mW
        ("energy_j", math.nan, "VDD_IN: it says nan; expected a number."),
        ("energy_j", 25_000.0, "the counter of VDD_IN rose by 24990 J in 1.0 s; nothing takes 10000 W"),
    ],
)
def test_what_no_machine_can_take_is_no_number(
    quantity: str, value: float, reason: str, clock: Clock, metered: Callable[..., EnergyMeter]
) -> None:
    sensors = Sensors(VDD_IN=(quantity, 10.0))
    with metered(sensors) as meter:
        began = meter.begin()
        clock.now_s += 1.0
        sensors.values["VDD_IN"] = (quantity, value)
        energy = meter.joules(began)
    assert (energy.joules, energy.reason) == (None, reason)
    if not (quantity == "energy_j" and math.isfinite(value)):
        assert metered(sensors).left_out == (reason,)  # nor is it a part to begin with


def test_a_counter_that_comes_late_is_no_lie(clock: Clock, metered: Callable[..., EnergyMeter]) -> None:
    """NVML's is some ten milliseconds old; what is new in it may be of longer than between two looks."""
    sensors = Sensors(gpu=("energy_j", 10.0))
    with metered(sensors) as meter:
        began = meter.begin()
        clock.now_s += 0.001
        sensors.values["gpu"] = ("energy_j", 80.0)
        assert meter.joules(began).joules == 70.0


def test_a_counter_that_never_moves_is_no_part(clock: Clock, metered: Callable[..., EnergyMeter]) -> None:
    sensors = Sensors(package=("energy_j", 10.0), dram=("energy_j", 0.0))
    with metered(sensors) as meter:
        began = meter.begin()
        clock.now_s += 1.0
        sensors.values["package"] = ("energy_j", 30.0)
        energy = meter.joules(began)
        assert (energy.joules, energy.parts) == (20.0, ("package",))


def test_a_counter_that_has_stopped_is_unknown(clock: Clock, metered: Callable[..., EnergyMeter]) -> None:
    """Without it the joules were those of other parts, under the name of all of them."""
    sensors = Sensors(package=("energy_j", 10.0), gpu=("energy_j", 10.0))
    with metered(sensors) as meter:
        meter.begin()
        sensors.values.update(package=("energy_j", 20.0), gpu=("energy_j", 20.0))
        began = meter.begin()
        clock.now_s += 2.0
        sensors.values["package"] = ("energy_j", 30.0)
        energy = meter.joules(began)
        assert energy.joules is None
        assert energy.reason == "gpu did not move in 2.000 s: the span is shorter than their step"


def test_a_machine_that_slept_has_no_joules(tmp_path: Path, clock: Clock) -> None:
    """Its processor's counter has started anew, as if it had reached its range: 262 kJ in two seconds, or a bit less."""
    zone = "sys/class/powercap/intel-rapl:0"
    for name, text in {"name": "package-0", "max_energy_range_uj": "262143328850", "energy_uj": "260000000000"}.items():
        write(tmp_path, f"{zone}/{name}", text)
    asleep_s = 0.0
    with EnergyMeter(find_sensors(tmp_path), ALONE_S, clock=clock, asleep=lambda: asleep_s) as meter:
        began = meter.begin()
        clock.now_s += 2.0
        asleep_s += 600.0
        write(tmp_path, f"{zone}/energy_uj", "9000000")
        energy = meter.joules(began)
        assert (energy.joules, energy.reason) == (None, "the machine slept for 600 s")
        began = meter.begin()
        write(tmp_path, f"{zone}/energy_uj", "10000000")
        assert meter.joules(began).joules == pytest.approx(1.0)


def test_this_machine_tells_how_long_it_slept() -> None:
    with EnergyMeter([Sensors(gpu=("power_w", 1.0))]) as meter:
        assert meter._asleep() > -0.1  # two clocks, read one after the other
        assert meter._asleep() == pytest.approx(meter._asleep(), abs=0.1)


def test_a_span_too_short_to_see_anything_is_unknown(clock: Clock, metered: Callable[..., EnergyMeter]) -> None:
    with metered(Sensors(gpu=("energy_j", 50.0))) as meter:
        began = meter.begin()
        clock.now_s += 0.005
        energy = meter.joules(began)
    assert (energy.joules, energy.parts) == (None, ("gpu",))
    assert energy.reason == "gpu did not move in 0.005 s: the span is shorter than their step"


def test_what_is_left_out_is_told(metered: Callable[..., EnergyMeter]) -> None:
    with metered(Sensors(gpu=("energy_j", 1.0)), Sensors(package=("energy_j", "permission denied"))) as meter:
        assert meter.parts == ("gpu",)
        assert meter.left_out == ("package: permission denied",)
        assert meter.reason == ""


def test_nothing_to_measure_is_none_with_a_reason(metered: Callable[..., EnergyMeter]) -> None:
    for meter, reason in (
        (metered(Sensors(package=("energy_j", "permission denied"))), "package: permission denied"),
        (metered(), "no sensors of power or energy were found"),
    ):
        energy = meter.joules(meter.begin())
        assert energy.joules is None and energy.parts == () and reason in energy.reason
        assert "flwr-splitkd-energy" not in {thread.name for thread in threading.enumerate()}
        meter.close()


def test_a_module_is_measured_without_what_is_in_it(tmp_path: Path, metered: Callable[..., EnergyMeter]) -> None:
    root = make_tree(tmp_path, "orin-nano")
    gpu = Sensors(gpu=("power_w", 3.0))
    with metered(gpu, *find_sensors(root)) as meter:
        assert meter.parts == ("VDD_IN",)
    write(root, "sys/class/hwmon/hwmon1/in1_label", "VDD_NEW")
    with metered(gpu, JetsonSensors(root)) as meter:
        assert meter.parts == ("gpu",)
        assert "VDD_NEW" in meter.left_out[0]


def test_a_thread_samples_power(tmp_path: Path) -> None:
    """The only test that takes the time it takes: 5 W for some samples, and the thread is gone at the end."""
    sensors = Sensors(VDD_IN=("power_w", 5.0))
    with EnergyMeter([sensors], interval_s=0.01) as meter:
        began, started_s = meter.begin(), time.monotonic()
        reads, due_s = sensors.reads, time.monotonic() + 10
        while sensors.reads < reads + 5 and time.monotonic() < due_s:
            time.sleep(0.005)
        energy = meter.joules(began)
        seconds = time.monotonic() - started_s
        assert sensors.reads >= reads + 5
    assert energy.joules == pytest.approx(5.0 * seconds, abs=5.0 * 0.05)
    assert "flwr-splitkd-energy" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("interval_s", [0.0, -1.0, float("nan"), float("inf")])
def test_intervals_that_cannot_be(interval_s: float) -> None:
    with pytest.raises(ConfigError, match="`interval_s` is"):
        EnergyMeter([], interval_s=interval_s)
