"""Print the tables of docs/how-to/operations.md: what a device needs in memory, and a link in seconds, for well-known models.

Everything comes from `flwr_splitkd.costs`, nothing is measured here; what the device's memory is worth was measured by
``benchmarks/device_memory.py``. ``python scripts/sizing_table.py`` prints Markdown, and with ``--write`` puts it into that page,
between the two comments that name this script.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flwr_splitkd.costs import RUNTIME_BYTES, ModelShape, Workload, cut_terms, device_memory, named_shape
from flwr_splitkd.costs.profiles import GENERIC_DEVICE
from flwr_splitkd.costs.shape import Float

__all__ = ["BEGIN", "END", "PAGE", "main", "page_with", "tables"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "operations.md"
BEGIN = "<!-- made by scripts/sizing_table.py -->"
END = "<!-- end of scripts/sizing_table.py -->"

BATCH_SIZE, SEQUENCE_LENGTH = 4, 512
CUTS = (1, 4, 8)
RATES_MBPS = (50, 200, 1000)
# Memory of the modules, shared by processor and GPU, in the bytes that their names promise.
JETSONS = (("Orin Nano 8 GB", 8e9), ("Orin NX 16 GB", 16e9), ("AGX Orin 64 GB", 64e9), ("Thor 128 GB", 128e9))
# What a turn may take of it. The rest is for Linux, CUDA's libraries and context, and the data loader: chosen, not measured.
USABLE = 0.75
LORA_RANK = 16
_MOMENTS = 2  # AdamW
_ADAPTER_BYTES = 4  # PEFT keeps adapters in float32, whatever the base is in
_CODEC = "int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A student, its teacher, and how many matrices of a block adapters go to.

    Parameters
    ----------
    student, teacher
        Names of the catalog.
    matrices
        Linear layers of one of the student's blocks: 7 in a gated block, 4 in GPT-2, which has queries, keys and values in one.
    """

    student: str
    teacher: str
    matrices: int = 7

    @property
    def name(self) -> str:
        """For the tables."""
        return f"{self.student} < {self.teacher}"


CASES = (
    Case(student="gpt2", teacher="gpt2-medium", matrices=4),
    Case(student="qwen2.5-0.5b", teacher="qwen2.5-7b"),
    Case(student="llama-3.2-1b", teacher="llama-3.1-8b"),
    Case(student="llama-3.2-3b", teacher="llama-3.1-8b"),
    Case(student="qwen2.5-7b", teacher="qwen2.5-7b"),
)
_TYPES = (("float32", 4.0), ("bfloat16", 2.0))


_INTRODUCTION = (
    f"{BATCH_SIZE} x {SEQUENCE_LENGTH} tokens in a step, one micro-batch, AdamW, the input embedding frozen. *LoRA* has rank "
    f"{LORA_RANK} on every matrix of every block, in float32; the adapters' own weights (less than 1 %) are left out."
)
_MEMORY = (
    f"**Memory of a device**: the most that a turn takes, in GB of 1e9 bytes, with {RUNTIME_BYTES / 1e6:.0f} MB for the process "
    "(measured with torch for the processor; with CUDA it is several times as much, and comes out of the rest), and the smallest "
    f"module of which it takes no more than {USABLE:.0%} (GB: {{modules}})."
)
_STEP = (
    "**A step on the link**: it does not depend on the cut. Seconds are those of the bytes alone, up and down one after the "
    "other, without computing, latency and TLS; micro-batches in flight hide part of them."
)
_HANDOVER = (
    '**The hand-over of a turn**: MB in each direction, with AdamW\'s moments (`optimizer-handover="full"`), and the seconds that '
    f"this takes at {' / '.join(map(str, RATES_MBPS))} Mbit/s. A device that had their last turn is sent none of them, and hands "
    "them in."
)


def lora_share(shape: ModelShape, matrices: int, rank: int = LORA_RANK) -> Float:
    """Values of adapters for each weight of a block. Shape ``[L]``.

    Adapters of rank r to a matrix of ``a x b`` have ``r (a + b)`` values. Every matrix of a block has the width d on one side; the
    other sides sum up to half of the block's FLOPs per token over d.
    """
    others = shape.block_flops_per_token / 2 / shape.hidden_size
    return np.asarray(rank * (matrices * shape.hidden_size + others) / shape.block_parameters, dtype=np.float64)


def _workload(width_bytes: float, *, trained_share: float = 1.0) -> Workload:
    return Workload(
        batch_size=BATCH_SIZE,
        sequence_length=SEQUENCE_LENGTH,
        num_batches=1,
        activation_bytes=width_bytes,
        weight_bytes=width_bytes,
        moments=_MOMENTS,
        trained_share=trained_share,
        causal=True,
        runtime_bytes=RUNTIME_BYTES,
    )


def _smallest(num_bytes: float) -> str:
    """The smallest module in which a turn fits."""
    return next((name for name, memory in JETSONS if num_bytes <= USABLE * memory), "none of them")


def _whole(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _cuts(shape: ModelShape) -> list[int]:
    return [cut for cut in CUTS if cut < shape.num_blocks]


def _memory_rows(case: Case) -> Iterable[Sequence[str]]:
    student, teacher = named_shape(case.student), named_shape(case.teacher)
    share = float(lora_share(student, case.matrices)[0])
    for trains in ("all", "LoRA"):
        for dtype, width in _TYPES:
            # Gradients and moments of adapters have float32's bytes, which the cost model counts in those of the weights.
            part = 1.0 if trains == "all" else share * _ADAPTER_BYTES / width
            peak = device_memory(student, teacher, _workload(width, trained_share=part)).peak
            cells = [f"{peak[cut - 1] / 1e9:.1f} GB, {_smallest(peak[cut - 1])}" for cut in _cuts(student)]
            yield (case.name, trains, dtype, *cells)


def _step_rows(case: Case) -> Iterable[Sequence[str]]:
    student, teacher = named_shape(case.student), named_shape(case.teacher)
    for dtype, width, codec in (*((dtype, width, "none") for dtype, width in _TYPES), (_CODEC, 4.0, _CODEC)):
        terms = cut_terms(student, teacher, _workload(width), GENERIC_DEVICE, codecs=(codec,))
        up, down = float(terms.uplink_bytes[0]) / terms.num_steps, float(terms.downlink_bytes[0]) / terms.num_steps
        seconds = [8 * (up + down) / (rate * 1e6) for rate in RATES_MBPS]
        yield (case.name, dtype, f"{up / 1e6:.1f}", f"{down / 1e6:.1f}", *(f"{one:.2f}" for one in seconds))


def _handover_rows(case: Case) -> Iterable[Sequence[str]]:
    student, teacher = named_shape(case.student), named_shape(case.teacher)
    below = np.cumsum(student.block_parameters)[:-1]
    adapters = np.cumsum(student.block_parameters * lora_share(student, case.matrices))[:-1]
    of_all = [(f"all, {dtype}", below * width * (1 + _MOMENTS)) for dtype, width in _TYPES]
    for trains, own_bytes in (*of_all, ("LoRA", adapters * _ADAPTER_BYTES * (1 + _MOMENTS))):
        terms = cut_terms(student, teacher, _workload(4.0), GENERIC_DEVICE, handover_bytes=own_bytes)
        cells = []
        for cut in _cuts(student):
            one_way = float(terms.handover_uplink_bytes[terms.index(cut)])
            times = (_whole(8 * one_way / (rate * 1e6)) for rate in RATES_MBPS)
            cells.append(f"{one_way / 1e6:,.0f} MB: {' / '.join(times)} s")
        yield (case.name, trains, *cells)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join((*row, *[""] * (len(headings) - len(row)))) + " |" for row in rows]
    return "\n".join(lines)


def tables() -> str:
    """Return the Markdown."""
    cuts = [f"cut {cut}" for cut in CUTS]
    rates = [f"{rate} Mbit/s" for rate in RATES_MBPS]
    modules = ", ".join(f"{USABLE * memory / 1e9:g} of {name}" for name, memory in JETSONS)
    memory_words = _MEMORY.format(modules=modules)
    memory = _table(
        ["student < teacher", "trains", "weights", *cuts], (row for case in CASES for row in _memory_rows(case))
    )
    step = _table(
        ["student < teacher", "on the way", "MB up", "MB down", *(f"s at {rate}" for rate in rates)],
        (row for case in CASES for row in _step_rows(case)),
    )
    handover = _table(["student < teacher", "trains", *cuts], (row for case in CASES for row in _handover_rows(case)))
    words = (_INTRODUCTION, memory_words, _STEP, _HANDOVER)
    first, *others = (textwrap.fill(one, 130) for one in words)
    return "\n\n".join((first, *(part for pair in zip(others, (memory, step, handover), strict=True) for part in pair)))


def page_with(page: str, content: str) -> str:
    """Put the tables into the page.

    Raises
    ------
    ValueError
        If the page lacks one of the two comments.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page lacks {BEGIN!r} or {END!r}; expected both, in this order")
    return f"{head}{BEGIN}\n{content}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help=f"put them into {PAGE.name} instead of printing them")
    if parser.parse_args(arguments).write:
        PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), tables()), encoding="utf-8")
    else:
        print(tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
