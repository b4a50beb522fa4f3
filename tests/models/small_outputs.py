"""Small networks that put their outputs in the ways that people do."""

from collections import namedtuple
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A convolution, the mean over places, one linear layer: logits (N, K)."""

    def __init__(self, num_classes: int = 4, in_channels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 6, 3, stride=2)
        self.norm = nn.Identity()
        self.fc = nn.Linear(6, num_classes)

    def logits(self, images: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(images).relu().mean(dim=(2, 3))))

    def forward(self, images: Tensor):
        return self.logits(images)


class One(Net):
    def __init__(self, num_classes: int = 1, in_channels: int = 3):
        super().__init__(1, in_channels)


class Three(Net):
    def __init__(self, num_classes: int = 3, in_channels: int = 3):
        super().__init__(3, in_channels)


class Nine(Net):
    def __init__(self, num_classes: int = 9, in_channels: int = 3):
        super().__init__(9, in_channels)


class Half(Net):
    def __init__(self, num_classes: int = 4, in_channels: int = 3):
        super().__init__(num_classes, in_channels)
        self.half()


class Soft(Net):
    def forward(self, images):
        return self.logits(images).softmax(dim=1)


class Sigmoids(Net):
    def forward(self, images):
        return self.logits(images).sigmoid()[:, :, None, None]


class Normed(Net):
    """Its batch norm sees one value of each channel for an image."""

    def __init__(self, num_classes: int = 4, in_channels: int = 3):
        super().__init__(num_classes, in_channels)
        self.norm = nn.BatchNorm1d(6)


Record = namedtuple("Record", "logits aux")


@dataclass
class Answer:
    hidden: Tensor
    logits: Tensor


class Distilled(Net):
    """As DeiT: two heads in training, and their mean in evaluation."""

    def __init__(self, num_classes: int = 4, in_channels: int = 3):
        super().__init__(num_classes, in_channels)
        self.second = nn.Linear(6, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        features = self.dropout(self.conv(images).relu().mean(dim=(2, 3)))
        first, second = self.fc(features), self.second(features)
        return (first, second) if self.training else (first + second) / 2


class WithAuxiliary(Distilled):
    """As GoogLeNet without names: several heads in training, the first in evaluation."""

    def forward(self, images):
        features = self.conv(images).relu().mean(dim=(2, 3))
        return (self.fc(features), self.second(features)) if self.training else self.fc(features)


class SecondInEvaluation(Distilled):
    def forward(self, images):
        features = self.conv(images).relu().mean(dim=(2, 3))
        return (self.fc(features), self.second(features)) if self.training else self.second(features)


def returning(make):
    """A network whose logits go through a function before they are returned."""

    class Returning(Net):
        def forward(self, images):
            return make(self.logits(images))

    return Returning()


FORMS = {
    "a dict": lambda y: {"hidden": y * 2, "logits": y},
    "a dict of one tensor": lambda y: {"out": y},
    "a dict with a loss": lambda y: {"loss": y.sum(), "out": y},
    "a dataclass": lambda y: Answer(y * 2, y),
    "a namedtuple": lambda y: Record(y, y * 2),
    "a tuple of one": lambda y: (y,),
    "a tuple with features": lambda y: (torch.cat((y, y), dim=1), y),
    "a list": lambda y: [y, None],
    "(N, K, 1, 1)": lambda y: y[:, :, None, None],
    "squeezed": lambda y: y.squeeze(),
}
