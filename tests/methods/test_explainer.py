"""What a configured method is besides its maps: the files that it learnt from, and what it is given."""

import torch

from heatproof import artefacts
from heatproof.methods.explainer import Explainer


class Learned:
    """A method that keeps what it was given."""

    def __init__(self, model, checkpoint, classifier_sha256=None):
        self.given = (checkpoint, classifier_sha256)

    def __call__(self, images, targets):
        return torch.full((len(images), *images.shape[2:]), float(self.given[1] == "abc"))


def test_a_file_that_an_option_names_counts_by_its_content(tmp_path):
    file = tmp_path / "weights.pth"
    method = Explainer("m", f"{__name__}.Learned", {"checkpoint": str(file), "steps": 3, "word": "mean"})
    assert method.files() == {}
    file.write_bytes(b"one")
    first = method.files()
    assert first == {"checkpoint": artefacts.sha256(file)}
    file.write_bytes(b"two")
    assert method.files() != first


def test_a_method_that_asks_for_it_is_told_which_classifier_it_explains():
    method = Explainer("m", f"{__name__}.Learned", {"checkpoint": "none"})
    method.check()
    images, targets, indices = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), torch.arange(2)
    told = method.bind(torch.nn.Identity(), {"seed": 0, "classifier_sha256": "abc"})
    untold = method.bind(torch.nn.Identity(), {"seed": 0})
    assert told(images, targets, indices).maps.all()
    assert not untold(images, targets, indices).maps.any()
