"""A larger network that knows the digits: what a team has before it distills."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader

from drop_in_cnn.task import Digits


class TeacherNet(nn.Module):
    """Wider than `Net`, with normalisation."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Linear(64 * 4 * 4, 10)

    def forward(self, image):
        return self.classifier(self.features(image).flatten(1))


def load_teacher():
    """The trained teacher; a team would load its checkpoint here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = TeacherNet().train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        for batch in DataLoader(Digits(2048, seed=20_000), batch_size=64, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(net(batch["img"]), batch["label"]).backward()
            optimizer.step()
    return net.eval()
