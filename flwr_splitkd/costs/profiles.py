"""What a machine can do: devices and the edge server, as data sheets or measurements tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from flwr_splitkd.errors import ConfigError

__all__ = [
    "GENERIC_DEVICE",
    "GENERIC_SERVER",
    "TABLE_II_DEVICES",
    "TABLE_II_SERVER",
    "BlockTimes",
    "DeviceProfile",
    "ServerProfile",
    "device_from_json",
    "server_from_json",
    "to_json",
]

_GIB = float(1 << 30)
# Beyond it an integer is no float any more.
_MOST = 1e300


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTimes:
    """Measured seconds of a model's parts on one machine, for one batch.

    Parameters
    ----------
    model
        What was measured, for messages.
    batch_size, sequence_length
        Of the measured batch; other sizes are scaled by their tokens.
    forward_s, backward_s
        Of each block.
    embedding_s
        Forward pass of what comes before the first block.
    """

    model: str
    batch_size: int
    sequence_length: int
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    embedding_s: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises
        ------
        ConfigError
            If there is not one positive time for each block and pass.
        """
        object.__setattr__(self, "forward_s", tuple(float(value) for value in self.forward_s))
        object.__setattr__(self, "backward_s", tuple(float(value) for value in self.backward_s))
        if len(self.forward_s) != len(self.backward_s) or not self.forward_s:
            raise ConfigError(
                f"`forward_s` of {self.model} has {len(self.forward_s)} blocks and `backward_s` {len(self.backward_s)}; expected "
                "the same number, at least 1."
            )
        for name in ("forward_s", "backward_s"):
            if not all(math.isfinite(value) and value > 0 for value in getattr(self, name)):
                raise ConfigError(
                    f"`{name}` of {self.model} is {getattr(self, name)}; expected seconds of more than 0."
                )
        sizes = (self.batch_size, self.sequence_length)
        if not all(isinstance(size, int) for size in sizes):
            raise ConfigError(f"The block times of {self.model} are of a batch of {sizes}; expected whole numbers.")
        if self.batch_size < 1 or self.sequence_length < 1 or not 0 <= self.embedding_s < math.inf:
            raise ConfigError(
                f"The block times of {self.model} are of {self.batch_size} x {self.sequence_length} tokens, the embedding's "
                f"{self.embedding_s} s; expected at least 1 x 1 and 0 s."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """A device.

    Parameters
    ----------
    name
        What kind of device it is.
    frequency_hz, cores, flops_per_cycle
        It computes ``frequency * cores * flops_per_cycle`` FLOPs a second; a measured efficiency goes into the last one.
    power_coefficient
        Its cores draw ``coefficient * frequency^3`` watts while they compute.
    transmit_power_w
        What its radio draws while it sends.
    memory_bytes
        What a turn may take of its memory.
    battery_j
        What its battery holds; None on mains.
    blocks
        Measured times, which then take the place of the nominal speed.
    """

    name: str
    frequency_hz: float
    cores: int
    flops_per_cycle: float = 2.0
    power_coefficient: float = 0.0
    transmit_power_w: float = 0.2
    memory_bytes: float = 16 * _GIB
    battery_j: float | None = None
    blocks: BlockTimes | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises
        ------
        ConfigError
            If one is out of range.
        """
        _check(self, above_zero=("frequency_hz", "cores", "flops_per_cycle", "memory_bytes"))
        _check(self, from_zero=("power_coefficient", "transmit_power_w"))
        if self.battery_j is not None:
            _check(self, from_zero=("battery_j",))
        _check_derived(self.name, self.frequency_hz, self.cores, self.flops_per_cycle, self.power_coefficient)

    @property
    def flops(self) -> float:
        """FLOPs a second."""
        return self.frequency_hz * self.cores * self.flops_per_cycle

    @property
    def compute_power_w(self) -> float:
        """What its cores draw while they compute."""
        return self.power_coefficient * self.frequency_hz**3


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProfile:
    """The edge server.

    Parameters
    ----------
    name
        What it is.
    min_frequency_hz, max_frequency_hz
        Range of its GPU clock.
    nominal_frequency_hz
        What it runs at when nobody chooses; the largest when not given.
    cores, flops_per_cycle
        It computes ``frequency * cores * flops_per_cycle`` FLOPs a second.
    power_coefficient
        Its cores draw ``coefficient * frequency^3`` watts while they compute.
    static_power_w
        What it draws for as long as a turn lasts, whatever it does.
    idle_activity
        Share of the cores' power that it draws at the idle clock while it waits; 0 when clocks are gated.
    idle_frequency_hz
        Its clock while it waits; the smallest when not given.
    transmit_power_w
        What its radio draws while it sends.
    memory_bytes
        What the models and a turn may take.
    """

    name: str
    max_frequency_hz: float
    cores: int
    min_frequency_hz: float = 0.0
    nominal_frequency_hz: float = 0.0
    flops_per_cycle: float = 2.0
    power_coefficient: float = 0.0
    static_power_w: float = 0.0
    idle_activity: float = 0.0
    idle_frequency_hz: float = 0.0
    transmit_power_w: float = 1.0
    memory_bytes: float = 24 * _GIB

    def __post_init__(self) -> None:
        """Fill in what follows from the rest, and check the ranges.

        Raises
        ------
        ConfigError
            If one is out of range.
        """
        low = self.min_frequency_hz or self.max_frequency_hz / 10
        object.__setattr__(self, "min_frequency_hz", low)
        object.__setattr__(self, "nominal_frequency_hz", self.nominal_frequency_hz or self.max_frequency_hz)
        object.__setattr__(self, "idle_frequency_hz", self.idle_frequency_hz or low)
        _check(self, above_zero=("max_frequency_hz", "min_frequency_hz", "cores", "flops_per_cycle", "memory_bytes"))
        _check(self, above_zero=("idle_frequency_hz",))
        _check(self, from_zero=("power_coefficient", "static_power_w", "idle_activity", "transmit_power_w"))
        _check_derived(self.name, self.max_frequency_hz, self.cores, self.flops_per_cycle, self.power_coefficient)
        if low > self.max_frequency_hz:
            raise ConfigError(
                f"`min_frequency_hz` of {self.name} is {low:g}; expected at most {self.max_frequency_hz:g}, its largest."
            )
        if not low <= self.nominal_frequency_hz <= self.max_frequency_hz:
            raise ConfigError(
                f"`nominal_frequency_hz` of {self.name} is {self.nominal_frequency_hz:g}; expected {low:g} to "
                f"{self.max_frequency_hz:g}."
            )
        if self.idle_activity > 1:
            raise ConfigError(f"`idle_activity` of {self.name} is {self.idle_activity}; expected 0 to 1.")

    def flops_at(self, frequency_hz: float) -> float:
        """FLOPs a second at a clock."""
        return frequency_hz * self.cores * self.flops_per_cycle

    @property
    def idle_power_w(self) -> float:
        """What its cores draw while they wait."""
        return self.idle_activity * self.power_coefficient * self.idle_frequency_hz**3


def device_from_json(data: Mapping[str, Any]) -> DeviceProfile:
    """Read a device's profile, as `flwr-splitkd profile` writes it.

    Raises
    ------
    ConfigError
        If a field is unknown, missing or out of range.
    """
    blocks = data.get("blocks") if isinstance(data, Mapping) else None
    profile: DeviceProfile = _from_json(DeviceProfile, data, without="blocks")
    return profile if blocks is None else replace(profile, blocks=_from_json(BlockTimes, blocks))


def server_from_json(data: Mapping[str, Any]) -> ServerProfile:
    """Read a server's profile.

    Raises
    ------
    ConfigError
        If a field is unknown, missing or out of range.
    """
    profile: ServerProfile = _from_json(ServerProfile, data)
    return profile


def _from_json(kind: type[Any], data: Any, without: str = "") -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"A {kind.__name__} is {data!r}; expected an object with its fields.")
    known = {field.name for field in fields(kind)}
    if odd := sorted(set(data) - known):
        raise ConfigError(f"A {kind.__name__} has {odd[0]!r}; expected fields among {sorted(known)}.")
    try:
        return kind(**{name: value for name, value in data.items() if name != without})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:  # a field is missing, or holds what is no number
        raise ConfigError(f"A {kind.__name__} of {dict(data)!r} cannot be made: {error}.") from error


def to_json(profile: DeviceProfile | ServerProfile) -> dict[str, Any]:
    """Write a profile so that it can be read again."""
    return asdict(profile)


def _check_derived(name: str, frequency_hz: float, cores: int, flops_per_cycle: float, coefficient: float) -> None:
    """Each number may be in range, and what follows from them beyond what a float holds."""
    try:
        derived = (
            float(frequency_hz) * float(cores) * float(flops_per_cycle),
            float(coefficient) * float(frequency_hz) ** 3,
        )
    except OverflowError:
        derived = (math.inf, math.inf)
    if not all(map(math.isfinite, derived)):
        raise ConfigError(
            f"{name} computes at {frequency_hz:g} Hz with {cores:g} cores and a power coefficient of {coefficient:g} W/Hz^3; "
            "expected finite FLOPs and watts. Check their units."
        )


def _check(profile: Any, *, above_zero: tuple[str, ...] = (), from_zero: tuple[str, ...] = ()) -> None:
    for name in (*above_zero, *from_zero):
        value = getattr(profile, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST
        if not is_number or not math.isfinite(value) or value < 0 or (name in above_zero and value == 0):
            bound = "more than 0" if name in above_zero else "at least 0"
            raise ConfigError(f"`{name}` of {profile.name} is {value!r}; expected a finite number of {bound}.")


def _device(
    name: str, frequency_ghz: float, cores: int, rated_ghz: float, rated_w: float, memory_gib: int
) -> DeviceProfile:
    return DeviceProfile(
        name=name,
        frequency_hz=frequency_ghz * 1e9,
        cores=cores,
        power_coefficient=rated_w / (rated_ghz * 1e9) ** 3,
        memory_bytes=memory_gib * _GIB,
    )


# Frequencies and cores: Li et al., table II. The paper gives no power: rated power and clock are those of NVIDIA's data
# sheets (AGX Orin 64 GB 60 W, Orin NX 16 GB 25 W, AGX Xavier 32 GB 30 W, RTX 4090 450 W), memory too.
TABLE_II_DEVICES: tuple[DeviceProfile, ...] = (
    *(_device(f"Jetson AGX Orin {g} GHz", g, 2048, 1.3, 60, 64) for g in (1.3, 1.3, 1.0, 1.0)),
    *(_device(f"Jetson Orin NX {g} GHz", g, 1024, 0.918, 25, 16) for g in (0.91, 0.91, 0.76, 0.76)),
    *(_device(f"Jetson AGX Xavier {g} GHz", g, 512, 1.377, 30, 32) for g in (1.2, 1.2)),
)
"""Devices 1 to 10 of the paper's case study."""

TABLE_II_SERVER = ServerProfile(
    name="RTX 4090",
    min_frequency_hz=0.21e9,
    max_frequency_hz=2.52e9,
    cores=16384,
    power_coefficient=450 / 2.52e9**3,
    memory_bytes=24 * _GIB,
)
"""The edge server of the paper's case study."""

GENERIC_DEVICE = replace(TABLE_II_DEVICES[4], name="unknown device (as Jetson Orin NX)")
"""Where the planner starts for a device that nobody has described."""

GENERIC_SERVER = replace(TABLE_II_SERVER, name="unknown server (as RTX 4090)")
"""Where the planner starts for a server that nobody has described."""
