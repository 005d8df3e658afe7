"""The app's task: its questions, their batches and the score of answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    copied_questions,
    encode_questions,
    heldout_questions,
    majority_answers,
    neighbour_answers,
    partition_questions,
    split_questions,
)
from flwr_splitkd.errors import ConfigError, DataError
from flwr_splitkd.tiers.device.batches import Batch
from flwr_splitkd.tiers.device.chain import Score
from scct_app.models import load_llm_tokenizer, load_slm_tokenizer

if TYPE_CHECKING:
    from scct_app.config import AppConfig

Loader = DataLoader[dict[str, Tensor]]
_Asked = tuple[tuple[int, ...], tuple[int, ...]]


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

    Always in the same order; ``loader.dataset.questions`` are the questions in that order, with their answers for `score`.
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


def score(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """Return ``f1`` and ``exact_match`` as SQuAD defines them, from 0 to 100: of several right answers the nearest counts.

    Parameters
    ----------
    predictions
        Answers that were given.
    references
        The right ones, in the same order; a text, or all texts that are right.

    Raises
    ------
    DataError
        If there are none, or not as many of the ones as of the others.
    ConfigError
        If torchmetrics is not installed.
    """
    if len(predictions) != len(references) or not references:
        raise DataError(
            f"there are {len(predictions)} predictions for {len(references)} references; expected one for each of at "
            "least 1. Pass both in the order of the loader."
        )
    try:
        from torchmetrics.functional.text import squad
    except ImportError as error:
        raise ConfigError(
            "the score needs torchmetrics, which is not installed. Run `pip install 'flwr_splitkd[metrics]'`."
        ) from error
    given = [{"id": str(number), "prediction_text": text} for number, text in enumerate(predictions)]
    wanted = [
        {"id": str(number), "answers": {"text": texts, "answer_start": [0] * len(texts)}}
        for number, texts in enumerate([one] if isinstance(one, str) else list(one) for one in references)
    ]
    return {name: float(value) for name, value in squad(given, wanted).items()}


def baselines(known: Sequence[Question], asked: Sequence[Question]) -> dict[str, dict[str, float]]:
    """Return the score of each way to answer without a model, by name.

    Parameters
    ----------
    known
        What the devices train on.
    asked
        What is evaluated.
    """
    answers = {
        "majority answer": majority_answers(known, asked),
        "majority answer per kind": majority_answers(known, asked, by_kind=True),
        "copy the question": copied_questions(asked),
        "word beside the rarest word of the question": neighbour_answers(asked),
    }
    references = [question.answers for question in asked]
    return {name: score(given, references) for name, given in answers.items()}


def heldout_baselines(config: AppConfig) -> dict[str, dict[str, float]]:
    """Return the scores of `baselines` on the questions that an evaluation asks; none for a Hugging Face data set."""
    if config.questions.hub_name is not None:
        return {}
    known = [question for part in split_questions(config.questions, 1).devices for question in part]
    return baselines(known, questions_of(evaluation_batches(config)))


def scorer(tokenizer: PreTrainedTokenizerBase, loader: Loader) -> Score:
    """Return what rates a batch's generated answers on the device, which alone knows the right ones.

    Parameters
    ----------
    tokenizer
        The language model's.
    loader
        Where the batches come from: its questions know all their right answers, a batch only the first.
    """
    data = dataset_of(loader)
    right: dict[_Asked, tuple[str, ...]] = {}
    for row, question in zip((data[number] for number in range(len(data))), data.questions, strict=True):
        asked = tuple(row["input_ids"]), tuple(row["labels"])
        right[asked] = right.get(asked, ()) + question.answers

    def rate(answers: list[list[int]], batch: Batch) -> dict[str, float]:
        said = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return score([text.strip() for text in said], [right[asked] for asked in _asked(batch)])

    return rate


def _asked(batch: Batch) -> Iterator[_Asked]:
    """Yield each question of a batch as its tokens, without padding."""
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        yield tuple(ids[mask > 0].tolist()), tuple(labels[labels >= 0].tolist())


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
