"""Maskers as methods: whose activations they read, what they are told, and what they leave behind."""

import dataclasses

import pytest
import torch

from heatproof.errors import InputError, MissingInputError, ModelError
from heatproof.methods.masker import Masker
from heatproof.models import masker as network
from heatproof.models.masker import MaskerForm
from heatproof.models.masker_files import SavedMasker
from heatproof.models.resnet_cifar import NarrowResNet8
from heatproof.models.vit import ViTTiny
from tests.methods.test_properties import traces

TARGETS = torch.tensor([0, 3, 1])


def classifier(seed=0):
    torch.manual_seed(seed)
    return NarrowResNet8(4).eval()


def images():
    return torch.randn(3, 3, 24, 20, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def write(tmp_path):
    """Writes a masker's file; returns its path."""

    def written(adapted=None, model=None, taps=("relu", "layer3.0.relu"), **options):
        torch.manual_seed(3)
        form = network.discovered(model or classifier(), images(), MaskerForm(taps=taps, **options))
        state = network.Masker(form).state_dict()
        changed = None if adapted is None else adapted.state_dict()
        saved = SavedMasker(form, state, "first", "first" if adapted is None else "adapted", changed)
        torch.save(saved.content(), tmp_path / "masker.pth")
        return str(tmp_path / "masker.pth")

    return written


def test_a_map_is_the_mask_in_full_size(write):
    model, path = classifier(), write()
    masks = Masker(model, path)(images(), TARGETS)
    assert (masks.shape, masks.dtype) == ((3, 24, 20), torch.float32)
    assert 0 <= masks.min() < masks.max() <= 1
    logits = Masker(model, path, output="logits")(images(), TARGETS)
    torch.testing.assert_close(logits.sigmoid(), masks)


def test_a_batch_gives_the_maps_of_its_images_one_by_one_and_the_class_does_not_matter(write):
    method = Masker(classifier(), write())
    maps = method(images(), TARGETS)
    for i in range(3):
        torch.testing.assert_close(maps[i], method(images()[i : i + 1], TARGETS[:1])[0], rtol=0, atol=1e-6)


def test_model_and_images_are_left_as_they_were(write):
    model, given = classifier().train(), images()
    before, state, copy = traces(model), {k: v.clone() for k, v in model.state_dict().items()}, given.clone()
    Masker(model, write())(given, TARGETS)
    assert traces(model) == before
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(given, copy)


def test_a_class_conditional_masker_explains_the_targets(write):
    method = Masker(classifier(), write(classes=4))
    assert not torch.equal(method(images(), TARGETS)[1], method(images(), torch.tensor([0, 2, 1]))[1])
    with pytest.raises(InputError, match=r"masker: class 4: it knows 4 \(0 to 3\)"):
        method(images(), torch.tensor([0, 4, 1]))


def test_use_p_and_the_masker_must_fit(write):
    path = write(takes_area=True)
    small, large = (Masker(classifier(), path, use_p=p)(images(), TARGETS) for p in (0.1, 0.9))
    assert not torch.equal(small, large)
    with pytest.raises(InputError, match="was trained with wanted areas"):
        Masker(classifier(), path)
    with pytest.raises(InputError, match=r"Masker: use_p: 1\.5 must lie between 0 and 1"):
        Masker(classifier(), path, use_p=1.5)
    with pytest.raises(InputError, match="was trained without wanted areas; leave use_p out"):
        Masker(classifier(), write(), use_p=0.5)


def test_the_explained_classifier_is_read_so_that_maps_follow_it(write):
    path = write()
    assert not torch.equal(
        Masker(classifier(0), path)(images(), TARGETS), Masker(classifier(9), path)(images(), TARGETS)
    )


def test_with_checkpoint_the_classifier_that_came_with_the_masker_is_read(write):
    path = write(adapted=classifier(5))
    read = Masker(classifier(0), path, classifier="checkpoint")(images(), TARGETS)
    assert torch.equal(read, Masker(classifier(5), path)(images(), TARGETS))
    assert not torch.equal(read, Masker(classifier(0), path)(images(), TARGETS))


def test_a_checkpoint_of_another_classifier_is_refused(write):
    path = write()
    Masker(classifier(), path, classifier_sha256="first")
    with pytest.raises(ModelError, match=r"masker.pth is of another classifier \(weights first..., not other...\)"):
        Masker(classifier(), path, classifier_sha256="other")
    path = write(adapted=classifier(5))
    Masker(classifier(), path, classifier_sha256="adapted")
    Masker(classifier(), path, classifier_sha256="first", classifier="checkpoint")
    with pytest.raises(
        ModelError, match=r"as CA training has left it, .*explain classifier.pth beside it, or set classifier"
    ):
        Masker(classifier(), path, classifier_sha256="first")


def test_a_classifier_of_another_build_is_refused(write):
    path = write()
    with pytest.raises(ModelError, match="layer 'relu': ViTTiny has no such layer"):
        Masker(ViTTiny(num_classes=4), path)
    wider = NarrowResNet8(4, width=8).eval()
    with pytest.raises(
        ModelError, match="it reads 16 channels of layer 'relu', which gives 8: it is of another classifier"
    ):
        Masker(wider, path)(images(), TARGETS)


def test_options_are_checked_when_the_method_is_built(write, tmp_path):
    with pytest.raises(InputError, match="Masker: output 'logit' is unknown; did you mean 'logits'"):
        Masker(classifier(), write(), output="logit")
    with pytest.raises(
        MissingInputError, match=r"checkpoint: .*none.pth: no such masker; correct the path, train one \(train-masker\)"
    ):
        Masker(classifier(), str(tmp_path / "none.pth"))


def test_tokens_of_a_vision_transformer_are_read(write):
    vit = ViTTiny(num_classes=4).eval()
    size = torch.randn(2, 3, 32, 32)
    torch.manual_seed(3)
    form = network.discovered(vit, size, MaskerForm(taps=("blocks.2",)))
    saved = SavedMasker(form, network.Masker(form).state_dict(), "", "")
    path = write()
    torch.save(dataclasses.replace(saved).content(), path)
    assert Masker(vit, path)(size, TARGETS[:2]).shape == (2, 32, 32)
