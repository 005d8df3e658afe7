"""Load models whole or in part, and make them fit to be cut (torch, transformers, peft).

==================  ======================================================================================
``pretrained``      a model by name or path: whole, as a skeleton, or only some of its tensors
``skeleton``        structure without memory, and filling it with received tensors
``adapters``        PEFT adapters on a student
``serial_adapter``  serial adapters on an LLM, one set per task
``prefix``          an LLM that continues embeddings
``tied``            tied embeddings: refuse, untie or freeze
``head``            the output projection outside the forward pass
``embedding``       the token embedding as data
``save``            a distilled student on the disk
``shape``           parameters and FLOPs of each part
``fingerprint``     whether two sides hold the same model
==================  ======================================================================================
"""

from __future__ import annotations

from flwr_splitkd.models.adapters import (
    add_adapters,
    exchanged_state,
    inner_model,
    load_exchanged_state,
    peft_from_json,
    peft_to_json,
)
from flwr_splitkd.models.embedding import token_embedding
from flwr_splitkd.models.fingerprint import Fingerprint, fingerprint
from flwr_splitkd.models.head import HeadTap, find_head
from flwr_splitkd.models.prefix import IGNORED, PrefixedLLM
from flwr_splitkd.models.pretrained import PretrainedModel
from flwr_splitkd.models.save import save_student
from flwr_splitkd.models.serial_adapter import SerialAdapterConfig, SerialAdapters
from flwr_splitkd.models.shape import measured_shape
from flwr_splitkd.models.skeleton import build_skeleton, materialize
from flwr_splitkd.models.tied import TiedEmbeddings, embeddings_are_tied, set_tied_embeddings

__all__ = [
    "IGNORED",
    "Fingerprint",
    "HeadTap",
    "PrefixedLLM",
    "PretrainedModel",
    "SerialAdapterConfig",
    "SerialAdapters",
    "TiedEmbeddings",
    "add_adapters",
    "build_skeleton",
    "embeddings_are_tied",
    "exchanged_state",
    "find_head",
    "fingerprint",
    "inner_model",
    "load_exchanged_state",
    "materialize",
    "measured_shape",
    "peft_from_json",
    "peft_to_json",
    "save_student",
    "set_tied_embeddings",
    "token_embedding",
]
