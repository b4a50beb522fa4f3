"""Networks whose right maps are known, or that are built the ways that methods stumble over."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ColourNet(nn.Module):
    """Logit k is the mean of colour channel k, so the right map for class k is known: its colour."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, kernel_size=1, bias=False)
        nn.init.dirac_(self.features.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).mean(dim=(2, 3))


def colour_patches() -> tuple[Tensor, Tensor]:
    """Three times the same image with one patch for each colour (3, 3, 8, 8), and the patches (3, 8, 8)."""
    regions = torch.zeros(3, 8, 8, dtype=torch.bool)
    regions[0, :4, :4] = regions[1, :4, 4:] = regions[2, 4:, 4:] = True
    return regions.float().expand(3, 3, 8, 8), regions


class TinyCnn(nn.Sequential):
    """The classifier behind the golden vectors, under the names that they use."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        for number, (inputs, outputs) in enumerate(((3, 8), (8, 16), (16, 16)), start=1):
            self.add_module(f"conv{number}", nn.Conv2d(inputs, outputs, 3, padding=1))
            self.add_module(f"relu{number}", nn.ReLU(inplace))
            if number < 3:
                self.add_module(f"pool{number}", nn.MaxPool2d(2))
        self.add_module("gap", nn.AdaptiveAvgPool2d(1))
        self.add_module("flat", nn.Flatten())
        self.add_module("fc", nn.Linear(16, 5))


class FunctionalTinyCnn(TinyCnn):
    """The same with functions in place of modules: of every form that torch has for a ReLU."""

    def forward(self, images: Tensor) -> Tensor:
        features = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        features = functional.max_pool2d(self.conv2(features).relu_(), 2)
        return self.fc(torch.relu(self.conv3(features)).mean(dim=(2, 3)))


class SharedTinyCnn(TinyCnn):
    """The same with one in-place ReLU that is called three times, as in torchvision's residual blocks."""

    def __init__(self) -> None:
        super().__init__(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        relu = self.relu1
        features = self.pool2(relu(self.conv2(self.pool1(relu(self.conv1(images))))))
        return self.fc(self.flat(self.gap(relu(self.conv3(features)))))


class SmallResNet(nn.Module):
    """Batch norms, a residual sum in place, one shared in-place ReLU, dropout, a max-pool whose windows overlap."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.last = nn.Identity()
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(6, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.pool(self.relu(self.bn1(self.conv1(images))))
        branch = self.bn2(self.conv2(features))
        branch += features
        features = self.last(self.relu(branch))
        return self.fc(self.dropout(features.mean(dim=(2, 3))))


def small_resnet(dtype: torch.dtype = torch.float32) -> SmallResNet:
    """A `SmallResNet` in eval mode whose batch norms do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = SmallResNet()
        for batch_norm in (model.bn1, model.bn2):
            nn.init.normal_(batch_norm.running_mean, 0.0, 0.3)
            nn.init.uniform_(batch_norm.running_var, 0.5, 2.0)
            nn.init.normal_(batch_norm.weight, 1.0, 0.4)
            nn.init.normal_(batch_norm.bias, 0.0, 0.3)
    return model.eval().to(dtype)


def linear_model(weights: Tensor, bias: float = 0.0) -> nn.Module:
    """One logit: the sum of weights (C, H, W) times image, plus bias."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(weights.numel(), 1))
    with torch.no_grad():
        model[1].weight.copy_(weights.reshape(1, -1))
        model[1].bias.fill_(bias)
    return model.eval()
