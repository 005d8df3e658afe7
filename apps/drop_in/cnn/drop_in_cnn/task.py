"""Model, data, training and evaluation."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

# Digits of 3 x 5 points, a row in each group of three bits.
GLYPHS = (31599, 11415, 29671, 29647, 23497, 31183, 31215, 29257, 31727, 31695)


class Net(nn.Module):
    """A small convolutional network."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 3)
        self.fc1 = nn.Linear(16 * 2 * 2, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 2 * 2)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class Digits(Dataset):
    """Noisy pictures of digits, 1 x 16 x 16, drawn from a seed; `weights` says how often each digit comes."""

    def __init__(self, count, seed, weights=None):
        random = np.random.default_rng(seed)
        self.labels = random.choice(10, count, p=weights)
        self.images = random.normal(0.0, 0.2, (count, 1, 16, 16)).astype(np.float32)
        for image, label in zip(self.images, self.labels, strict=True):
            bits = [(GLYPHS[label] >> (14 - point)) & 1 for point in range(15)]
            glyph = np.kron(np.array(bits, dtype=np.float32).reshape(5, 3), np.ones((2, 2), dtype=np.float32))
            top, left = random.integers(2, 5), random.integers(4, 7)
            image[0, top : top + 10, left : left + 6] += glyph

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"img": torch.from_numpy(self.images[index]), "label": int(self.labels[index])}


def load_data(partition_id, num_partitions, batch_size):
    """Training and test batches of one device, which sees some digits more often than others."""
    weights = np.random.default_rng(partition_id).dirichlet(np.full(10, 0.5))
    train, test = Digits(1024, 10 * partition_id + 1, weights), Digits(128, 10 * partition_id + 2, weights)
    return DataLoader(train, batch_size=batch_size, shuffle=True), DataLoader(test, batch_size=batch_size)


def load_centralized_dataset():
    """Test batches of all digits."""
    return DataLoader(Digits(512, seed=10_000), batch_size=128)


def train(net, trainloader, epochs, lr, device):
    """Train the model on the training set; return the mean loss."""
    net.to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    running_loss = 0.0
    for _ in range(epochs):
        for batch in trainloader:
            loss = F.cross_entropy(net(batch["img"].to(device)), batch["label"].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


@torch.no_grad()
def test(net, testloader, device):
    """Return loss and accuracy on the test set."""
    net.to(device).eval()
    loss, correct = 0.0, 0
    for batch in testloader:
        outputs = net(batch["img"].to(device))
        loss += F.cross_entropy(outputs, batch["label"].to(device), reduction="sum").item()
        correct += (outputs.argmax(1) == batch["label"].to(device)).sum().item()
    return loss / len(testloader.dataset), correct / len(testloader.dataset)
