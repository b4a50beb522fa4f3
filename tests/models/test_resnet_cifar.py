"""The networks: sizes, names, separate ReLUs, shortcuts, and the published weights' logits."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from heatproof.datasets import open_dataset
from heatproof.models import Normalization, load, recorded, resnet_cifar

# Of the ROAR code (ResNet8), of the widely used CIFAR versions (18 to 152), of He et al. (20 to 56); the others are sums.
PARAMETERS = {
    "ResNet8": 1_227_594,
    "ResNet8v2": 1_226_826,
    "ResNet10": 4_903_242,
    "ResNet18": 11_173_962,
    "ResNet34": 21_282_122,
    "ResNet50": 23_520_842,
    "ResNet101": 42_512_970,
    "ResNet152": 58_156_618,
    "ResNet20": 269_722,
    "ResNet32": 464_154,
    "ResNet44": 658_586,
    "ResNet56": 853_018,
    "NarrowResNet8": 14_938,
}
SMALL = ("ResNet8", "ResNet8v2", "ResNet10", "ResNet20", "NarrowResNet8")


def built(name, **options):
    return getattr(resnet_cifar, name)(**options).eval()


@functools.cache
def default(name):
    return built(name)


def test_the_table_has_every_network():
    classes = {
        name
        for name, thing in vars(resnet_cifar).items()
        if isinstance(thing, type) and issubclass(thing, nn.Module) and "ResNet" in name and name != "ResNet"
    }
    assert classes == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_number_of_parameters_is_the_known_one(name):
    assert sum(parameter.numel() for parameter in default(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_relu_is_called_once_and_the_last_of_a_block_is_named_relu(name):
    network = default(name)
    calls = {path: 0 for path, module in network.named_modules() if isinstance(module, nn.ReLU)}
    for path, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, nn.ReLU):
            assert not module.inplace
            module.register_forward_hook(lambda *_, path=path: calls.__setitem__(path, calls[path] + 1))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 32, 32))
    assert set(calls.values()) == {1}
    assert "layer3.0.relu" in calls
    blocks = [module for module in network.modules() if type(module).__name__.endswith(("Block", "Bottleneck"))]
    assert len(blocks) >= 3  # one for each of the three layers
    for block in blocks:
        relus = [child for child, part in block.named_children() if isinstance(part, nn.ReLU)]
        assert relus[-1] == "relu"


@pytest.mark.parametrize("name", SMALL)
def test_classes_and_channels_can_be_chosen_and_images_do_not_mix(name):
    torch.manual_seed(0)
    network = built(name, num_classes=7, in_channels=1)
    images = torch.randn(3, 1, 28, 28)
    logits = network(images)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits, torch.cat([network(images[i : i + 1]) for i in range(3)]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "side"), [("ResNet8", 8), ("ResNet8v2", 8), ("ResNet20", 8), ("NarrowResNet8", 8)])
def test_the_last_stage_leaves_room_for_grad_cam(name, side):
    network = built(name)
    with recorded(network, "layer3.0.relu") as outputs:
        network(torch.zeros(1, 3, 32, 32))
    assert outputs[0].shape[2:] == (side, side)


def test_the_shortcut_of_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides():
    features = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)
    shortcut = resnet_cifar.PaddedShortcut(2, 4, stride=2)(features)[0]
    assert shortcut.shape == (4, 2, 2)
    assert not shortcut[[0, 3]].any()
    torch.testing.assert_close(shortcut[1], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))
    torch.testing.assert_close(shortcut[2], torch.tensor([[16.0, 18.0], [24.0, 26.0]]))


def silenced(block):
    """The block with its convolutions at zero: what is left is the shortcut."""
    for module in block.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            nn.init.zeros_(module.weight)
    return block.eval()


@pytest.mark.parametrize("kind", [resnet_cifar.BasicBlock, resnet_cifar.PaddedBlock, resnet_cifar.PreactivatedBlock])
def test_a_silent_block_passes_on_what_it_gets(kind):
    features = torch.randn(2, 4, 6, 6)
    expected = features if kind is resnet_cifar.PreactivatedBlock else features.relu()
    torch.testing.assert_close(silenced(kind(4, 4, 1))(features), expected)


def test_where_the_shape_changes_the_preactivated_shortcut_starts_after_the_activation():
    block = silenced(resnet_cifar.PreactivatedBlock(2, 2, 2))
    nn.init.dirac_(block.shortcut.weight)
    features = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(block(features), features.relu()[:, :, ::2, ::2], rtol=1e-4, atol=1e-4)


def test_the_same_seed_draws_the_same_weights():
    networks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        networks.append(built("NarrowResNet8").conv1.weight)
    assert torch.equal(networks[0], networks[1])
    assert not torch.equal(networks[0], networks[2])


def test_the_published_resnet20_gives_its_logits_and_its_accuracy(shared_data):
    loaded = load(
        "heatproof.models.resnet_cifar.ResNet20",
        num_classes=10,
        pretrained_weights=shared_data / "weights" / "cifar10_resnet20.pt",
        normalization=Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )
    data = open_dataset("Arrays", shared_data / "cifar10", split_ratio=0.875, seed=0, options={})
    test = data.split("test")
    with torch.inference_mode():
        batches = (test.pixels(range(start, start + 250)) for start in range(0, 2000, 250))
        logits = torch.cat([loaded.module(loaded.normalization(pixels / 255)) for pixels in batches]).numpy()
    expected = np.load(shared_data / "weights" / "expected" / "cifar10_resnet20_test_logits.npz")
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-3)
    assert (logits.argmax(1) == test.labels).mean() == 0.925
