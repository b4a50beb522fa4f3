"""Hooks and modes: what is looked at, and that nothing is left behind."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from heatproof.errors import InputError, ModelError
from heatproof.models.hooks import frozen_eval, module_named, recorded
from heatproof.models.normalization import Normalization


class SharedInPlaceReLU(nn.Module):
    """One in-place ReLU that is called twice, as in torchvision's residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.doubling = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.doubling.weight, -2.0)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(self.doubling(self.relu(self.doubling(images)))).mean(dim=(2, 3))


IMAGES = torch.tensor([[[[-1.0, 3.0]]]])


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_an_in_place_layer_behind_does_not_change_what_was_recorded():
    model = SharedInPlaceReLU()
    with recorded(model, "doubling") as outputs:
        model(IMAGES)
    torch.testing.assert_close(outputs[0], torch.tensor([[[[-4.0, 0.0]]]]))


def test_of_a_layer_that_is_called_twice_the_last_output_is_kept():
    model = SharedInPlaceReLU()
    with recorded(model, "relu") as outputs:
        model(IMAGES)
    torch.testing.assert_close(outputs, [torch.zeros(1, 1, 1, 2)])


def test_gradients_reach_the_recorded_output():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True), nn.Flatten())
    with recorded(model, "0") as outputs:
        scores = model(IMAGES.clone().requires_grad_())
    (gradient,) = torch.autograd.grad(scores.sum(), outputs[0])
    torch.testing.assert_close(gradient, (outputs[0] > 0).float())


def test_recording_changes_no_output_and_leaves_no_hook():
    model = SharedInPlaceReLU()
    expected = model(IMAGES)
    with recorded(model, "doubling"):
        torch.testing.assert_close(model(IMAGES), expected, rtol=0, atol=0)
    assert hooks_of(model) == 0


def test_the_hook_is_removed_after_an_error():
    model = SharedInPlaceReLU()
    with pytest.raises(RuntimeError), recorded(model, "relu"):
        model(torch.zeros(1, 7, 2, 2))
    assert hooks_of(model) == 0


def test_a_misspelt_layer_names_the_nearest():
    with pytest.raises(
        ModelError, match="layer 'doublin': SharedInPlaceReLU has no such layer; did you mean 'doubling'"
    ):
        module_named(SharedInPlaceReLU(), "doublin")


def test_a_layer_that_gives_no_tensor_is_named():
    model = nn.Sequential(nn.LSTM(2, 2))
    with pytest.raises(ModelError, match="layer '0': gives a tuple"), recorded(model, "0"):
        model(torch.zeros(1, 2))


Named = namedtuple("Named", "hidden rest")


@dataclass
class Outputs:
    pooled: Tensor
    last_hidden_state: Tensor


CONTAINERS = {
    "tuple": lambda x: (x, None),
    "named tuple": lambda x: Named(x, 1),
    "list": lambda x: [x, x + 1],
    "dict": lambda x: {"pooled": x.mean(), "last_hidden_state": x},
    "dataclass": lambda x: Outputs(x.mean(), x),
}


class Several(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.pack = pack

    def forward(self, x):
        return self.pack(x)


@pytest.mark.parametrize("pack", CONTAINERS.values(), ids=CONTAINERS)
def test_of_several_outputs_the_activations_are_recorded_with_their_gradient(pack):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Several(pack)

        def forward(self, x):
            packed = self.layer(2 * x)
            kinds.append(type(packed))
            if isinstance(packed, list | tuple):
                return (packed[0].relu_() ** 2).sum()
            values = packed["last_hidden_state"] if isinstance(packed, dict) else packed.last_hidden_state
            return (values.relu_() ** 2).sum()

    kinds, net, x = [], Net(), torch.tensor([[[-1.0, 3.0]]])
    net(x)
    with frozen_eval(net), recorded(net, "layer") as outputs:
        score = net(x)
    assert kinds[0] is kinds[1]
    assert outputs[0].tolist() == [[[-2.0, 6.0]]]  # before the in-place ReLU behind it
    assert torch.autograd.grad(score, outputs[0])[0].tolist() == [[[0.0, 12.0]]]


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_flags_come_back_even_where_they_differ(fails):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Dropout())
    model[1].eval()
    model[0].bias.requires_grad_(False)
    before = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    try:
        with frozen_eval(model):
            assert not any(m.training for m in model.modules())
            assert not any(p.requires_grad for p in model.parameters())
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == before


def test_normalization_is_channel_by_channel():
    pixels = torch.tensor([0.5, 1.0]).reshape(1, 2, 1, 1)
    images = Normalization(mean=(0.25, 0.5), std=(0.5, 0.25))(pixels)
    assert images.flatten().tolist() == [0.5, 2.0]


def test_a_black_pixel_has_the_value_that_normalization_calls_black():
    normalization = Normalization(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    images = normalization(torch.zeros(1, 3, 1, 1))
    torch.testing.assert_close(images.flatten(), torch.tensor(normalization.black))


def test_lists_and_tuples_make_equal_normalizations():
    assert Normalization([0.5], [0.25]) == Normalization((0.5,), (0.25,))  # type: ignore[arg-type]


@pytest.mark.parametrize(("mean", "std"), [((0.5, 0.5), (1.0,)), ((0.5,), (0.0,)), ((float("nan"),), (1.0,)), ((), ())])
def test_an_impossible_normalization_is_refused(mean, std):
    with pytest.raises(ModelError, match="normalization"):
        Normalization(mean, std)


def test_bytes_are_refused_rather_than_normalised_as_if_they_were_fractions():
    with pytest.raises(InputError, match="divide uint8 by 255"):
        Normalization((0.5,), (0.25,))(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


def test_where_nothing_before_asks_for_gradients_the_graph_begins_at_the_layer():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten())
    with frozen_eval(model), recorded(model, "1") as outputs:
        scores = model(IMAGES)
        (gradient,) = torch.autograd.grad(scores.sum(), outputs[0])
    assert outputs[0].is_leaf
    assert torch.equal(gradient, torch.ones(1, 2, 1, 2))
    assert not IMAGES.requires_grad


def test_a_layer_that_hands_its_input_on_leaves_that_without_a_flag():
    images = torch.zeros(1, 2)
    model = nn.Sequential(nn.Identity(), nn.Flatten())
    with recorded(model, "0"):
        model(images)
    assert not images.requires_grad


def test_a_module_under_two_names_is_found_by_both():
    relu = nn.ReLU()
    model = nn.Sequential(relu, relu)
    assert module_named(model, "1") is relu


class NormOfTokens(nn.Module):
    """A batch norm over a grid that is a view of tokens, or whose output is read as tokens, as in LeViT and XCiT."""

    def __init__(self, before, after):
        super().__init__()
        self.before, self.after = before, after
        self.norm = nn.BatchNorm2d(6)
        nn.init.normal_(self.norm.weight)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, images):
        tokens = images.flatten(2).mT.contiguous() if self.before else images
        grid = tokens.mT.unflatten(2, (4, 4)) if self.before else images
        output = self.norm(grid)
        output = output.flatten(2).mT.contiguous() if self.after else output
        return (output * torch.arange(96.0).sin().reshape(output.shape[1:])).flatten(1).sum(dim=1, keepdim=True)


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (True, True)])
def test_the_gradient_of_one_image_through_a_batch_norm_of_tokens_is_that_in_a_batch(before, after):
    torch.manual_seed(0)
    model, image = NormOfTokens(before, after), torch.randn(1, 6, 4, 4)

    def gradient(images):
        images = images.clone().requires_grad_()
        with frozen_eval(model):
            return torch.autograd.grad(model(images).sum(), images)[0][:1]

    torch.testing.assert_close(gradient(image), gradient(image.repeat(2, 1, 1, 1)))
    assert not model.norm._forward_hooks
    assert not model.norm._forward_pre_hooks
