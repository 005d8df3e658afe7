"""Flower records: tickets and models there and back."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from transformers import LlamaConfig, LlamaForCausalLM

from flwr_splitkd.errors import ConfigError, ProtocolError
from flwr_splitkd.models import embeddings_are_tied, set_tied_embeddings
from flwr_splitkd.records import TurnTicket, arrays_from_state, load_arrays, state_from_arrays

TICKET = TurnTicket(
    session_id="s1",
    token=b"\x00secret\xff",
    address="edge:1",
    root_certificate=b"",
    server_round=3,
    tied_embeddings="untie",
    blocks=("0", "2"),
)


@pytest.mark.parametrize("blocks", [(), ("features.0",), ("0", "2")])
def test_a_ticket_there_and_back(blocks: tuple[str, ...]) -> None:
    ticket = TurnTicket(
        session_id="s1",
        token=b"\x00\xff",
        address="edge:1",
        root_certificate=b"PEM",
        server_round=3,
        tied_embeddings="refuse",
        blocks=blocks,
    )
    content = RecordDict({"config": ConfigRecord({"lr": 0.1})})
    ticket.into(content)
    assert TurnTicket.from_content(content) == ticket
    assert dict(content.config_records["config"]) == {"lr": 0.1}


def test_a_token_is_never_a_string_that_flower_would_log() -> None:
    content = RecordDict()
    TICKET.into(content)
    (record,) = content.config_records.values()
    assert isinstance(record["token"], bytes)
    assert "secret" not in repr(TICKET)


@pytest.mark.parametrize("peft", ["", '{"peft_type": "LORA"}'])
def test_flower_can_count_the_bytes_of_a_ticket(peft: str) -> None:
    content = RecordDict()
    replace(TICKET, blocks=(), peft=peft).into(content)
    assert sum(record.count_bytes() for record in content.values()) > 0
    assert TurnTicket.from_content(content) == replace(TICKET, blocks=(), peft=peft)


def test_a_message_of_another_strategy() -> None:
    content = RecordDict({"config": ConfigRecord({"lr": 0.1})})
    with pytest.raises(ProtocolError, match=re.escape("has the config records ['config']; expected 'splitkd'")):
        TurnTicket.from_content(content)


def test_a_model_there_and_back() -> None:
    state = {
        "w": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "bf16": torch.randn(5).bfloat16(),
        "double": torch.randn(2).double(),
        "scalar": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "strided": torch.arange(6.0).view(2, 3).T,
    }
    back = state_from_arrays(arrays_from_state(state), state)
    assert list(back) == list(state)
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


def test_arrays_do_not_share_memory_with_the_model() -> None:
    state = {"w": torch.zeros(3)}
    arrays = arrays_from_state(state)
    state["w"] += 1
    back = state_from_arrays(arrays, state)
    back["w"] += 5
    assert arrays["w"].numpy().tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["w"], "has 1 arrays; expected the 2 of the student. The first that differs is 'b'"),
        (["w", "b", "z"], "has 3 arrays; expected the 2 of the student. The first that differs is 'z'"),
    ],
)
def test_arrays_of_another_model(names: list[str], message: str) -> None:
    arrays = ArrayRecord({name: Array(np.zeros(3, np.float32)) for name in names})
    with pytest.raises(ConfigError, match=re.escape(message)):
        state_from_arrays(arrays, {"w": torch.zeros(3), "b": torch.zeros(3)})


def test_arrays_of_another_shape() -> None:
    arrays = ArrayRecord({"w": Array(np.zeros((2, 3), np.float32))})
    with pytest.raises(ConfigError, match=re.escape("has 'w' with shape (2, 3); expected (3, 2)")):
        state_from_arrays(arrays, {"w": torch.zeros(3, 2)})


def test_two_matrices_do_not_go_into_one_tied_one() -> None:
    def tied() -> LlamaForCausalLM:
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=20,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                tie_word_embeddings=True,
            )
        )

    trained = tied()
    set_tied_embeddings(trained, "untie")
    with torch.no_grad():
        trained.lm_head.weight.add_(1.0)
    arrays = arrays_from_state(trained.state_dict())
    loaded = load_arrays(tied(), arrays)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    still_tied = load_arrays(tied(), arrays_from_state(tied().state_dict()))
    assert embeddings_are_tied(still_tied)
