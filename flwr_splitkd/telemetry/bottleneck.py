"""Which stage of turns is the slowest, and what helps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Bottleneck", "find_bottleneck"]

_REMEDIES = {
    "device": "a lower cut, or a device that computes faster",
    "edge": "a higher cut, a faster edge, or a cache for the teacher (`teacher_cache_bytes`) if it is most of it",
    "uplink": "a codec (`uplink_codec`), or a cache for the teacher, whose embeddings then travel once",
    "downlink": "a codec (`downlink_codec`)",
    "hand-over": "longer turns (`local_epochs`), or less that changes hands (`peft`, `optimizer_handover`)",
    "latency": "more micro-batches in flight (`num_microbatches`, `pipeline_depth`)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """The stage that was at work for longest.

    Parameters
    ----------
    stage
        Its name.
    busy
        The part of the turns' time in which each stage was at work, by name. Stages overlap where micro-batches are in flight,
        so the parts may add up to more than 1.
    remedy
        What makes this stage shorter.
    """

    stage: str
    busy: Mapping[str, float]
    remedy: str

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {part:.0%}" for name, part in sorted(self.busy.items(), key=lambda item: -item[1]))
        return f"Of the turns' time: {parts}. The bottleneck is the {self.stage}; it shrinks with {self.remedy}."


def find_bottleneck(stages_s: Mapping[str, float], duration_s: float) -> Bottleneck:
    """Name the slowest stage.

    Parameters
    ----------
    stages_s
        Seconds of work in each stage: device, edge, uplink, downlink, hand-over, latency.
    duration_s
        Seconds that all turns took together.

    Raises
    ------
    ValueError
        If the duration is not positive.
    """
    if not duration_s > 0:
        raise ValueError(f"`duration_s` is {duration_s}; expected more than 0 seconds.")
    stage = max(stages_s, key=lambda name: stages_s[name])
    return Bottleneck(
        stage=stage,
        busy={name: seconds / duration_s for name, seconds in stages_s.items()},
        remedy=_REMEDIES[stage],
    )
