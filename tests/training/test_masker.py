"""The training of maskers: the published steps, FIX's promise, resuming, and what stops it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from heatproof import removal
from heatproof.errors import DivergedError, InputError, ModelError
from heatproof.models import Normalization
from heatproof.models.masker import Masker, MaskerForm, tapped
from heatproof.training import masker as masker_training
from heatproof.training.augmentation import Augmentation
from heatproof.training.examples import Examples
from heatproof.training.mask_objectives import Term
from heatproof.training.masker_steps import MaskerDraws, MaskerRecipe, MaskerTraining

GOLDEN = Path(__file__).parents[1] / "golden" / "casme"
RUNS = json.loads((GOLDEN / "train_steps.json").read_text())


class Tiny(nn.Module):
    """The classifier of the golden runs."""

    def __init__(self):
        super().__init__()
        sizes = ((3, 4, 7, 4), (4, 6, 3, 1), (6, 8, 3, 2), (8, 10, 3, 2), (10, 12, 3, 2))
        for i, (inputs, outputs, side, stride) in enumerate(sizes):
            setattr(self, f"conv{i}", nn.Conv2d(inputs, outputs, side, stride, side // 2))
            setattr(self, f"tap{i}", nn.ReLU())
        self.bn3 = nn.BatchNorm2d(10)
        self.fc = nn.Linear(12, 10)

    def forward(self, values):
        for i in range(5):
            values = getattr(self, f"conv{i}")(values)
            values = getattr(self, f"tap{i}")(self.bn3(values) if i == 3 else values)
        return self.fc(values.mean(dim=(2, 3)))


class Blur:
    """The published blur infiller: the whole image, zeros outside it."""

    def generate(self, images, hole):
        side = torch.arange(images.shape[2])
        steps = (side[:, None] - side).double()
        taps = torch.arange(-80, 81).double()
        total = torch.exp(-taps.square() / (2 * 20.0**2)).sum()
        kernel = torch.exp(-steps.square() / (2 * 20.0**2)).where(steps.abs() <= 80, 0.0) / total
        kernel = kernel.to(images.dtype)
        return kernel @ images @ kernel.T


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "train_steps.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def weights(golden, prefix):
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


def pictures(golden, step):
    return golden[f"x28_{step}"].double().repeat_interleave(8, dim=2).repeat_interleave(8, dim=3), golden[f"y_{step}"]


def started(golden, **changes):
    classifier = Tiny()
    classifier.load_state_dict(weights(golden, "clf0/"), strict=True)
    masker = Masker(MaskerForm(taps=("tap3", "tap4"), channels=(10, 12), indices=(3, 4), width=5))
    masker.load_state_dict(weights(golden, "mask0/"), strict=True)
    # In float32 a unit of the classifier lies so near to 0 that the order of a sum decides whether it counts.
    return MaskerTraining(classifier.double(), masker.double(), MaskerRecipe(**changes))


CA = {
    "form": "ca", "mask_out": Term("entropy", lambda_r=15.0, lambda_tv=0.001), "historic_probability": 0.5, "zoo_every": 2,
}  # fmt: skip
LOGS = {"FIX_blur": "FIX_blur_infill"}  # where the log has another name than the arrays
CASES = {
    "FIX": {},
    "FIX_blur": {"infiller": Blur(), "infill": ("in", "out")},
    "CA_clean": CA,
    "CA_historic": CA | {"historic": "consulted"},
}


def check_log(found, line):
    names = {"classifier_loss": "classifier_loss", "acc": "accuracy", "mask_avg": "area", "masked_total___loss": "loss"}
    for side, reached in (("in", "correct_on_masked"), ("out", "nontrivially_confused")):
        ours = {"classifier_loss": "classifier_loss", "acc": "accuracy", reached: "reached", "mask_reg": "size"}
        names |= {f"masked_{side}___{theirs}": f"{side}_{name}" for theirs, name in ours.items()}
    for theirs, name in names.items():
        factor = 100 if theirs.endswith("acc") else 1
        assert factor * float(found[name]) == pytest.approx(line[theirs], abs=1e-4), theirs


def same(state, wanted):
    assert state.keys() == wanted.keys()
    for name, value in state.items():
        tolerance = 1e-4 * float(wanted[name].abs().max()) if "running" in name else 1e-5
        torch.testing.assert_close(
            value,
            wanted[name].to(value.dtype),
            rtol=0,
            atol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("case", CASES)
def test_four_steps_are_those_of_the_published_code(golden, case):
    run = RUNS[LOGS.get(case, case)]
    stored = {name for name in golden if name.startswith(f"{case}/")}
    compared = set()

    def compare(state, prefix):
        expected = weights(golden, prefix)
        same(state, expected)
        compared.update(prefix + name for name in expected)

    lives = run.get("update_classifier_on_masked", [True] * 4)
    members = iter([entry["historic_index_used"] for entry in run.get("zoo_log", []) if "historic_index_used" in entry])
    training = started(golden, **CASES[case])
    with training.at_work():
        for step in range(4):
            member = next(members, 0) if not lives[step] else 0
            sizes = {2: 2, 3: 3}  # of the zoo, when it is asked
            draws = MaskerDraws(live=lives[step], member=(member + 0.5) / sizes.get(step, 1))
            found = training.step(*pictures(golden, step), draws)
            check_log(found, run["log"][step])
            if "grad_norm_before_clip" in run:
                assert float(found["gradient"]) == pytest.approx(run["grad_norm_before_clip"][step], rel=1e-3)
            gradients = {name: parameter.grad for name, parameter in training.masker.named_parameters()}
            states = {"mask": training.masker.state_dict(), "clf": training.classifier.state_dict(), "grad": gradients}
            for name, state in states.items():
                prefix = f"{case}/{name}_step{step + 1}/"
                if any(array.startswith(prefix) for array in stored):  # only some steps are stored
                    compare(state, prefix)
        check_log(training.evaluate(*pictures(golden, 0)), run["log"][4])
    assert stored
    assert compared == stored
    if "zoo_log" in run:
        assert len(training.zoo) == 3


# --- infillers


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Recorded:
    """An infiller that keeps what it was asked for, and answers with the negative."""

    def generate(self, pixels, holes):
        self.asked = pixels, holes
        return 1 - pixels


def composed(infiller, pixels, masks, side="out", indices=None):
    """What the classifier sees of pixels under masks with an infiller, in pixels again."""
    recipe = MaskerRecipe(infiller=infiller, infill=("in", "out"))
    training = MaskerTraining(SpotNet(), Masker(MaskerForm(taps=("relu",), channels=(8,))), recipe, IMAGENET)
    return IMAGENET.pixels(training.composed(side, IMAGENET(pixels), masks, indices))


def test_an_infiller_gets_pixels_and_its_answer_is_normalised():
    torch.manual_seed(0)
    pixels, masks, infiller = torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8), Recorded()
    pixels[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # which rounding takes out of [0, 1]
    kept = 1 - masks[:, None]
    found = composed(infiller, pixels, masks)
    torch.testing.assert_close(found, pixels * kept + (1 - pixels) * (1 - kept), rtol=0, atol=1e-5)
    given, holes = infiller.asked
    assert given.min() >= 0
    assert given.max() <= 1
    torch.testing.assert_close(given, pixels, rtol=0, atol=1e-5)
    torch.testing.assert_close(holes, masks[:, None])


def test_every_fill_has_an_answer_for_soft_holes():
    torch.manual_seed(0)
    pixels, masks = torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8)
    kept = 1 - masks[:, None]
    for name in removal.FILLS:
        fill = removal.build_fill(name, mean=(0.4,), normalization_mean=(0.5,), seed=1)
        indices = torch.tensor([4, 7])
        found = composed(removal.generating(fill), pixels, masks, indices=indices)
        whole = removal.generating(fill).generate(pixels, masks[:, None], indices).clamp(0, 1)
        torch.testing.assert_close(found, pixels * kept + whole * (1 - kept), rtol=0, atol=1e-5)
        if isinstance(fill, removal.Replacing):
            torch.testing.assert_close(whole, fill.replacement(pixels, indices).expand_as(pixels))
        else:  # removed is what the mask takes more than half of
            torch.testing.assert_close(whole, fill(pixels, masks > 0.5, indices).clamp(0, 1))


def test_the_noise_of_an_image_is_its_own():
    pixels, masks = torch.full((2, 3, 8, 8), 0.5), torch.ones(2, 8, 8)
    noise = removal.generating(removal.Noise(seed=1))
    together = composed(noise, pixels, masks, indices=torch.tensor([4, 7]))
    assert not torch.equal(together[0], together[1])
    torch.testing.assert_close(composed(noise, pixels[1:], masks[1:], indices=torch.tensor([7]))[0], together[1])


def test_an_answer_of_another_shape_is_refused():
    class Grey:
        def generate(self, pixels, holes):
            return pixels[:, :1]

    with pytest.raises(InputError, match=r"Grey.generate: returned shape \(2, 1, 8, 8\) for pixels \(2, 3, 8, 8\)"):
        composed(Grey(), torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8))


def test_an_infiller_needs_a_normalisation_that_can_be_undone():
    with pytest.raises(InputError, match="normalize: an infiller works on pixels; expected a Normalization"):
        fitted(infiller=Recorded(), infill=("out",))[1]()


# --- whole trainings


class Spots:
    """Pictures whose class is the colour of a square at a random place."""

    def __init__(self, count=64, seed=0):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 3, count)
        pixels = rng.integers(90, 166, (count, 3, 16, 16))
        self.places = rng.integers(0, 12, (count, 2))
        for image, label, (y, x) in zip(pixels, self.labels, self.places, strict=True):
            image[:, y : y + 4, x : x + 4] = 0
            image[label, y : y + 4, x : x + 4] = 255
        self._pixels = torch.from_numpy(pixels.astype(np.uint8))
        self.nbytes = pixels.size

    def __len__(self):
        return len(self.labels)

    def pixels(self, indices):
        return self._pixels[torch.as_tensor(np.asarray(indices))]


class SpotNet(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        return self.head(self.drop(self.relu(self.norm(self.conv(images))).amax((2, 3))))


CPU = torch.device("cpu")


def fitted(*, stop=None, options=None, **changes):
    """A classifier of spots, and a function that trains a masker for it; `stop` interrupts after so many epochs."""
    torch.manual_seed(1)
    classifier = SpotNet(dropout=0.1)
    masker = Masker(MaskerForm(taps=("relu",), channels=(8,), width=4, **(options or {})))
    recipe = MaskerRecipe(
        epochs=4, batch_size=16, share=1.0, zoo_every=3, zoo_size=2, augmentation=Augmentation(1), **changes
    )

    def on_epoch(history):
        if len(history) == stop:
            raise KeyboardInterrupt

    return classifier, lambda **more: masker_training.fit(
        classifier, masker, lambda p: p - 0.5, Examples(Spots(), CPU), Examples(Spots(20, seed=1), CPU), recipe, seed=0,
        purpose=("train_masker",), on_epoch=on_epoch, **more,
    )  # fmt: skip


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_fix_leaves_the_classifier_bit_by_bit_as_it_was():
    classifier, fit = fitted()
    before, flags = state_of(classifier), [p.requires_grad for p in classifier.parameters()]
    result = fit()
    assert result.classifier is None
    assert equal(before, state_of(classifier))
    assert [p.requires_grad for p in classifier.parameters()] == flags
    assert [p.grad for p in classifier.parameters()] == [None] * len(flags)
    assert classifier.training


@pytest.mark.parametrize("historic", ["as_published", "consulted"])
def test_ca_trains_the_classifier_too(historic):
    classifier, fit = fitted(form="ca", historic=historic, historic_probability=0.5)
    before = state_of(classifier)
    result = fit()
    assert equal(result.classifier, state_of(classifier))
    assert not torch.equal(before["head.weight"], result.classifier["head.weight"])


def test_the_two_forms_of_the_zoo_differ():
    results = [
        fitted(form="ca", historic=historic, historic_probability=0.5)[1]().masker
        for historic in ("as_published", "consulted")
    ]
    assert not equal(*results)


FORMS = {
    "fix": {},
    "fix with area and noise": {"options": {"takes_area": True, "gumbel": "hard", "classes": 3}},
    "ca": {"form": "ca", "historic": "consulted", "historic_probability": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_a_killed_training_that_goes_on_equals_an_uninterrupted_one(changes, tmp_path):
    whole = fitted(**changes)[1]()
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):  # in the third epoch's report: two epochs are kept
        fitted(stop=3, **changes)[1](checkpoint=path, identity="x")
    assert path.is_file()
    continued = fitted(**changes)[1](checkpoint=path, identity="x")
    assert equal(whole.masker, continued.masker)
    assert whole.history == continued.history
    assert (whole.classifier is None) or equal(whole.classifier, continued.classifier)


def test_a_checkpoint_of_another_training_is_not_used(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        fitted(stop=3)[1](checkpoint=path, identity="another")
    assert equal(fitted()[1]().masker, fitted()[1](checkpoint=path, identity="x").masker)


def test_both_terms_in_one_pass_are_those_of_two():
    """FIX masks in and out in one batch, which is allowed as long as no image influences another."""
    torch.manual_seed(0)
    classifier = SpotNet().eval()
    images, masks = torch.randn(4, 3, 16, 16), torch.rand(4, 16, 16)
    training = MaskerTraining(classifier, Masker(MaskerForm(taps=("relu",), channels=(8,))), MaskerRecipe())
    together = training._judged(classifier, images, masks)
    for side, kept in (("in", masks), ("out", 1 - masks)):
        torch.testing.assert_close(together[side], classifier(images * kept[:, None]))


def test_the_mask_that_is_learnt_covers_what_tells_the_class():
    """A known truth: only the square tells the class; after training the mask is high there and low elsewhere."""
    torch.manual_seed(0)
    classifier = SpotNet()
    examples = Examples(Spots(256), CPU)
    optimizer = torch.optim.Adam(classifier.parameters(), 0.02)
    for _ in range(12):
        for batch in examples.batches(torch.arange(256), 32):
            loss = nn.functional.cross_entropy(classifier(batch.pixels - 0.5), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    form = MaskerForm(taps=("relu",), channels=(8,), width=8, stride=2)
    masker = Masker(form)
    recipe = MaskerRecipe(epochs=6, batch_size=16, share=1.0, masker_rate=0.01)
    masker_training.fit(
        classifier,
        masker,
        lambda p: p - 0.5,
        examples,
        Examples(Spots(20, seed=1), CPU),
        recipe,
        seed=0,
        purpose=("t",),
    )
    test = Spots(100, seed=2)
    images = test.pixels(np.arange(100)).float() / 255 - 0.5
    with torch.no_grad(), tapped(form.layouts_in(classifier.eval()), images) as activations:
        classifier(images)
        masks = masker(activations(), (16, 16)).numpy() > 0.5
    region = np.zeros_like(masks)
    for shape, (y, x) in zip(region, test.places, strict=True):
        shape[y : y + 4, x : x + 4] = True
    overlap = (masks & region).sum((1, 2)) / (masks | region).sum((1, 2))
    assert overlap.mean() > 0.5


def test_nan_stops_the_training_and_names_the_step():
    classifier = SpotNet()
    training = MaskerTraining(classifier, Masker(MaskerForm(taps=("relu",), channels=(8,))), MaskerRecipe())
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    with training.at_work():
        training.step(images, labels, MaskerDraws())
        before = state_of(training.masker)
        with pytest.raises(
            DivergedError, match=r"diverged in step 2: loss nan, .*try a smaller masker_rate than 0\.001"
        ):
            training.step(images * float("nan"), labels, MaskerDraws())
        weights = [name for name, _ in training.masker.named_parameters()]
        assert all(torch.equal(before[name], training.masker.state_dict()[name]) for name in weights)


def test_few_images_can_make_long_epochs():
    classifier, _ = fitted()
    training = MaskerTraining(
        classifier, Masker(MaskerForm(taps=("relu",), channels=(8,))), MaskerRecipe(batch_size=16, share=8.5)
    )
    few = Examples(Spots(6), CPU)
    learner = masker_training.MaskerLearner(training, lambda p: p - 0.5, few, few, 0, ("t",))
    with training.at_work():
        learner.epoch(0, lambda: None)
    assert training.step_count == 51 // 16


def test_fewer_images_than_a_batch_are_one_line():
    with pytest.raises(InputError, match="6 images for an epoch do not fill a batch of 16; take a smaller batch_size"):
        masker_training.fit(
            SpotNet(), Masker(MaskerForm(taps=("relu",), channels=(8,))), lambda p: p, Examples(Spots(6), CPU),
            Examples(Spots(6), CPU), MaskerRecipe(batch_size=16, share=1.0), seed=0, purpose=("t",),
        )  # fmt: skip


def test_a_masker_without_any_term_is_refused():
    with pytest.raises(InputError, match="mask_in or mask_out must have a criterion"):
        MaskerRecipe(mask_in=None, mask_out=None)


def test_half_precision_changes_little():
    torch.manual_seed(0)
    classifier, images, labels = SpotNet(), torch.randn(8, 3, 16, 16), torch.randint(3, (8,))
    losses = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        masker = Masker(MaskerForm(taps=("relu",), channels=(8,)))
        training = MaskerTraining(classifier, masker, MaskerRecipe(precision=precision))
        with training.at_work():
            losses.append(float(training.step(images, labels, MaskerDraws())["loss"]))
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("form", ["fix", "ca"])
def test_nothing_is_learnt_from_a_classifier_that_passes_no_gradient_on(golden, form):
    training = started(golden, form=form)
    training.classifier.conv0.register_forward_hook(lambda module, arguments, values: values.detach())
    with training.at_work(), pytest.raises(ModelError, match=r"Tiny: no gradient .* so no masks can be learnt from it"):
        training.step(*pictures(golden, 0), MaskerDraws())
