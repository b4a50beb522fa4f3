"""The masker's losses: the published numbers, gradients by finite differences, and known truths."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heatproof.errors import InputError
from heatproof.training.mask_objectives import Prior, Term, smoothness, term_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "casme"
VALUES = json.loads((GOLDEN / "losses.json").read_text())
TERMS = [key for key in VALUES if "lambda_r=" in key]
PRIORS = [key for key in VALUES if key.startswith("prior|")]


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDEN / "losses.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def enlarged(cells):
    return cells.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)


def near(found, wanted):
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-5, atol=3e-6)  # sums of parts up to 9


def evaluated(arrays, term, side, **options):
    cells = arrays["mask56"].clone().requires_grad_()
    logits = arrays["logits_masked"].clone().requires_grad_()
    right = arrays["logits_clean"].argmax(1) == arrays["y"]
    return cells, logits, term_loss(term, side, enlarged(cells), logits, arrays["y"], right, **options)


@pytest.mark.parametrize("key", TERMS)
def test_terms_and_their_gradients_are_the_published_ones(arrays, key):
    kind, direction, mode, lambda_r, lambda_tv, prob = key.split("|")
    use_area, distance = prob.removeprefix("prob=").split(":")
    tv = lambda_tv.partition("=")[2]
    term = Term(
        kind, direction, lambda_r=float(lambda_r.partition("=")[2]), lambda_tv=0.0 if tv == "None" else float(tv),
        area_distance=distance,
    )  # fmt: skip
    areas = arrays["use_p"] if use_area == "True" else None
    cells, logits, loss = evaluated(arrays, term, mode.removeprefix("mask_"), areas=areas)
    wanted = VALUES[key]
    near(loss.total, wanted["total"])
    near(loss.objective.mean(), wanted["loss"])
    near(loss.size.mean(), wanted["mask_reg"])
    near(loss.smoothness, wanted.get("tv_reg", 0.0))
    near(loss.objective, wanted["per_sample"]["loss"])
    near(loss.size, wanted["per_sample"]["mask_reg"])
    reached = "correct_on_masked" if mode == "mask_in" else "nontrivially_confused"
    near(loss.reached.mean(), wanted[reached])
    of_cells, of_logits = torch.autograd.grad(loss.total, (cells, logits), allow_unused=True)
    near(of_logits, arrays[f"{wanted['grad_arrays']}_logits"].numpy())
    of_mask = arrays.get(f"{wanted['grad_arrays']}_mask56")
    assert (of_mask is not None) == (lambda_r == "lambda_r=10.0")  # stored for these only
    if of_mask is not None:
        near(of_cells[:3], of_mask.numpy())


@pytest.mark.parametrize("key", PRIORS)
def test_the_prior_criterion_in_all_its_settings(arrays, key):
    asked = json.loads(key.partition("|")[2])
    prior = Prior(
        kl=asked["kl"], compare=asked["prior"], class_weights=tuple(arrays["class_weights"].tolist()),
        only_right=asked["loss_on_coc"], weigh_classes=asked["apply_class_weight"],
        always_small=asked.get("regularize_always", False), nothing_class=asked.get("nothing_class"),
        nothing_weight=asked.get("nothing_class_reg_weight", 1.0),
    )  # fmt: skip
    _, _, loss = evaluated(arrays, Term("entropy", lambda_r=10.0, prior=prior), "out")
    for found, name in ((loss.total, "total"), (loss.objective.mean(), "loss"), (loss.size.mean(), "regularization")):
        near(found, VALUES[key][name])
    near(loss.reached.mean(), VALUES[key]["nontrivially_confused"])


@pytest.mark.parametrize("key", [key for key in VALUES["tv"] if "power=1" not in key])
def test_smoothness(arrays, key):
    asked = dict(part.split("=") for part in key.split("|"))
    weight = 0.0 if asked["weight"] == "None" else float(asked["weight"])
    near(smoothness(enlarged(arrays["mask56"]), weight, float(asked.get("border", 0.3))), VALUES["tv"][key])


@pytest.mark.parametrize("side", ["in", "out"])
def test_the_gradient_of_a_whole_loss_by_finite_differences(side):
    """Through a classifier, as in training: the mask moves the image, and the size and smoothness terms."""
    torch.manual_seed(0)
    weight, images = torch.randn(12, 3, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    labels, right = torch.tensor([0, 2]), torch.tensor([True, True])
    term = Term("classification" if side == "in" else "entropy", lambda_r=3.0, lambda_tv=0.5)

    def loss(masks):
        kept = masks if side == "in" else 1 - masks
        logits = (images * kept[:, None]).flatten(1) @ weight
        return term_loss(term, side, masks, logits, labels, right).total

    masks = torch.rand(2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, masks)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["in", "out"]), st.sampled_from(["classification", "entropy"]))
def test_the_order_of_the_images_does_not_matter(seed, side, kind):
    rng = torch.Generator().manual_seed(seed)
    masks, logits = torch.rand(5, 4, 6, generator=rng), torch.randn(5, 3, generator=rng)
    labels, right = torch.randint(3, (5,), generator=rng), torch.rand(5, generator=rng) < 0.5
    order = torch.randperm(5, generator=rng)
    term = Term(kind, lambda_r=2.0, lambda_tv=0.1)
    whole = term_loss(term, side, masks, logits, labels, right).total
    shuffled = term_loss(term, side, masks[order], logits[order], labels[order], right[order]).total
    torch.testing.assert_close(whole, shuffled)


def test_only_a_mask_that_does_its_work_is_rewarded_for_being_small():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
    masks = torch.full((2, 4, 4), 0.25, requires_grad=True)
    loss = term_loss(Term("classification", lambda_r=4.0), "in", masks, logits, labels, torch.tensor([True, True]))
    assert loss.size.tolist() == [-3.0, 0.0]
    (gradient,) = torch.autograd.grad(loss.size.sum(), masks)
    assert gradient.sum(dim=(1, 2)).tolist() == [4.0, 0.0]


def test_weights_of_another_number_of_classes_are_refused():
    term = Term("entropy", prior=Prior(class_weights=(1.0, 2.0)))
    with pytest.raises(InputError, match="class_weights: 2 of them, all above 0 wanted; the classifier has 3 classes"):
        term_loss(term, "out", torch.zeros(1, 2, 2), torch.zeros(1, 3), torch.tensor([0]), torch.tensor([True]))
