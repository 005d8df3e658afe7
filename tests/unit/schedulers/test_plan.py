"""The planner against brute force: every option at every clock of a fine grid, by scalar formulas of its own."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs import (
    BlockTimes,
    DeviceProfile,
    LinkState,
    ModelShape,
    ServerProfile,
    Workload,
    cut_terms,
    turn_cost,
)
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers import Decision, Options, evaluate_options, plan_cut_and_frequency

INSTANCES = 1000
GRID = 200
CODECS = ("none", "float16", "int8")
VALUE_BYTES = {"float16": 2.0, "int8": 1.0 + 4 / 128}


@dataclass(frozen=True, kw_only=True)
class Instance:
    student: ModelShape
    teacher: ModelShape | None
    workload: Workload
    device: DeviceProfile
    server: ServerProfile
    link: LinkState
    codecs: tuple[str, ...]
    max_delay_s: float = math.inf
    min_cut: int = 1
    battery_j: float | None = None
    cuts: tuple[int, ...] | None = None
    other_s: float = 0.0
    server_offset_s: float = 0.0

    def arguments(self) -> dict[str, Any]:
        names = ("device", "server", "link", "max_delay_s", "min_cut", "battery_j", "cuts")
        return {name: getattr(self, name) for name in names}

    def plan(self) -> Decision:
        return plan_cut_and_frequency(self._terms(), **self.arguments())

    def options(self) -> Options:
        return evaluate_options(self._terms(), **self.arguments())

    def _terms(self) -> Any:
        terms = cut_terms(self.student, self.teacher, self.workload, self.device, codecs=self.codecs)
        return replace(terms, other_s=terms.other_s + self.other_s, server_offset_s=self.server_offset_s)


@dataclass(frozen=True, kw_only=True)
class Slow:
    """One option, by the formulas of section 8 and of the docstring of `flwr_splitkd.costs.turn`, one number at a time."""

    cut: int
    codec: str
    device_s: float
    uplink_s: float
    downlink_s: float
    cycles: float
    device_j: float
    device_memory: float
    server_memory: float
    waiting_s: float
    server: ServerProfile

    def seconds(self, frequency_hz: float) -> float:
        return self.device_s + self.uplink_s + self.cycles / frequency_hz + self.downlink_s + self.waiting_s

    def joules(self, frequency_hz: float) -> float:
        server = self.server
        waiting_w = server.idle_activity * server.power_coefficient * server.idle_frequency_hz**3
        return (
            self.device_j
            + server.transmit_power_w * self.downlink_s
            + server.power_coefficient * frequency_hz**2 * self.cycles
            + server.static_power_w * self.seconds(frequency_hz)
            + waiting_w * (self.device_s + self.uplink_s + self.downlink_s + self.waiting_s)
        )


def slow_options(case: Instance) -> Iterator[Slow]:
    student, teacher, work, device, server = case.student, case.teacher, case.workload, case.device, case.server
    length, batch, steps = work.sequence_length, work.batch_size, work.num_batches * work.local_epochs
    tokens, moments = batch * length, work.moments

    def flops(shape: ModelShape, block: int) -> float:
        pairs = length * length / 2 if work.causal else length * length
        return float(shape.block_flops_per_token[block] * length + shape.block_flops_per_pair[block] * pairs)

    blocks = len(student.block_parameters)
    teacher_flops = 0.0
    if teacher:
        teacher_flops = teacher.head_flops_per_token * length
        for block in range(len(teacher.block_parameters)):
            teacher_flops += flops(teacher, block)
    for codec in case.codecs:
        width = VALUE_BYTES.get(codec, work.activation_bytes)
        for cut in range(1, blocks):
            below = above = weights_below = weights_above = measured = 0.0
            for block in range(blocks):
                if block < cut:
                    below += flops(student, block)
                    weights_below += float(student.block_parameters[block])
                    if device.blocks:
                        measured += device.blocks.forward_s[block] + device.blocks.backward_s[block]
                else:
                    above += flops(student, block)
                    weights_above += float(student.block_parameters[block])
            if device.blocks:
                scale = tokens / (device.blocks.batch_size * device.blocks.sequence_length)
                device_s = steps * scale * (measured + device.blocks.embedding_s)
            else:
                device_s = steps * batch * 3 * below / (device.frequency_hz * device.cores * device.flops_per_cycle)
            head = student.head_flops_per_token * length
            server_flops = steps * batch * (teacher_flops + 3 * (above + head))
            moved = weights_below + (student.embedding_parameters if work.train_embeddings else 0)
            handover = moved * work.weight_bytes * (1 + moments)
            up = tokens * student.hidden_size * width + tokens * work.token_bytes
            down = tokens * student.hidden_size * width
            trained_embedding = student.embedding_parameters if work.train_embeddings else 0
            device_weights = weights_below * (1 + moments) + student.embedding_parameters + moments * trained_embedding
            server_weights = (weights_below + weights_above) * (1 + moments)
            server_weights += student.embedding_parameters * (1 + moments if work.train_embeddings else 1)
            server_weights += student.head_parameters * (2 + moments) + weights_above
            if teacher:
                up += tokens * teacher.embedding_width * width
                device_weights += teacher.vocab_size * teacher.embedding_width
                server_weights += float(teacher.block_parameters.sum())
                server_weights += teacher.embedding_parameters + teacher.head_parameters
            kept = sum(_activations(student, work, block) for block in range(cut, blocks))
            within_step = _within_step(student, teacher, work, cut) + trained_embedding * work.weight_bytes
            dead = not (case.link.uplink_bps and case.link.downlink_bps)
            uplink_s = math.inf if dead else 8 * (steps * up + handover) / case.link.uplink_bps
            downlink_s = math.inf if dead else 8 * (steps * down + handover) / case.link.downlink_bps
            computing_w = device.power_coefficient * device.frequency_hz**3
            yield Slow(
                cut=cut,
                codec=codec,
                device_s=device_s,
                uplink_s=uplink_s,
                downlink_s=downlink_s,
                cycles=server_flops / (server.cores * server.flops_per_cycle),
                device_j=math.inf if dead else computing_w * device_s + device.transmit_power_w * uplink_s,
                device_memory=device_weights * work.weight_bytes + within_step,
                server_memory=server_weights * work.weight_bytes + kept,
                waiting_s=case.other_s + case.server_offset_s,
                server=server,
            )


def _activations(student: ModelShape, work: Workload, block: int) -> float:
    """Bytes that a block keeps of a batch."""
    projections = float(student.block_flops_per_token[block]) / (2 * student.hidden_size)
    mlp = max(projections - float(student.block_flops_per_pair[block]) / 2, 0) / 3
    tokens = work.batch_size * work.sequence_length
    return (projections + mlp + 6 * student.hidden_size) * tokens * work.activation_bytes


def _within_step(student: ModelShape, teacher: ModelShape | None, work: Workload, cut: int) -> float:
    """Bytes beside weights and moments: a backward pass walked through block by block, or the optimiser's step."""
    tokens = work.batch_size * work.sequence_length
    activations = [_activations(student, work, block) for block in range(cut)]
    gradients, backward = 0.0, 0.0
    for block in reversed(range(cut)):
        gradients += float(student.block_parameters[block]) * work.weight_bytes
        backward = max(backward, gradients + sum(activations[: block + 1]))
    widths = student.hidden_size + (teacher.embedding_width if teacher else 0)  # the teacher's a step ahead
    backward += tokens * (2 * widths * work.activation_bytes + work.token_bytes)
    largest = 0.3 * max(float(student.block_parameters[block]) for block in range(cut))
    if work.train_embeddings:  # whose gradients the caller counts
        largest = max(largest, student.embedding_parameters)
    return max(backward, gradients + 2 * largest * work.weight_bytes)


def broken(case: Instance, option: Slow, fastest_s: float) -> set[str]:
    """Constraints that the option breaks even at the largest clock."""
    found = {
        "min_cut": option.cut < case.min_cut,
        "device memory": option.device_memory > case.device.memory_bytes,
        "server memory": option.server_memory > case.server.memory_bytes,
        "link": math.isinf(option.uplink_s),
        "max_delay_s": math.isfinite(option.uplink_s) and fastest_s > case.max_delay_s * (1 + 1e-9),
        "battery": case.battery_j is not None and option.device_j > case.battery_j,
        "cuts": case.cuts is not None and option.cut not in case.cuts,
    }
    return {name for name, is_broken in found.items() if is_broken}


def brute_force(case: Instance) -> float | None:
    """Least joules of any feasible option at any clock of the grid; None if there is none."""
    low, high = case.server.min_frequency_hz, case.server.max_frequency_hz
    grid = [low + (high - low) * step / GRID for step in range(GRID)] + [high]
    best = None
    for option in slow_options(case):
        if broken(case, option, option.seconds(high)):
            continue
        for frequency_hz in grid:
            if option.seconds(frequency_hz) <= case.max_delay_s * (1 + 1e-9):
                joules = option.joules(frequency_hz)
                best = joules if best is None else min(best, joules)
    return best


def _shape(rng: np.random.Generator, name: str, blocks: int) -> ModelShape:
    width = int(rng.integers(16, 512))
    vocab = int(rng.integers(100, 5000))
    each = 12.0 * width * width * rng.uniform(0.3, 3.0, blocks)
    tied = bool(rng.integers(2))
    return ModelShape(
        name=name,
        hidden_size=width,
        embedding_width=width if rng.integers(2) else width // 2,
        vocab_size=vocab,
        block_parameters=each.round(),
        block_flops_per_token=2 * each,
        block_flops_per_pair=rng.uniform(1, 4) * np.full(blocks, width),
        embedding_parameters=vocab * width,
        head_parameters=width if tied else width + vocab * width,
        head_flops_per_token=2.0 * vocab * width,
        tied=tied,
    )


def _server(rng: np.random.Generator) -> ServerProfile:
    """With its cheapest clock below, inside and above its range, with no static power, no dynamic power, and neither."""
    high = rng.uniform(0.5e9, 3e9)
    low = high * rng.uniform(0.05, 0.5)
    xi, cheapest = rng.uniform(20, 500) / high**3, high * rng.choice([0.02, rng.uniform(0.5, 0.95), 1.5])
    kind = rng.choice(["both", "both", "both", "no static", "no dynamic", "neither"])
    return ServerProfile(
        name="server",
        min_frequency_hz=low,
        max_frequency_hz=high,
        cores=int(rng.integers(16, 1024)),
        power_coefficient=0.0 if kind in ("no dynamic", "neither") else xi,
        static_power_w=0.0 if kind in ("no static", "neither") else 2 * xi * cheapest**3,
        idle_activity=float(rng.choice([0.0, rng.uniform(0, 1)])),
        transmit_power_w=float(rng.uniform(0, 5)),
        memory_bytes=1e18,
    )


def _device(rng: np.random.Generator, blocks: int) -> DeviceProfile:
    times = None
    if rng.random() < 0.3:
        times = BlockTimes(
            model="student",
            batch_size=int(rng.integers(1, 8)),
            sequence_length=int(rng.integers(8, 128)),
            forward_s=tuple(rng.uniform(1e-4, 1e-2, blocks)),
            backward_s=tuple(rng.uniform(1e-4, 2e-2, blocks)),
            embedding_s=float(rng.uniform(0, 1e-3)),
        )
    clock = rng.uniform(0.3e9, 1.5e9)
    return DeviceProfile(
        name="device",
        frequency_hz=clock,
        cores=int(rng.integers(4, 2048)),
        power_coefficient=rng.uniform(0, 60) / clock**3,
        transmit_power_w=float(rng.choice([0.0, rng.uniform(0.05, 2)])),
        memory_bytes=1e18,
        blocks=times,
    )


def _between(rng: np.random.Generator, values: list[float]) -> float:
    """A bound that all, some or none of the options meet; none by a rounding error."""
    low, high = min(values), max(values) * 1.001
    return float(rng.choice([low * rng.uniform(0.4, 0.99), rng.uniform(low, high), high * rng.uniform(1, 1.3)]))


def instances() -> Iterator[Instance]:
    for seed in range(INSTANCES):
        rng = np.random.default_rng(seed)
        blocks = int(rng.integers(2, 9))
        rates = rng.uniform(1e5, 1e9, 2) if rng.random() > 0.05 else np.array([0.0, 1e6])[:: rng.choice([-1, 1])]
        case = Instance(
            student=_shape(rng, "student", blocks),
            teacher=_shape(rng, "teacher", int(rng.integers(1, 12))) if rng.random() < 0.6 else None,
            workload=Workload(
                batch_size=int(rng.integers(1, 16)),
                sequence_length=int(rng.integers(4, 256)),
                num_batches=int(rng.integers(1, 50)),
                local_epochs=int(rng.integers(1, 4)),
                activation_bytes=float(rng.choice([2.0, 4.0])),
                moments=int(rng.integers(0, 3)),
                train_embeddings=bool(rng.integers(2)),
                causal=bool(rng.integers(2)),
            ),
            device=_device(rng, blocks),
            server=_server(rng),
            link=LinkState(uplink_bps=float(rates[0]), downlink_bps=float(rates[1])),
            codecs=tuple(rng.permutation(CODECS)[: int(rng.integers(1, 4))].tolist()),
            other_s=float(rng.choice([0.0, rng.uniform(0, 5)])),
            server_offset_s=float(rng.choice([0.0, rng.uniform(0, 5)])),
        )
        every = list(slow_options(case))
        high, low = case.server.max_frequency_hz, case.server.min_frequency_hz
        if case.link.uplink_bps and case.link.downlink_bps:
            if rng.random() < 0.5:
                seconds = [option.seconds(clock) for option in every for clock in (low, high)]
                case = replace(case, max_delay_s=_between(rng, seconds))
            elif rng.random() < 0.7:  # a bound that some option meets at a clock inside the range, if only just
                option = every[int(rng.integers(len(every)))]
                case = replace(case, max_delay_s=option.seconds(rng.uniform(low, high)))
            if rng.random() < 0.25:
                case = replace(case, battery_j=_between(rng, [option.device_j for option in every]))
        if rng.random() < 0.25:
            bound = _between(rng, [option.device_memory for option in every])
            case = replace(case, device=replace(case.device, memory_bytes=bound))
        if rng.random() < 0.25:
            bound = _between(rng, [option.server_memory for option in every])
            case = replace(case, server=replace(case.server, memory_bytes=bound))
        if rng.random() < 0.25:
            case = replace(case, min_cut=int(rng.integers(1, blocks + 1)))
        if rng.random() < 0.2:
            chosen = rng.choice(np.arange(1, blocks + 1), size=int(rng.integers(1, blocks)), replace=False)
            case = replace(case, cuts=tuple(chosen.tolist()))
        yield case


def _cheapest_clock(server: ServerProfile) -> str:
    if not server.power_coefficient:
        return "no dynamic power" if server.static_power_w else "no power"
    if not server.static_power_w:
        return "no static power"
    cheapest = (server.static_power_w / (2 * server.power_coefficient)) ** (1 / 3)
    return f"f0 {'below' if cheapest < server.min_frequency_hz else 'above' if cheapest > server.max_frequency_hz else 'inside'}"


def _check_feasible(case: Instance, decision: Decision, best_j: float | None) -> None:
    chosen = {(option.cut, option.codec): option for option in slow_options(case)}[decision.cut, decision.codec]
    clock = decision.frequency_hz
    assert case.server.min_frequency_hz <= clock <= case.server.max_frequency_hz
    assert broken(case, chosen, chosen.seconds(clock)) == set()
    assert decision.cost.total_j == pytest.approx(chosen.joules(clock), rel=1e-9)
    assert decision.cost.total_s == pytest.approx(chosen.seconds(clock), rel=1e-9)
    assert decision.cost.device_j == pytest.approx(chosen.device_j, rel=1e-9)
    # The grid may have no clock that the bound allows where the planner's needs no grid.
    assert best_j is None or decision.cost.total_j <= best_j * (1 + 1e-9)


def test_never_worse_than_brute_force(covered: Callable[[str, object], None]) -> None:
    seen: Counter[str] = Counter()
    for case in instances():
        best_j = brute_force(case)
        seen[_cheapest_clock(case.server)] += 1
        try:
            decision = case.plan()
        except InfeasibleError:
            assert best_j is None
            seen["infeasible"] += 1
            continue
        assert best_j is not None  # the grid has the largest clock, which is the fastest
        _check_feasible(case, decision, best_j)
        seen.update(["feasible", f"clock set by {decision.binding}", f"codec {decision.codec}"])
        seen.update(f"{name} binds" for name in decision.excluded)
        if case.device.blocks:
            seen["measured block times"] += 1
        if case.other_s and case.server_offset_s:
            seen["measured waits"] += 1
        seen["inner cut" if 1 < decision.cut < case.student.num_blocks - 1 else "outer cut"] += 1
    covered("planner against brute force", dict(sorted(seen.items())))
    kinds = [
        *("feasible", "infeasible", "measured block times", "measured waits", "inner cut", "outer cut"),
        *("f0 below", "f0 inside", "f0 above", "no static power", "no dynamic power", "no power"),
        *(f"codec {codec}" for codec in CODECS),
        *(f"clock set by {what}" for what in ("delay", "max frequency", "min frequency", "energy")),
        *(f"{name} binds" for name in ("max_delay_s", "device memory", "server memory", "battery", "min_cut", "cuts")),
    ]
    assert seen["feasible"] + seen["infeasible"] == INSTANCES >= 500
    assert {kind: seen[kind] for kind in kinds if seen[kind] < 20} == {}


_REMEDIES = {
    "max_delay_s": r"raise `max_delay_s` to (\S+) s",
    "device memory": r"give the device (\S+) GiB of memory",
    "server memory": r"give the server (\S+) GiB of memory",
    "battery": r"let the device have (\S+) J in its battery",
    "min_cut": r"lower `min_cut` to (\d+)",
    "cuts": r"allow cut (\d+)",
}


def _apply(case: Instance, remedy: str) -> tuple[str, Instance]:
    for name, pattern in _REMEDIES.items():
        if found := re.search(pattern, remedy):
            value = float(found[1])
            if name == "device memory":
                return name, replace(case, device=replace(case.device, memory_bytes=value * 2**30))
            if name == "server memory":
                return name, replace(case, server=replace(case.server, memory_bytes=value * 2**30))
            if name == "min_cut":
                return name, replace(case, min_cut=int(value))
            if name == "cuts":
                return name, replace(case, cuts=(*(case.cuts or ()), int(value)))
            return name, replace(case, **{name if name == "max_delay_s" else "battery_j": value})
    raise AssertionError(f"no remedy is known in {remedy!r}")


def test_every_remedy_makes_it_feasible_and_every_violation_is_one(covered: Callable[[str, object], None]) -> None:
    """Of several, joined by "or", each does alone; those joined by "and" do together."""
    seen: Counter[str] = Counter()
    for case in instances():
        options = case.options()
        high = case.server.max_frequency_hz
        slow = [broken(case, option, option.seconds(high)) for option in slow_options(case)]
        assert [set(violations) for violations in options.violations] == slow
        if options.feasible.any():
            continue
        with pytest.raises(InfeasibleError) as caught:
            case.plan()
        message = str(caught.value)
        if "link" in slow[0]:
            seen["link"] += 1
            assert "in reach again" in message and "bit/s" in message
            continue
        remedies = message.split("To make it feasible, ")[1].removesuffix(".")
        for alternative in remedies.split(", or "):
            changed, names = case, []
            for remedy in alternative.split(", and "):
                name, changed = _apply(changed, remedy)
                names.append(name)
            _check_feasible(changed, changed.plan(), None)
            seen.update([*names, "several at once"] if len(names) > 1 else names)
    covered("remedies applied", dict(sorted(seen.items())))
    assert {name: seen[name] for name in (*_REMEDIES, "several at once", "link") if seen[name] < 5} == {}


def _plain(**changes: Any) -> Instance:
    each = np.full(4, 1e5)
    student = ModelShape(
        name="student",
        hidden_size=64,
        embedding_width=64,
        vocab_size=100,
        block_parameters=each,
        block_flops_per_token=2 * each,
        block_flops_per_pair=np.full(4, 256.0),
        embedding_parameters=6400,
        head_parameters=64,
        head_flops_per_token=12800.0,
        tied=True,
    )
    device = DeviceProfile(name="device", frequency_hz=1e9, cores=16, power_coefficient=1e-26)
    server = ServerProfile(
        name="server",
        min_frequency_hz=0.5e9,
        max_frequency_hz=2e9,
        nominal_frequency_hz=1.5e9,
        cores=16,
        power_coefficient=1e-26,
        static_power_w=20.0,
    )
    case = Instance(
        student=student,
        teacher=None,
        workload=Workload(batch_size=4, sequence_length=32, num_batches=10),
        device=device,
        server=server,
        link=LinkState(uplink_bps=1e8, downlink_bps=1e8),
        codecs=("none",),
    )
    return replace(case, **changes)


def test_the_clock_of_least_energy_is_where_its_derivative_is_zero() -> None:
    decision = _plain().plan()
    assert decision.binding == "energy"
    assert decision.frequency_hz == pytest.approx((20 / 2e-26) ** (1 / 3), rel=1e-12)


@pytest.mark.parametrize(("frequency", "clock"), [("max", 2e9), ("nominal", 1.5e9)])
def test_a_held_clock(frequency: Any, clock: float) -> None:
    case = _plain()
    decision = plan_cut_and_frequency(case._terms(), frequency=frequency, **case.arguments())
    assert (decision.frequency_hz, decision.binding) == (clock, "fixed")
    assert decision.cost.total_j > case.plan().cost.total_j


def test_a_held_clock_that_is_too_slow_is_infeasible() -> None:
    case = _plain()
    terms, arguments = case._terms(), case.arguments()
    fast = plan_cut_and_frequency(terms, frequency="max", **arguments).cost.total_s
    slow = plan_cut_and_frequency(terms, frequency="nominal", **arguments).cost.total_s
    bound = {**arguments, "max_delay_s": (fast + slow) / 2, "cuts": [1]}
    assert plan_cut_and_frequency(terms, frequency="optimal", **bound).binding == "delay"
    with pytest.raises(InfeasibleError, match="raise `max_delay_s` to"):
        plan_cut_and_frequency(terms, frequency="nominal", **bound)


def test_a_server_whose_power_is_not_known_is_not_slowed_down() -> None:
    decision = _plain(server=ServerProfile(name="server", max_frequency_hz=2e9, cores=16)).plan()
    assert decision.frequency_hz == 2e9


def test_of_equals_the_faster_then_the_first() -> None:
    """Where nobody draws power every option takes no joule."""
    idle = DeviceProfile(name="device", frequency_hz=1e9, cores=16, transmit_power_w=0.0)
    server = ServerProfile(name="server", max_frequency_hz=2e9, cores=16, transmit_power_w=0.0)
    case = _plain(device=idle, server=server, codecs=("none", "int8", "float16"))
    assert case.plan().codec == "int8"
    assert _plain(device=idle, server=server, codecs=("bfloat16", "float16")).plan().codec == "bfloat16"


def test_the_decision_tells_the_runner_up_and_what_was_ruled_out() -> None:
    decision = _plain(min_cut=2).plan()
    options = _plain(min_cut=2).options()
    other = decision.runner_up
    assert other is not None and other.joules >= decision.cost.total_j
    assert decision.excluded == {"min_cut": 1}
    assert sorted(options.joules[1:])[:2] == pytest.approx([decision.cost.total_j, other.joules], rel=1e-12)
    assert f"cut {decision.cut}, codec none" in decision.reason
    assert "ruled out: 1 by min_cut" in decision.reason and f"next best cut {other.cut}" in decision.reason
    assert _plain(min_cut=3).plan().reason.endswith("no other option")


def test_options_agree_with_turn_cost() -> None:
    case = _plain(codecs=CODECS)
    options = case.options()
    for k in range(len(options.terms)):
        cost = turn_cost(
            options.terms,
            k,
            frequency_hz=float(options.frequency_hz[k]),
            device=case.device,
            server=case.server,
            link=case.link,
        )
        assert (cost.total_s, cost.total_j) == pytest.approx((options.seconds[k], options.joules[k]), rel=1e-12)


@pytest.mark.parametrize("max_delay_s", [10.0, math.inf])
def test_without_a_link_everything_takes_for_ever(max_delay_s: float) -> None:
    options = _plain(link=LinkState(uplink_bps=0.0, downlink_bps=1e6), max_delay_s=max_delay_s).options()
    assert all(set(violations) == {"link"} for violations in options.violations)
    assert np.isinf([options.seconds, options.joules, options.device_j]).all()


@pytest.mark.parametrize("max_delay_s", [0.0, -1.0, math.nan])
def test_a_bound_out_of_range(max_delay_s: float) -> None:
    with pytest.raises(ConfigError, match="`max_delay_s` is .*; expected more than 0 seconds"):
        _plain(max_delay_s=max_delay_s).plan()


def test_no_such_frequency_policy() -> None:
    case = _plain()
    with pytest.raises(ConfigError, match="`frequency` is 'slow'; expected 'optimal', 'max' or 'nominal'"):
        plan_cut_and_frequency(case._terms(), frequency="slow", **case.arguments())  # type: ignore[arg-type]
