"""The app's task: its questions and their batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flwr.app import Context
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from flwr_splitkd.data import make_loader
from flwr_splitkd.data.questions import (
    EncodingConfig,
    Question,
    QuestionConfig,
    QuestionDataset,
    encode_questions,
    heldout_questions,
    partition_questions,
    split_questions,
)
from flwr_splitkd.data.questions.score import baselines
from flwr_splitkd.errors import DataError
from scct_app.models import load_llm_tokenizer, load_slm_tokenizer

if TYPE_CHECKING:
    from scct_app.config import AppConfig

Loader = DataLoader[dict[str, Tensor]]


def load_partition(
    partition_id: int,
    num_partitions: int,
    *,
    batch_size: int = 8,
    max_batches: int | None = None,
    seed: int = 0,
    config: QuestionConfig | None = None,
    encoding: EncodingConfig | None = None,
    slm_tokenizer: PreTrainedTokenizerBase | None = None,
    llm_tokenizer: PreTrainedTokenizerBase | None = None,
    partitioner: object | None = None,
) -> Loader:
    """Return the batches of one device.

    Parameters
    ----------
    partition_id, num_partitions
        Which partition, of how many.
    batch_size
        Questions per batch.
    max_batches
        Most batches per pass, drawn anew in every pass; None for all.
    seed
        Seed of the order. A caller that builds the loader anew for every round passes another seed each time.
    config
        The questions, by default the built-in ones.
    encoding
        Lengths and padding.
    slm_tokenizer, llm_tokenizer
        By default the built-in ones.
    partitioner
        For Hugging Face data sets: how flwr-datasets divides them.
    """
    config = config or QuestionConfig()
    questions = partition_questions(config, partition_id, num_partitions, partitioner=partitioner)
    dataset = _encoded(questions, encoding, slm_tokenizer, llm_tokenizer)
    return make_loader(dataset, batch_size, shuffle=True, seed=seed, max_batches=max_batches, collate=dataset.collate)


def heldout_loader(
    *,
    batch_size: int = 32,
    max_questions: int = 256,
    config: QuestionConfig | None = None,
    encoding: EncodingConfig | None = None,
    slm_tokenizer: PreTrainedTokenizerBase | None = None,
    llm_tokenizer: PreTrainedTokenizerBase | None = None,
) -> Loader:
    """Return batches of at most ``max_questions`` questions, from all over what nobody trains on.

    Always in the same order; ``loader.dataset.questions`` are the questions in that order, with their answers.
    """
    questions = heldout_questions(config or QuestionConfig())
    dataset = _encoded(questions, encoding, slm_tokenizer, llm_tokenizer).spread(max_questions)
    return make_loader(dataset, batch_size, collate=dataset.collate)


def round_batches(config: AppConfig, partition_id: int, num_partitions: int, server_round: int) -> Loader:
    """Return the batches of one device in one round; every round has another order."""
    return load_partition(
        partition_id,
        num_partitions,
        config=config.questions,
        encoding=config.encoding,
        batch_size=config.batch_size,
        seed=round_seed(config, server_round),
        slm_tokenizer=load_slm_tokenizer(config.slm_tokenizer),
        llm_tokenizer=load_llm_tokenizer(config.llm_tokenizer),
    )


def round_seed(config: AppConfig, server_round: int) -> int:
    """Return the seed of the order in which a device takes its questions in a round."""
    return config.seed * 1_000_003 + server_round


def dataset_of(loader: Loader) -> QuestionDataset:
    """Return what a loader of this module draws from."""
    if not isinstance(loader.dataset, QuestionDataset):
        raise TypeError(f"{type(loader.dataset).__name__} is no QuestionDataset")
    return loader.dataset


def questions_of(loader: Loader) -> tuple[Question, ...]:
    """Return the questions behind a loader of this module, without those that were too long."""
    return dataset_of(loader).questions


def evaluation_batches(config: AppConfig) -> Loader:
    """Return the batches of an evaluation, which are the same on every device and in every round."""
    return heldout_loader(
        config=config.questions,
        encoding=config.encoding,
        batch_size=config.batch_size,
        max_questions=config.heldout_questions,
        slm_tokenizer=load_slm_tokenizer(config.slm_tokenizer),
        llm_tokenizer=load_llm_tokenizer(config.llm_tokenizer),
    )


def partition_of(context: Context) -> tuple[int, int]:
    """Return which partition this device has, and of how many."""
    for key in ("partition-id", "num-partitions"):
        if key not in context.node_config:
            raise DataError(
                f"The node config has the keys {sorted(context.node_config)}; expected `{key}` among them. Start the SuperNode "
                "with --node-config 'partition-id=0 num-partitions=2'."
            )
    return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])


def heldout_baselines(config: AppConfig) -> dict[str, dict[str, float]]:
    """Return the scores of `baselines` on the questions that an evaluation asks; none for a Hugging Face data set."""
    if config.questions.hub_name is not None:
        return {}
    known = [question for part in split_questions(config.questions, 1).devices for question in part]
    return baselines(known, questions_of(evaluation_batches(config)))


def _encoded(
    questions: Sequence[Question],
    encoding: EncodingConfig | None,
    slm_tokenizer: PreTrainedTokenizerBase | None,
    llm_tokenizer: PreTrainedTokenizerBase | None,
) -> QuestionDataset:
    return encode_questions(
        questions,
        slm_tokenizer or load_slm_tokenizer(),
        llm_tokenizer or load_llm_tokenizer(),
        encoding or EncodingConfig(max_positions=256, max_answer_tokens=64),
    )
