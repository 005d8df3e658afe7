"""Base model, adapters, and the teacher; the base and the teacher are trained here once, where others would download."""

import math
from functools import lru_cache

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from flwr_splitkd.data import DataConfig, byte_tokenizer, make_loader, split_documents, text_blocks
from flwr_splitkd.store import cache_root

TOKENIZER = byte_tokenizer()
LORA = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")


def cosine_annealing(current_round, total_round, lrate_max=0.01, lrate_min=0.001):
    """The learning rate of a round."""
    return lrate_min + 0.5 * (lrate_max - lrate_min) * (1 + math.cos(math.pi * current_round / total_round))


def get_model():
    """The base model with new adapters."""
    model = AutoModelForCausalLM.from_pretrained(pretrained("base", hidden_size=48, steps=60))
    torch.manual_seed(0)
    return get_peft_model(model, LORA)


def get_teacher():
    """A larger model that was trained for longer."""
    return AutoModelForCausalLM.from_pretrained(pretrained("teacher", hidden_size=96, steps=150))


@lru_cache
def pretrained(name, hidden_size, steps):
    """Folder of a model that was trained on public text, in the first call on a machine."""
    folder = cache_root() / f"drop-in-llm-{name}"
    if (folder / "config.json").exists():
        return folder
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=False,
        pad_token_id=TOKENIZER.pad_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    documents = split_documents(DataConfig(), num_partitions=1).teacher.documents
    loader = make_loader(text_blocks(documents, TOKENIZER, 64), 16, shuffle=True, max_batches=steps)
    for batch in loader:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    part = folder.with_name(folder.name + ".part")
    model.save_pretrained(part)
    part.rename(folder)
    return folder
