"""What a role's part of the models takes in memory and on the disk, as `flwr_splitkd.costs` predicts it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flwr_splitkd.costs import GENERIC_DEVICE, RUNTIME_BYTES, ModelShape, Workload, cut_terms, device_memory
from flwr_splitkd.errors import ConfigError

__all__ = ["Need", "need_of_cloud", "need_of_device", "need_of_edge"]

_COMMITS = 3
"""The commit log keeps two, and writes a third before it drops the oldest."""

_LESS = "a smaller `--batch-size` or `--sequence-length`, bfloat16, or adapters (LoRA) take less."


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a role takes.

    Parameters
    ----------
    what
        In words, for messages.
    cut
        Of the numbers that follow; 0 where nothing is cut.
    memory_bytes
        All of the process.
    model_bytes
        Of these, what is where the model computes: in the GPU's memory, if it is there.
    loading_bytes
        What passes through the machine's memory on its way to a GPU's: models are loaded one after another.
    disk_bytes
        What is kept on the disk.
    by_cut
        `memory_bytes` of every cut ``1 .. L-1``; empty where nothing is cut.
    remedy
        What makes it less.
    """

    what: str
    cut: int
    memory_bytes: float
    model_bytes: float
    loading_bytes: float
    disk_bytes: float
    by_cut: tuple[float, ...]
    remedy: str

    def cuts_within(self, memory_bytes: float) -> str:
        """Cuts that fit into a memory, in words; empty where nothing is cut."""
        if not self.by_cut:
            return ""
        fit = [cut for cut, need in enumerate(self.by_cut, start=1) if need <= memory_bytes]
        if len(fit) == 1:
            return f"cut {fit[0]} fits"
        return f"cuts {fit[0]}..{fit[-1]} fit" if fit else "no cut fits"


def need_of_device(student: ModelShape, teacher: ModelShape | None, workload: Workload, cut: int | None) -> Need:
    """What a device takes: its half of the student, and the teacher's token embedding.

    Parameters
    ----------
    student, teacher
        The models; None without a teacher.
    workload
        What a turn has to do; its `runtime_bytes` are those of the process.
    cut
        1 .. L-1; the smallest when None.

    Raises
    ------
    ConfigError
        If the cut is out of range.
    """
    cut = _checked(student, cut)
    memory = device_memory(student, teacher, workload)
    at = memory.at(cut)
    peak = float(memory.peak[cut - 1])
    return Need(
        what=f"the device's half of {student.name} at cut {cut}{_taught(teacher)}, {_work(workload)}",
        cut=cut,
        memory_bytes=peak,
        model_bytes=peak - at["runtime"],
        loading_bytes=max(at["weights"] + at["embedding"], at["teacher"]),
        disk_bytes=at["weights"] + at["embedding"] + at["teacher"] + at["moments"],
        by_cut=tuple(map(float, memory.peak)),
        remedy=f"A lower cut, {_LESS}",
    )


def need_of_edge(student: ModelShape, teacher: ModelShape | None, workload: Workload, cut: int | None) -> Need:
    """What the edge takes: the whole student with its moments, the teacher, and a step of its own half.

    Parameters
    ----------
    student, teacher, workload, cut
        As for `need_of_device`.

    Raises
    ------
    ConfigError
        If the cut is out of range.
    """
    cut = _checked(student, cut)
    model = cut_terms(student, teacher, workload, GENERIC_DEVICE).server_memory_bytes
    trains = student.num_parameters - (0 if workload.train_embeddings else student.embedding_parameters)
    commit = (
        student.num_parameters + workload.memory_moments * workload.trained_share * trains
    ) * workload.weight_bytes
    return Need(
        what=f"the edge's part of {student.name} at cut {cut}{_taught(teacher)}, {_work(workload)}",
        cut=cut,
        memory_bytes=float(model[cut - 1]) + workload.runtime_bytes,
        model_bytes=float(model[cut - 1]),
        loading_bytes=max(shape.num_parameters for shape in (student, teacher) if shape) * workload.weight_bytes,
        disk_bytes=_COMMITS * commit,
        by_cut=tuple(map(float, np.asarray(model) + workload.runtime_bytes)),
        remedy=f"A smaller teacher, more `--microbatches`, {_LESS}",
    )


def need_of_cloud(llm: ModelShape, weight_bytes: float) -> Need:
    """What the cloud takes at least: the LLM's weights, and the process. Modules, activations and caches come on top.

    Parameters
    ----------
    llm
        The large language model.
    weight_bytes
        Of one weight.
    """
    weights = llm.num_parameters * weight_bytes
    return Need(
        what=f"at least the weights of {llm.name} at {weight_bytes:g} bytes each, and the process",
        cut=0,
        memory_bytes=weights + RUNTIME_BYTES,
        model_bytes=weights,
        loading_bytes=0.0,  # `device_map` may load it piece by piece
        disk_bytes=weights,
        by_cut=(),
        remedy="A smaller LLM, bfloat16, quantisation, or device_map = 'auto' over several GPUs take less in one place.",
    )


def _checked(student: ModelShape, cut: int | None) -> int:
    if student.num_blocks < 2:
        raise ConfigError(f"{student.name} has {student.num_blocks} block; expected at least 2, to cut between.")
    if cut is not None and not 1 <= cut < student.num_blocks:
        raise ConfigError(
            f"`cut` is {cut}; expected 1..{student.num_blocks - 1} for the {student.num_blocks} blocks of {student.name}."
        )
    return 1 if cut is None else cut


def _taught(teacher: ModelShape | None) -> str:
    return f", taught by {teacher.name}" if teacher else ""


def _work(workload: Workload) -> str:
    moments = f" and {workload.moments} moments" if workload.moments else ""
    parts = f" in {workload.num_microbatches} micro-batches" if workload.num_microbatches > 1 else ""
    tokens = f"{workload.batch_size} x {workload.sequence_length} tokens{parts}"
    return f"{tokens}, {workload.weight_bytes:g} bytes a weight{moments}"
