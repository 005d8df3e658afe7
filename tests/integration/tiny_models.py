"""Models and data that several processes of a test build alike."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

VOCAB = 96


def llama_student() -> nn.Module:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def llama_lora_student() -> nn.Module:
    torch.manual_seed(5)
    targets = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(r=4, lora_dropout=0.1, target_modules=targets, init_lora_weights=False)
    return get_peft_model(llama_student(), config)  # type: ignore[arg-type]


def llama_teacher() -> nn.Module:
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def bert_student() -> nn.Module:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    return BertForMaskedLM(config)


def bert_teacher() -> nn.Module:
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    return BertForMaskedLM(config)


MODELS = {
    "llama": (llama_student, llama_teacher),
    "llama-lora": (llama_lora_student, llama_teacher),
    "bert": (bert_student, bert_teacher),
}


def batches(device: int, count: int) -> list[dict[str, Tensor]]:
    """Padded batches of one device; every device's text is its own."""
    generator = torch.Generator().manual_seed(100 + device)
    made = []
    for _ in range(count):
        ids = torch.randint(1, VOCAB, (3, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 9:] = 0
        mask[2, 5:] = 0
        ids = ids * mask
        labels = ids.masked_fill(mask == 0, -100)
        labels[0, :3] = -100
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made
