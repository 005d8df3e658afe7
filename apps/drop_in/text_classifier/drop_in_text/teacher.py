"""A larger encoder that knows the packages: what a team has before it distills."""

import torch
from torch.utils.data import DataLoader

from drop_in_text.task import load_corpus, load_model, train


def load_teacher():
    """The trained teacher; a team would load its checkpoint here."""
    _, examples = load_corpus()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        teacher = load_model(hidden_size=96, num_layers=2)
        train(teacher, DataLoader(examples[-1000:], batch_size=32, shuffle=True), 6, 2e-3, torch.device("cpu"))
    return teacher.eval()
