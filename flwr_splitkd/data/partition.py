"""Non-IID partitions: every device gets its own modules, and nobody trains on the held-out ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flwr_splitkd.data.documents import Document
from flwr_splitkd.errors import DataError

__all__ = ["ModuleSplit", "Partition", "partition_by_module"]


@dataclass(frozen=True, slots=True)
class Partition:
    """The documents of one device, of the teacher or of the evaluation.

    Parameters
    ----------
    documents
        In the order of the source.
    """

    documents: tuple[Document, ...]

    @property
    def num_bytes(self) -> int:
        """Length of all texts in UTF-8 bytes."""
        return sum(document.num_bytes for document in self.documents)

    @property
    def modules(self) -> tuple[tuple[str, int], ...]:
        """(module, bytes) of every module in the partition, largest first."""
        return tuple(_sorted_by_size(_module_bytes(self.documents)))


@dataclass(frozen=True, slots=True)
class ModuleSplit:
    """Who got what; no module appears twice.

    Parameters
    ----------
    devices
        One partition per device, in the order of partition ids.
    heldout
        What the evaluation uses.
    teacher
        What the teacher is trained on.
    """

    devices: tuple[Partition, ...]
    heldout: Partition
    teacher: Partition

    def describe(self, max_modules: int = 4) -> str:
        """Return a table of names and bytes, one line per partition.

        Parameters
        ----------
        max_modules
            How many modules a line names before it counts the rest, at least 1.
        """
        named = [(f"device {index}", partition) for index, partition in enumerate(self.devices)]
        named += [("held out", self.heldout), ("teacher", self.teacher)]
        return "\n".join(_line(name, partition, max_modules) for name, partition in named)


def partition_by_module(
    documents: Iterable[Document],
    num_partitions: int,
    *,
    heldout: float | Sequence[str] = 0.1,
    teacher: float | Sequence[str] = (),
) -> ModuleSplit:
    """Give every module to one device, to the teacher or to the evaluation.

    Held-out and teacher modules are chosen first and do not depend on ``num_partitions``. The devices share
    the rest: the largest module goes first, always to the device with the fewest bytes (Graham's
    longest-processing-time rule), so that partitions are balanced and each is dominated by modules that no
    other device has.

    Parameters
    ----------
    documents
        The whole data set.
    num_partitions
        Number of devices, from 1 to the number of modules left for them.
    heldout
        Share of all bytes in [0, 1), or the names of the modules. A share above 0 is at least one module.
    teacher
        Like ``heldout``, for the teacher.

    Raises
    ------
    DataError
        If there are more partitions than modules, a named module does not exist or has two roles, or a share
        is out of range.
    """
    documents = tuple(documents)
    sizes = _module_bytes(documents)
    if not sizes:
        raise DataError("the data set has 0 documents; expected at least 1. Check `source` and its files.")
    total = sum(sizes.values())
    heldout_names = _choose("heldout", heldout, sizes, total)
    rest = Counter({name: size for name, size in sizes.items() if name not in heldout_names})
    if not isinstance(teacher, (int, float)) and (both := heldout_names & set(teacher)):
        raise DataError(
            f"module '{min(both)}' is both held out and the teacher's; expected one role per module. "
            "Remove it from `heldout` or from `teacher`."
        )
    teacher_names = _choose("teacher", teacher, rest, total)
    rest = Counter({name: size for name, size in rest.items() if name not in teacher_names})
    if not 1 <= num_partitions <= len(rest):
        raise DataError(
            f"`num_partitions` is {num_partitions}; expected 1..{len(rest)} for the {len(rest)} modules "
            f"left to the devices ({len(heldout_names)} held out, {len(teacher_names)} for the teacher). "
            "Use fewer devices, add files, or set `split_by` to something smaller than modules."
        )
    owner = _balance(rest, num_partitions)
    return ModuleSplit(
        devices=tuple(
            Partition(tuple(document for document in documents if owner.get(document.module) == index))
            for index in range(num_partitions)
        ),
        heldout=Partition(tuple(document for document in documents if document.module in heldout_names)),
        teacher=Partition(tuple(document for document in documents if document.module in teacher_names)),
    )


def _choose(role: str, wanted: float | Sequence[str], sizes: Counter[str], total: int) -> set[str]:
    if isinstance(wanted, (int, float)):
        return _choose_share(role, wanted, sizes, total)
    if isinstance(wanted, str):
        wanted = (wanted,)
    for name in wanted:
        if name not in sizes:
            raise DataError(
                f"`{role}` names module '{name}'; expected one of {_shortened(sorted(sizes))}. "
                f"Correct the name, or give a share of the bytes in [0, 1)."
            )
    return set(wanted)


def _choose_share(role: str, share: float, sizes: Counter[str], total: int) -> set[str]:
    """Take modules in an order that their size does not influence, as long as they fit into the share."""
    if not 0 <= share < 1:
        raise DataError(f"`{role}` is {share}; expected a share of the bytes in [0, 1), or names of modules.")
    if share == 0 or not sizes:
        return set()
    budget = share * total
    chosen: set[str] = set()
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()):
        if sizes[name] <= budget:
            chosen.add(name)
            budget -= sizes[name]
    return chosen or {min(sizes, key=lambda name: (sizes[name], name))}


def _balance(sizes: Counter[str], num_partitions: int) -> dict[str, int]:
    loads = [0] * num_partitions
    owner: dict[str, int] = {}
    for name, size in _sorted_by_size(sizes):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += size
    return owner


def _module_bytes(documents: Iterable[Document]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for document in documents:
        sizes[document.module] += document.num_bytes
    return sizes


def _sorted_by_size(sizes: Counter[str]) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: (-item[1], item[0]))


def _line(name: str, partition: Partition, max_modules: int) -> str:
    modules = partition.modules
    shown = ", ".join(f"{module} {size / 1000:.0f} kB" for module, size in modules[:max_modules])
    more = f" and {len(modules) - max_modules} more" if len(modules) > max_modules else ""
    return f"{name:<10} {partition.num_bytes / 1000:>7.0f} kB  {shown}{more}".rstrip()


def _shortened(names: Sequence[str], limit: int = 8) -> str:
    listed = ", ".join(f"'{name}'" for name in names[:limit])
    return f"{listed} and {len(names) - limit} more" if len(names) > limit else listed
