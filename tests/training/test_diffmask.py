"""Training of Vision DiffMask: steps of the published code, and that the corrected form finds what a classifier needs."""

import math

import numpy as np
import pytest
import torch

from heatproof.errors import DivergedError, InputError, ModelError
from heatproof.models.diffmask import DiffMaskNetwork, explainer_for
from heatproof.models.masking import masking_of
from heatproof.models.vit import ViTTiny
from heatproof.training import diffmask, diffmask_steps
from heatproof.training.diffmask_steps import DiffMaskDraws, DiffMaskRecipe, DiffMaskTraining
from heatproof.training.examples import Examples
from tests.models.test_diffmask import close, golden, published, tiny_vit
from tests.models.vits import our_vit

RECIPE = {
    "epochs": 1, "batch_size": 4, "eps": 0.1, "alpha": 20.0, "lr": 2e-5, "lr_placeholder": 1e-3, "lr_alpha": 0.3,
    "warmup_steps": 1200,
}  # fmt: skip


def recipe(**changes):
    return DiffMaskRecipe(**RECIPE | changes)


def trainer_of(vectors, prefix, **changes):
    """A trainer in the published form, with the explainer of a golden file."""
    model = tiny_vit(vectors).requires_grad_(requires_grad=False)
    explainer = published(vectors, prefix).requires_grad_()
    return DiffMaskTraining(explainer, masking_of(model, "tokens", compat=True), recipe(compat=True, **changes))


def given_draws(depth, u):
    return lambda passed: DiffMaskDraws(torch.full((len(u),), depth), u)


@pytest.mark.parametrize("case", range(5))
def test_loss_and_gradients_of_a_step_are_those_of_the_published_code(case):
    vectors = golden("train_step")
    trainer, key = trainer_of(vectors, "explainer."), f"case{case}."
    explainer, depth = trainer.explainer, int(vectors[key + "layer_pred"])
    images = vectors["images"]
    passed = trainer.masking.intact(images)
    draws = given_draws(depth, vectors[key + "u"])(passed)
    alphas = torch.tensor([20.0] * 5)
    found = diffmask_steps.objective(explainer, trainer.masking, images, passed, draws, alphas, trainer.recipe)
    close(found.masked_logits.detach(), vectors[key + "masked_logits"], 2e-4)
    close(found.loss.detach(), vectors[key + "loss"], 2e-4)
    close(found.divergence.mean() - 0.1, vectors[key + "loss_c"], 2e-4)
    close(found.penalty.mean(), vectors[key + "loss_g"], 2e-4)
    close(found.agrees.float().mean(), vectors[key + "acc"], 0)
    close(found.kept.mean(), vectors[key + "l0"], 2e-4)
    found.loss.backward()
    for name, parameter in explainer.named_parameters():
        expected = vectors.get(f"{key}grad.{name}")
        if expected is None:
            assert parameter.grad is None, name
        else:
            close(parameter.grad, expected, 2e-3 * float(expected.abs().max()))
    # Ascent: what the optimizer of alpha goes down on is the negative of the published gradient.
    trainer.price(draws.depths, found.divergence)
    close(-trainer.alphas[depth].grad, vectors[f"{key}grad.alpha.{depth}"], 2e-4)
    assert [alpha.grad is None for alpha in trainer.alphas] == [number != depth for number in range(5)]


def test_running_values_go_on_from_step_to_step_as_in_the_published_code():
    vectors = golden("train_step")
    depths = diffmask_steps.Depths(5)
    for case in range(5):
        key = f"case{case}."
        depth, acc, l0 = (vectors[key + name] for name in ("layer_pred", "acc", "l0"))
        depths.update(depth.repeat(4), acc.repeat(4), l0.repeat(4), torch.zeros(4))
        for ours, theirs in (("agreement", "acc"), ("kept", "l0"), ("steps", "steps")):
            close(depths.state_dict()[ours], vectors[f"{key}after.running_{theirs}"], 1e-5)


def test_depths_that_do_well_are_drawn_less_often_as_in_the_published_code():
    vectors = golden("train_step")
    depths = diffmask_steps.Depths(5)
    names = {"agreement": "acc", "kept": "l0", "steps": "steps"}
    running = {ours: vectors[f"weighted.running_{theirs}"] for ours, theirs in names.items()}
    depths.load_state_dict(running | {"divergence": torch.zeros(5)})
    close(depths.probabilities(), vectors["weighted.p"], 1e-6)


def test_fourteen_steps_are_those_of_the_published_code():
    vectors = golden("trajectory")
    trainer = trainer_of(vectors, "init.explainer.", lr=0.5, lr_placeholder=0.8, lr_alpha=0.3)
    explainer = trainer.explainer
    for number, images in enumerate(vectors["images"].split(4)):
        depth, loss, loss_c, loss_g, acc, l0, lr, lr_placeholder = vectors["intended.log"][number].tolist()
        found = trainer.step(images, given_draws(int(depth), vectors[f"intended.{number}.u"]))
        assert float(found.loss.detach()) == pytest.approx(loss, rel=1e-3, abs=1e-3)
        assert float(found.divergence.mean()) - 0.1 == pytest.approx(loss_c, rel=1e-3, abs=1e-3)
        assert float(found.penalty.mean()) == pytest.approx(loss_g, rel=1e-3, abs=1e-3)
        assert float(found.agrees.float().mean()) == acc
        assert float(found.kept.mean()) == pytest.approx(l0, abs=1e-3)
        rates = [group["lr"] for group in trainer.weights.optimizer.param_groups]
        assert rates == pytest.approx([lr, lr_placeholder])
        close(torch.stack([alpha.detach() for alpha in trainer.alphas]), vectors["intended.alpha"][number], 1e-4)
        close(explainer.placeholder.detach().flatten(), vectors["intended.placeholder"][number], 1e-4)
        close(explainer.gate.added(5).detach(), vectors["intended.add_activation"][number], 1e-4)
        close(explainer.gate.layers("2")[0].bias.detach(), vectors["intended.g0_out_bias"][number], 1e-4)
        close(explainer.gate.layers("2")[0].weight_v.detach()[0], vectors["intended.g0_out_weight_v"][number], 1e-4)
    for name, value in explainer.named_parameters():
        close(value.detach(), vectors[f"intended.final.explainer.{name}"], 1e-4)


def test_what_is_kept_is_counted_and_the_penalty_is_its_share():
    torch.manual_seed(0)
    model = our_vit().requires_grad_(requires_grad=False)
    explainer = DiffMaskNetwork("tokens", 4, 16, mul_activation=5.0, add_activation=1.0)
    masking, images = masking_of(model), torch.randn(3, 3, 16, 24)
    passed = masking.intact(images)
    draws = DiffMaskDraws(torch.tensor([0, 3, 2]), torch.rand(3, 24, 4))
    alphas = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = diffmask_steps.objective(explainer, masking, images, passed, draws, alphas, recipe(eps=0.25))
    kept = explainer.votes(passed.hidden).log_probability_open().exp().cumprod(dim=2)
    expected = torch.stack([kept[image, :, depth].mean() for image, depth in enumerate(draws.depths)])
    close(found.penalty, expected.detach(), 1e-6)
    close(found.kept, found.penalty, 0)
    lagrangian = torch.tensor([1.0, 4.0, 3.0]) * (found.divergence - 0.25) + found.penalty
    close(found.loss.detach(), lagrangian.mean(), 1e-6)


@pytest.mark.parametrize("compat", [False, True])
def test_rates_grow_at_first_and_fall_in_the_last_third(compat):
    model = our_vit().requires_grad_(requires_grad=False)
    explainer = DiffMaskNetwork("tokens", 4, 16, mul_activation=5.0, add_activation=3.0, compat=compat)
    settings = recipe(lr=0.1, lr_placeholder=0.2, warmup_steps=2, compat=compat)
    trainer = DiffMaskTraining(explainer, masking_of(model), settings, steps=9)
    rates = []
    for _ in range(9):
        trainer.step(torch.randn(2, 3, 16, 24), given_draws(3, torch.rand(2, 24, 4)))
        gates, placeholder = (group["lr"] for group in trainer.weights.optimizer.param_groups)
        assert placeholder == pytest.approx(2 * gates)
        rates.append(gates)
    end = [0.1, 0.1, 0.1] if compat else [0.1, 0.2 / 3, 0.1 / 3]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.1, 0.1, 0.1, *end])


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize(("eps", "rises"), [(0.01, True), (50.0, False)])
def test_alpha_rises_while_the_divergence_exceeds_the_tolerance_and_falls_below_it(compat, eps, rises):
    torch.manual_seed(0)
    model = our_vit().requires_grad_(requires_grad=False)
    explainer = DiffMaskNetwork("tokens", 4, 16, mul_activation=5.0, add_activation=-2.0)  # closed: much is missing
    trainer = DiffMaskTraining(explainer, masking_of(model), recipe(eps=eps, compat=compat, lr_alpha=0.1))
    found = trainer.step(
        torch.randn(4, 3, 16, 24), lambda passed: diffmask.drawn(0, ("x",), 0, (4, 24, 4), torch.ones(4), shared=False)
    )
    assert bool(found.divergence.mean() > eps) is rises
    changes = torch.stack([alpha.detach() for alpha in trainer.alphas]) - 20
    assert changes.abs().max() > 0.05
    assert bool((changes >= 0).all()) is rises


def test_a_multiplier_changes_by_a_share_of_itself_with_the_running_divergence_of_its_depth():
    model = our_vit().requires_grad_(requires_grad=False)
    explainer = DiffMaskNetwork("tokens", 4, 16, mul_activation=5.0, add_activation=3.0)
    trainer = DiffMaskTraining(explainer, masking_of(model), recipe(eps=0.1, alpha=10.0, lr_alpha=0.02))
    trainer.depths.load_state_dict(trainer.depths.state_dict() | {"divergence": torch.tensor([0.15, 9.0, 0.0, 9.0])})
    trainer.price(torch.tensor([0, 1, 2, 2]), torch.zeros(4))  # what single images say has no say
    found = [float(alpha.detach()) for alpha in trainer.alphas]
    assert found == pytest.approx([10 * math.exp(0.01), 10 * math.exp(0.02), 10 * math.exp(-0.02), 10.0])


@pytest.mark.parametrize(("compat", "least"), [(True, 0.0), (False, 0.01)])
def test_alpha_stays_between_its_limits(compat, least):
    model = our_vit().requires_grad_(requires_grad=False)
    explainer = DiffMaskNetwork("tokens", 4, 16, mul_activation=5.0, add_activation=3.0)
    for start, divergence, end in ((200.0, 9.0, 200.0), (0.0, 0.0, least)):
        trainer = DiffMaskTraining(explainer, masking_of(model), recipe(alpha=start, compat=compat))
        trainer.depths.divergence.fill_(divergence)
        trainer.price(torch.zeros(4, dtype=torch.int64), torch.full((4,), divergence))
        assert float(trainer.alphas[0].detach()) == pytest.approx(end)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eps": 0.0}, "eps 0.0 must be a number above 0"),
        ({"eps": math.nan}, "eps nan must be a number above 0"),
        ({"alpha": -1.0}, "alpha -1.0 must lie between 0 and 200"),
        ({"alpha": 201.0}, "alpha 201.0 must lie between 0 and 200"),
    ],
)
def test_a_value_out_of_range_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        recipe(**changes)


# --- whole trainings, on pictures of which the classifier needs one known patch


class Patches:
    """16 x 24 grey noise with one bright patch of 4 x 4; the label is its row."""

    def __init__(self, count, seed):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 4, count)
        self.columns = rng.integers(0, 6, count)
        images = rng.integers(90, 110, (count, 3, 16, 24))
        for image, row, column in zip(images, self.labels, self.columns, strict=True):
            image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 230
        self._pixels = torch.from_numpy(images.astype(np.uint8))
        self.nbytes = self._pixels.nbytes

    def __len__(self):
        return len(self.labels)

    def pixels(self, indices):
        return self._pixels[torch.as_tensor(np.asarray(indices))]


def examples(count, seed):
    return Examples(Patches(count, seed), torch.device("cpu"))


def normalize(pixels):
    return pixels * 4 - 2


@pytest.fixture(scope="module")
def run():
    """Runs a small training of a random classifier: (fitted, explainer)."""

    def train(epochs=2, **options):
        torch.manual_seed(0)
        model = our_vit()
        explainer = DiffMaskNetwork(
            "tokens", 4, 16, mul_activation=5.0, add_activation=3.0, compat=options.pop("compat", False)
        )
        settings = recipe(
            epochs=epochs,
            batch_size=16,
            lr=5e-3,
            warmup_steps=3,
            compat=bool(explainer.compat),
            **options.pop("recipe", {}),
        )
        masking = masking_of(model, "tokens", compat=settings.compat)
        fitted = diffmask.fit(
            explainer, masking, model, normalize, examples(50, 1), examples(20, 2), settings,
            seed=4, purpose=("test",), **options,
        )  # fmt: skip
        return fitted, explainer

    return train


class KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 0, 0, 1]),
        ({"recipe": {"every_layer": True}}, [1, 1, 1, 1]),
        ({"compat": True}, [1, 1, 1, 1]),
        ({"recipe": {"weighted_layer_distribution": True}}, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_all_gates_vote_unless_every_layer_is_asked_for(run, monkeypatch, options, expected):
    asked = []

    def noting(*arguments, **named):
        asked.append(arguments[4].tolist())
        return drawn(*arguments, **named)

    drawn = diffmask.drawn
    monkeypatch.setattr(diffmask, "drawn", noting)
    run(epochs=1, **options)
    assert asked == [expected] * 4


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("changes", [{}, {"weighted_layer_distribution": True}])
def test_killed_and_continued_is_the_same_as_uninterrupted(run, tmp_path, monkeypatch, compat, changes):
    options = {"epochs": 3, "recipe": changes, "compat": compat}
    straight, explainer = run(**options)
    options |= {"checkpoint": tmp_path / "c.pt"}
    monkeypatch.setattr(diffmask.DiffMaskLearner, "step_checkpoint_every_s", 0.0)
    step = DiffMaskTraining.step
    for stop in (3, 6, 9):

        def stopping(self, *arguments, stop=stop):
            if self.step_number == stop:
                raise KilledError
            return step(self, *arguments)

        monkeypatch.setattr(DiffMaskTraining, "step", stopping)
        with pytest.raises(KilledError):
            run(**options)
    monkeypatch.setattr(DiffMaskTraining, "step", step)

    def killed(*_):
        raise KilledError

    validate = diffmask.validate
    monkeypatch.setattr(diffmask, "validate", killed)
    with pytest.raises(KilledError):  # after the last step of the last epoch
        run(**options)
    monkeypatch.setattr(diffmask, "validate", validate)
    continued, again = run(**options)
    assert continued.history == straight.history
    for name, value in explainer.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        assert torch.equal(straight.state[name], continued.state[name]), name


def test_a_checkpoint_holds_tensors_and_plain_values_only(run, tmp_path):
    run(checkpoint=tmp_path / "c.pt")
    assert torch.load(tmp_path / "c.pt", weights_only=True)["training"]["step"] == 8


def test_a_checkpoint_of_another_training_is_not_used(run, tmp_path):
    run(checkpoint=tmp_path / "c.pt", identity="a")
    fresh, _ = run(checkpoint=tmp_path / "c.pt", identity="b")
    assert fresh.history == run()[0].history


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_last_checkpoint(run, tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    objective = diffmask_steps.objective
    calls = []

    def failing(*arguments):
        calls.append(1)
        found = objective(*arguments)
        return found._replace(loss=found.loss * math.nan) if len(calls) == 6 else found

    monkeypatch.setattr(diffmask_steps, "objective", failing)
    with pytest.raises(DivergedError, match=r"diverged in step 6: the loss is nan; .*c\.pt; try a smaller lr"):
        run(checkpoint=path)
    kept = torch.load(path, weights_only=True)["training"]
    assert kept["step"] == 4
    assert all(bool(value.isfinite().all()) for value in kept["explainer"].values())


def test_a_tolerance_that_is_never_met_is_said_and_the_best_is_kept(run, caplog):
    fitted, _ = run(recipe={"eps": 1e-9})
    assert "no epoch keeps the divergence of validation images within eps = 1e-09" in caplog.text
    worst = [max(line.soft_divergence, line.hard_divergence) for line in fitted.history]
    assert fitted.best.epoch == 1 + int(np.argmin(worst))


def line(epoch, divergence, kept):
    return diffmask.DiffMaskEpoch(epoch, 1, 0, 0, 0, 0, 0, divergence, 1, kept, divergence, 1, kept)


def test_the_best_epoch_keeps_least_among_those_within_the_tolerance():
    lines = [line(1, 0.05, 0.9), line(2, 0.09, 0.5), line(3, 0.2, 0.1), line(4, 0.08, 0.6)]
    assert min(lines, key=lambda each: each.rank(0.1)).epoch == 2
    assert min(lines, key=lambda each: each.rank(0.01)).epoch == 1


def test_training_stops_when_patience_ends(run, monkeypatch):
    monkeypatch.setattr(diffmask.DiffMaskEpoch, "rank", lambda self, eps: (float(self.epoch != 2),))
    fitted, _ = run(epochs=9, recipe={"patience": 2})
    assert [each.epoch for each in fitted.history] == [1, 2, 3, 4]
    assert fitted.best.epoch == 2


def test_the_classifier_is_left_as_it_was():
    torch.manual_seed(0)
    model = our_vit().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explainer = DiffMaskNetwork("tokens", 4, 16, mul_activation=5.0, add_activation=3.0)
    diffmask.fit(
        explainer, masking_of(model), model, normalize, examples(8, 1), examples(4, 2), recipe(), seed=0, purpose=("x",)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# --- does it find what is needed? 3 x 3 tiles of one colour each; the label is how many are red


class Grids:
    """Grids of tiles of 4 x 4 pixels, as many red ones as the label says; `red` (N, 9) tells where."""

    def __init__(self, count, seed):
        rng = np.random.default_rng(seed)
        self.labels = np.arange(count) % 10
        self.red = torch.from_numpy(rng.permuted(np.arange(9) < self.labels[:, None], axis=1))
        colours = np.where(self.red, 3, rng.choice([0, 1, 2, 4, 5], (count, 9))) + 1
        tiles = np.stack([colours >> 2 & 1, colours >> 1 & 1, colours & 1], axis=1).reshape(count, 3, 3, 3)
        self._pixels = torch.from_numpy(255 * tiles.repeat(4, axis=2).repeat(4, axis=3)).to(torch.uint8)
        self.nbytes = self._pixels.nbytes

    def __len__(self):
        return len(self.labels)

    def pixels(self, indices):
        return self._pixels[torch.as_tensor(np.asarray(indices))]


@pytest.fixture(scope="module")
def counting():
    """A transformer that counts red tiles without a fault."""
    torch.manual_seed(0)
    model = ViTTiny(10, img_size=12, patch_size=4, embed_dim=32, depth=2, num_heads=2)
    grids = Grids(4000, 0)
    images, labels = grids.pixels(range(4000)) / 127.5 - 1, torch.from_numpy(grids.labels)
    optimizer = torch.optim.Adam(model.parameters())
    steps = 350
    for step in range(steps):
        chosen = torch.arange(64) + 64 * (step % 62)
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_tiles_that_are_kept_are_the_counted_ones_whatever_the_seed(counting, seed):
    torch.manual_seed(seed)
    masking, device = masking_of(counting), torch.device("cpu")
    train, validation, test = (Examples(Grids(count, k), device) for k, count in ((1, 4000), (2, 200), (3, 500)))

    def normalize(pixels):
        return 2 * pixels - 1

    images = normalize(test.split.pixels(range(500)) / 255)
    explainer = explainer_for(masking, images[:32], hidden=32, mul_activation=5.0, add_activation=5.0)
    settings = recipe(epochs=4, batch_size=32, alpha=2.0, lr=1e-2, lr_placeholder=0.02, lr_alpha=0.01, warmup_steps=100)
    fitted = diffmask.fit(
        explainer, masking, counting, normalize, train, validation, settings, seed=seed, purpose=("test",)
    )
    explainer.load_state_dict(fitted.state)
    assert fitted.best.is_within(0.1)
    scores = diffmask.validate(explainer, masking, normalize, test)
    assert max(scores["soft_divergence"], scores["hard_divergence"]) <= 0.1
    assert scores["hard_agreement"] >= 0.99
    with torch.no_grad():
        kept = explainer.log_kept(masking.intact(images).hidden)[:, :, -1].exp() > 0.5
    red = test.split.red
    some = red.any(dim=1)
    ious = ((kept & red).sum(dim=1) / (kept | red).sum(dim=1))[some]
    assert ious.median() == 1.0
    assert ious.mean() >= 0.98


def test_nothing_is_learnt_from_a_classifier_that_passes_no_gradient_on():
    vectors = golden("train_step")
    trainer = trainer_of(vectors, "explainer.")
    trainer.masking.model.model.classifier.register_forward_hook(lambda module, arguments, values: values.detach())
    with pytest.raises(ModelError, match=r"no gradient .* so no masks can be learnt from it"):
        trainer.step(vectors["images"], given_draws(1, vectors["case0.u"]))
