"""Model, data, training and evaluation: from which package of the standard library does a text come?"""

import random
from functools import lru_cache

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, BertConfig

from flwr_splitkd.data import stdlib_documents, train_tokenizer

PACKAGES = ("tkinter", "email", "asyncio", "unittest")
TOKENS = 48


@lru_cache
def load_corpus():
    """Tokenizer and labelled texts, in an order of their own."""
    documents = [document for document in stdlib_documents() if document.module in PACKAGES]
    tokenizer = train_tokenizer(documents, 800)
    examples = []
    for document in documents:
        for start in range(0, len(document.text) - 40, 160):
            text = document.text[start : start + 160]
            encoded = tokenizer(text, truncation=True, max_length=TOKENS, padding="max_length", return_tensors="pt")
            item = {name: encoded[name][0] for name in ("input_ids", "attention_mask")}
            examples.append({**item, "labels": torch.tensor(PACKAGES.index(document.module))})
    random.Random(0).shuffle(examples)
    return tokenizer, examples


def load_model(hidden_size=48, num_layers=4):
    """A small encoder with a classifier; a real app would call from_pretrained."""
    tokenizer, _ = load_corpus()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        num_labels=len(PACKAGES),
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForSequenceClassification.from_config(config)


def load_data(partition_id, num_partitions, batch_size):
    """Training and test batches of one device."""
    _, examples = load_corpus()
    own = examples[partition_id::num_partitions][:480]
    split = len(own) * 4 // 5
    return DataLoader(own[:split], batch_size=batch_size, shuffle=True), DataLoader(own[split:], batch_size=batch_size)


def train(model, trainloader, epochs, lr, device):
    """Train the model on the training set; return the mean loss."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    running_loss = 0.0
    for _ in range(epochs):
        for batch in trainloader:
            loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


@torch.no_grad()
def test(model, testloader, device):
    """Return loss and accuracy on the test set."""
    model.to(device).eval()
    loss, correct, count = 0.0, 0, 0
    for batch in testloader:
        outputs = model(**{name: tensor.to(device) for name, tensor in batch.items()})
        loss += outputs.loss.item() * len(batch["labels"])
        correct += (outputs.logits.argmax(-1) == batch["labels"].to(device)).sum().item()
        count += len(batch["labels"])
    return loss / count, correct / count
