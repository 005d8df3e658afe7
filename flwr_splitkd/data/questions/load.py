"""From one description of a set of questions to those of a device, of the evaluation, or of everybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flwr_splitkd.data.documents import Document
from flwr_splitkd.data.partition import partition_by_module
from flwr_splitkd.data.questions.question import Question
from flwr_splitkd.data.questions.squad import read_hub_questions, read_question_files
from flwr_splitkd.data.questions.stdlib import stdlib_questions
from flwr_splitkd.data.stdlib import STDLIB_HELDOUT_MODULES, STDLIB_TEACHER_MODULES
from flwr_splitkd.errors import ConfigError, DataError

__all__ = ["QuestionConfig", "QuestionSplit", "heldout_questions", "partition_questions", "split_questions"]

_HUB_PREFIX = "hf:"
_FILE_HELDOUT_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionConfig:
    """Where the questions come from and how they are divided.

    Parameters
    ----------
    source
        ``"stdlib"`` for the built-in questions, ``"hf:<name>"`` for a Hugging Face data set of SQuAD's form, else the
        path of a JSON or JSONL file, of a directory of them, or several paths.
    split_by
        ``"module"`` gives whole modules (in SQuAD: articles) to a device, ``"question"`` deals single questions. By
        default ``"module"``; not for Hugging Face data sets, which a partitioner of flwr-datasets divides.
    heldout
        Share of the text in [0, 1) that is held out, or names of modules. By default a fixed list for the built-in
        questions and 0.1 for files; not for Hugging Face data sets, which have a split for it.
    module_field
        Field or column that says what belongs together.
    hub_subset, hub_split, hub_heldout_split
        Names within a Hugging Face data set: its subset, and what to train and evaluate on.

    Raises
    ------
    ConfigError
        If a field is out of range or does not apply to the source.
    """

    source: str | Path | tuple[str | Path, ...] = "stdlib"
    split_by: Literal["module", "question"] | None = None
    heldout: float | tuple[str, ...] | None = None
    module_field: str = "title"
    hub_subset: str | None = None
    hub_split: str = "train"
    hub_heldout_split: str = "validation"

    def __post_init__(self) -> None:
        if not self.source or self.source == _HUB_PREFIX:
            raise ConfigError(f"`source` is {self.source!r}; expected 'stdlib', 'hf:<name>' or paths. Set it.")
        if self.split_by not in (None, "module", "question"):
            raise ConfigError(f"`split_by` is '{self.split_by}'; expected 'module' or 'question'. Correct it.")
        if self.hub_name is not None:
            for name, value, instead in (
                ("split_by", self.split_by, "pass a `partitioner` of flwr-datasets to `partition_questions`"),
                ("heldout", self.heldout, "set `hub_heldout_split`"),
            ):
                if value is not None:
                    raise ConfigError(f"`{name}` is {value!r}; expected none for source {self.source!r}: {instead}.")

    @property
    def hub_name(self) -> str | None:
        """Name of the Hugging Face data set, if the source is one."""
        if isinstance(self.source, str) and self.source.startswith(_HUB_PREFIX):
            return self.source.removeprefix(_HUB_PREFIX)
        return None


@dataclass(frozen=True, slots=True)
class QuestionSplit:
    """Who got which questions; no module appears twice.

    Parameters
    ----------
    devices
        One group per device, in the order of partition ids.
    heldout
        What the evaluation uses.
    public
        What models may be pretrained on; empty for the user's own questions.
    """

    devices: tuple[tuple[Question, ...], ...]
    heldout: tuple[Question, ...]
    public: tuple[Question, ...]


def split_questions(config: QuestionConfig, num_partitions: int, *, salt: int = 0) -> QuestionSplit:
    """Divide the built-in questions or the user's files among devices, evaluation and the public part.

    Parameters
    ----------
    config
        Any source but a Hugging Face data set.
    num_partitions
        Number of devices, at least 1.
    salt
        As for `stdlib_questions`; the user's files are read as they are.

    Raises
    ------
    DataError
        If the source cannot be read or divided, or is a Hugging Face data set.
    """
    if config.hub_name is not None:
        raise DataError(
            f"source {config.source!r} is divided by flwr-datasets; expected 'stdlib' or paths. "
            "Use `partition_questions` and `heldout_questions`."
        )
    heldout: float | tuple[str, ...] = _FILE_HELDOUT_SHARE
    public: tuple[str, ...] = ()
    if config.source == "stdlib":
        questions = stdlib_questions(salt=salt)
        # Distributions leave modules out (Debian ships tkinter apart), and versions differ.
        present = {question.module for question in questions}
        heldout = tuple(name for name in STDLIB_HELDOUT_MODULES if name in present)
        public = tuple(name for name in STDLIB_TEACHER_MODULES if name in present)
    else:
        paths = config.source if isinstance(config.source, tuple) else (config.source,)
        questions = read_question_files(paths, module_field=config.module_field)
    if config.heldout is not None:
        heldout = config.heldout
        if isinstance(heldout, tuple):
            # Names that the user holds out are no longer public.
            public = tuple(name for name in public if name not in heldout)
    if config.split_by == "question":
        return _split(questions, _numbered(questions), num_partitions, heldout, public)
    return _split(questions, [question.module for question in questions], num_partitions, heldout, public)


def partition_questions(
    config: QuestionConfig, partition_id: int, num_partitions: int, *, partitioner: object | None = None
) -> tuple[Question, ...]:
    """Return the questions of one device.

    Parameters
    ----------
    config
        The questions.
    partition_id
        From 0 to ``num_partitions`` - 1. A device that reads its own file is partition 0 of 1.
    num_partitions
        Number of devices, at least 1.
    partitioner
        For Hugging Face data sets: how flwr-datasets divides the split, by default IID.

    Raises
    ------
    DataError
        If the partition does not exist or has no question, or the data cannot be read or divided.
    """
    if not 0 <= partition_id < num_partitions:
        raise DataError(
            f"`partition_id` is {partition_id}; expected 0..{num_partitions - 1} for `num_partitions` = "
            f"{num_partitions}. Check the node's `partition-id` and `num-partitions`."
        )
    if config.hub_name is None:
        return split_questions(config, num_partitions).devices[partition_id]
    return read_hub_questions(
        config.hub_name,
        split=config.hub_split,
        subset=config.hub_subset,
        module_field=config.module_field,
        partition_id=partition_id,
        num_partitions=num_partitions,
        partitioner=partitioner,
    )


def heldout_questions(config: QuestionConfig) -> tuple[Question, ...]:
    """Return the questions that no device trains on, whatever the number of devices.

    Raises
    ------
    DataError
        If nothing is held out, or the data cannot be read or divided.
    """
    if config.hub_name is not None:
        return read_hub_questions(
            config.hub_name,
            split=config.hub_heldout_split,
            subset=config.hub_subset,
            module_field=config.module_field,
        )
    questions = split_questions(config, 1).heldout
    if not questions:
        raise DataError(f"`heldout` is {config.heldout!r}, so nothing is held out; expected a share above 0. Raise it.")
    return questions


def _split(
    questions: Sequence[Question],
    groups: Sequence[str],
    num_partitions: int,
    heldout: float | tuple[str, ...],
    public: tuple[str, ...],
) -> QuestionSplit:
    """Divide the groups as documents are divided, and deal out the questions accordingly."""
    members: dict[str, list[str]] = {}
    for question, group in zip(questions, groups, strict=True):
        members.setdefault(question.module, []).append(group)

    def of(modules: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for module in modules for name in members.get(module, [module])))

    divided = partition_by_module(
        [Document(module=group, text=q.context + q.question) for q, group in zip(questions, groups, strict=True)],
        num_partitions,
        heldout=heldout if isinstance(heldout, (int, float)) else of(heldout),
        teacher=of(public),
    )

    def taken(part: tuple[Document, ...]) -> tuple[Question, ...]:
        names = {document.module for document in part}
        return tuple(q for q, group in zip(questions, groups, strict=True) if group in names)

    return QuestionSplit(
        devices=tuple(taken(part.documents) for part in divided.devices),
        heldout=taken(divided.heldout.documents),
        public=taken(divided.teacher.documents),
    )


def _numbered(questions: Sequence[Question]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for question in questions:
        seen[question.module] = seen.get(question.module, 0) + 1
        names.append(f"{question.module}#{seen[question.module]}")
    return names
