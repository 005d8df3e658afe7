"""The one place that names Flower record and metric keys, and that turns models into records and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor, nn

from flwr_splitkd.errors import ConfigError, ProtocolError
from flwr_splitkd.models import (
    embeddings_are_tied,
    exchanged_state,
    inner_model,
    load_exchanged_state,
    set_tied_embeddings,
)
from flwr_splitkd.wire.handshake import clean_name

__all__ = [
    "ACCURACY",
    "CONFIG",
    "CROSS_ENTROPY",
    "KL_DIVERGENCE",
    "LOSS",
    "METRICS",
    "NUM_EXAMPLES",
    "PERPLEXITY",
    "REFERENCE_LOSS",
    "SERVER_ROUND",
    "Enrolment",
    "TurnTicket",
    "arrays_from_model",
    "arrays_from_state",
    "load_arrays",
    "state_from_arrays",
]

# Flower's own conventions
ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
NUM_EXAMPLES = "num-examples"
SERVER_ROUND = "server-round"

# Metrics of a turn, before "train-" or "eval-"
LOSS = "loss"
CROSS_ENTROPY = "cross-entropy"
KL_DIVERGENCE = "kl-divergence"
PERPLEXITY = "perplexity"
REFERENCE_LOSS = "reference-loss"
ACCURACY = "accuracy"

_TICKET = "splitkd"
_ENROL = "splitkd-enrol"


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """Who a node is, for policies that must know before its first turn; travels in the reply to a query.

    Parameters
    ----------
    name
        As in `DeviceView`.
    num_examples, num_batches
        Of the device's data set; 0 if it has not been loaded.
    profile
        JSON of a device profile, as `flwr-splitkd profile` writes it; empty for none.
    """

    name: str
    num_examples: int = 0
    num_batches: int = 0
    profile: str = ""

    @staticmethod
    def ask() -> RecordDict:
        """Make the content of the query."""
        return RecordDict({_ENROL: ConfigRecord({"asks-for": "name"})})

    @staticmethod
    def is_asked_in(content: RecordDict) -> bool:
        """Whether a message's content is such a query."""
        return _ENROL in content.config_records

    def to_content(self) -> RecordDict:
        """Make the content of the reply."""
        record = ConfigRecord({"name": self.name, "num-examples": self.num_examples, "num-batches": self.num_batches})
        if self.profile:  # what is empty stays out, as in a ticket
            record["profile"] = self.profile
        return RecordDict({_ENROL: record})

    @classmethod
    def from_content(cls, content: RecordDict) -> Enrolment:
        """Read a reply.

        Raises
        ------
        ProtocolError
            If it is none.
        """
        record = content.config_records.get(_ENROL)
        try:
            if record is None:
                raise KeyError(_ENROL)
            sizes = [int(record[key]) for key in ("num-examples", "num-batches")]  # type: ignore[arg-type]
            if not all(0 <= size < 1 << 53 for size in sizes):
                raise ValueError(f"sizes of at least 0, not {sizes}")
            return cls(
                # As a stream's first message has it: both are from outside, and must be the same.
                name=clean_name(str(record["name"])),
                num_examples=sizes[0],
                num_batches=sizes[1],
                profile=str(record.get("profile", "")),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ProtocolError(
                f"The reply to an enrolment has the records {sorted(content)}; expected {error}. Answer the query with "
                "`flwr_splitkd.clients.enrol` in the ClientApp."
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTicket:
    """What a device needs to come to its turn; travels in the Flower message.

    Parameters
    ----------
    session_id, token
        Open one stream, once. The token is bytes because Flower logs strings.
    address
        ``host:port`` of the edge's data plane.
    root_certificate
        PEM of the authority that signed the edge's certificate; empty for plaintext.
    server_round
        From 1.
    tied_embeddings
        The edge's choice for a student with tied embeddings.
    blocks
        Dotted paths of the student's blocks, when the edge was told them.
    peft
        The student's adapters, as `flwr_splitkd.models.peft_to_json` writes them; empty for none, or when the student
        brings its own.
    run
        Name of the run, the same after it was resumed: a device of SCCT keeps its encoder under it.
    """

    session_id: str
    token: bytes = field(repr=False)
    address: str
    root_certificate: bytes = field(repr=False)
    server_round: int
    tied_embeddings: str
    blocks: tuple[str, ...] = ()
    peft: str = ""
    run: str = ""

    def into(self, content: RecordDict) -> None:
        """Add the ticket to a message's content."""
        record = ConfigRecord(
            {
                "session-id": self.session_id,
                "token": self.token,
                "address": self.address,
                SERVER_ROUND: self.server_round,
                "tied-embeddings": self.tied_embeddings,
            }
        )
        # What is empty stays out: Flower cannot count its bytes, which `message_size_mod` does on the device.
        if self.root_certificate:
            record["root-certificate"] = self.root_certificate
        if self.blocks:
            record["blocks"] = list(self.blocks)
        if self.peft:
            record["peft"] = self.peft
        if self.run:
            record["run"] = self.run
        content[_TICKET] = record

    @staticmethod
    def is_in(content: RecordDict) -> bool:
        """Whether a message's content has a ticket, that is, comes from a split strategy."""
        return _TICKET in content.config_records

    @classmethod
    def from_content(cls, content: RecordDict) -> TurnTicket:
        """Read the ticket from a message's content.

        Raises
        ------
        ProtocolError
            If the message was not made by a split strategy, or by one of another version.
        """
        record = content.config_records.get(_TICKET)
        if record is None:
            raise ProtocolError(
                f"The message has the config records {sorted(content.config_records)}; expected {_TICKET!r} among them. "
                "SplitKDClient and SCCTClient answer messages of the strategies SplitKD and SCCT only: use one in server_app.py."
            )
        try:
            blocks = record.get("blocks")
            return cls(
                session_id=str(record["session-id"]),
                token=bytes(record["token"]),  # type: ignore[arg-type]
                address=str(record["address"]),
                root_certificate=bytes(record.get("root-certificate", b"")),  # type: ignore[arg-type]
                server_round=int(record[SERVER_ROUND]),  # type: ignore[arg-type]
                tied_embeddings=str(record["tied-embeddings"]),
                blocks=tuple(str(block) for block in blocks) if isinstance(blocks, Sequence) else (),
                peft=str(record.get("peft", "")),
                run=str(record.get("run", "")),
            )
        except KeyError as error:
            raise ProtocolError(
                f"The ticket has the keys {sorted(record)}; expected {error} among them. "
                "Install the same flwr_splitkd on the device and on the edge."
            ) from None


def arrays_from_state(state: Mapping[str, Tensor]) -> ArrayRecord:
    """A state dict as Flower arrays. NumPy has no bfloat16, so such tensors are widened to float32, without loss."""
    arrays = ArrayRecord()
    for name, tensor in state.items():
        own = tensor.detach().cpu()
        arrays[name] = Array(np.array((own.float() if own.dtype == torch.bfloat16 else own).numpy()))
    return arrays


def state_from_arrays(arrays: ArrayRecord, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Flower arrays as a state dict with the names, shapes and dtypes of `like`.

    Raises
    ------
    ConfigError
        If names or shapes differ.
    """
    if set(arrays) != set(like):
        odd = sorted(set(arrays) ^ set(like))
        raise ConfigError(
            f"`initial_arrays` has {len(arrays)} arrays; expected the {len(like)} of the student. The first that "
            f"differs is {odd[0]!r}. Pass ArrayRecord(student.state_dict()) of the same student."
        )
    state: dict[str, Tensor] = {}
    for name, reference in like.items():
        tensor = torch.from_numpy(np.array(arrays[name].numpy()))
        if tensor.shape != reference.shape:
            raise ConfigError(
                f"`initial_arrays` has {name!r} with shape {tuple(tensor.shape)}; expected {tuple(reference.shape)}."
            )
        state[name] = tensor.to(reference.dtype)
    return state


def arrays_from_model(model: nn.Module) -> ArrayRecord:
    """A student's weights as Flower arrays; of a `PeftModel`, those of its adapters under PEFT's names."""
    return arrays_from_state(exchanged_state(model))


def load_arrays(model: nn.Module, arrays: ArrayRecord) -> nn.Module:
    """Load a run's arrays into a model of the student's kind, and return it.

    A `PeftModel` takes its adapters' weights, under PEFT's names.

    A model whose input and output embeddings are one matrix is untied first if the arrays hold two: loaded as it is, it
    would keep the last one for both, and `load_state_dict` would not say so.

    Raises
    ------
    ConfigError
        If names or shapes differ.
    """
    state = state_from_arrays(arrays, exchanged_state(model))
    load_exchanged_state(model, state)
    if inner_model(model) is not model:
        return model
    if embeddings_are_tied(model) and any(not torch.equal(model.state_dict()[name], state[name]) for name in state):
        set_tied_embeddings(model, "untie")
        model.load_state_dict(state)
    return model
