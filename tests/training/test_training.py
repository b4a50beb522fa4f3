"""Batches, augmentation and the loop that trains a classifier."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.transforms import functional

from heatproof.errors import ConfigError, DivergedError, ModelError, PluginError
from heatproof.training import augmentation, classifier
from heatproof.training.augmentation import Augmentation
from heatproof.training.checkpoints import save_checkpoint
from heatproof.training.classifier import ClassifierRecipe, Named
from heatproof.training.examples import Examples, Removal
from heatproof.training.schedules import WarmUpLinearDecay

CPU = torch.device("cpu")


class Images:
    """Images whose class is the brightest channel, with noise."""

    def __init__(self, count=96, seed=0):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 3, count)
        values = rng.integers(0, 100, (count, 3, 8, 8))
        values[np.arange(count), self.labels] += 60
        self._pixels = torch.from_numpy(values.astype(np.uint8))
        self.nbytes = values.size

    def __len__(self):
        return len(self.labels)

    def pixels(self, indices):
        return self._pixels[torch.as_tensor(np.asarray(indices))]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        return self.head(self.drop(self.norm(self.conv(images)).relu().mean((2, 3))))


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def recipe(**changes):
    standard = {
        "optimizer": Named("torch.optim.Adam", {"lr": 0.02}),
        "scheduler": Named("torch.optim.lr_scheduler.StepLR", {"step_size": 2, "gamma": 0.5}),
        "loss": Named("torch.nn.CrossEntropyLoss"),
        "epochs": 4,
        "batch_size": 16,
        "augmentation": Augmentation(1, (0.5, 0.5, 0.5)),
    }
    return ClassifierRecipe(**(standard | changes))


def fit(module=None, *, recipe=recipe(), purpose=("train",), **options):  # noqa: B008 - never changed
    train, validation = Examples(Images(), CPU), Examples(Images(48, seed=1), CPU)
    return classifier.fit(
        module or net(), lambda p: p - 0.4, train, validation, recipe, seed=0, purpose=purpose, **options
    )


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestExamples:
    def test_streamed_batches_equal_held_ones(self):
        images = Images(10)
        ranks = (
            np.random.default_rng(0).permuted(np.arange(64), axis=0).reshape(1, 8, 8).repeat(10, 0).astype(np.uint16)
        )

        def degrade(pixels, ranks, indices):
            return pixels.masked_fill((ranks < 20)[:, None], 0.25)

        removal = Removal(lambda indices: ranks[indices], degrade)
        order = torch.tensor([7, 1, 1, 9, 0])
        batches = [
            list(Examples(images, CPU, memory_bytes=memory, workers=0, removal=removal).batches(order, 2))
            for memory in (10**9, 0)
        ]
        for held, streamed in zip(*batches, strict=True):
            assert torch.equal(held.pixels, streamed.pixels)
            assert torch.equal(held.labels, streamed.labels)
            assert torch.equal(held.indices, streamed.indices)
        first = batches[0][0]
        assert first.labels.tolist() == images.labels[[7, 1]].tolist()
        assert (first.pixels[:, :, torch.from_numpy(ranks[0].astype(np.int64)) < 20] == 0.25).all()

    def test_pixels_are_in_the_unit_interval(self):
        (batch,) = Examples(Images(4), CPU).batches(torch.arange(4), 8)
        assert torch.equal(batch.pixels * 255, Images(4).pixels(range(4)).float())


class TestAugmentation:
    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 3), st.integers(0, 2**31))
    def test_each_image_is_a_crop_of_its_padded_self_perhaps_mirrored(self, padding, seed):
        pixels = torch.rand(5, 2, 6, 7)
        draws = Augmentation(padding, (0.25, 0.75)).draw(seed, ("x",), 5)
        found = draws.apply(pixels, torch.arange(5))
        padded = torch.tensor([0.25, 0.75])[None, :, None, None].repeat(5, 1, 6 + 2 * padding, 7 + 2 * padding)
        padded[:, :, padding : padding + 6, padding : padding + 7] = pixels
        for i, (row, column) in enumerate(draws.offsets):
            expected = padded[i, :, row : row + 6, column : column + 7]
            assert torch.equal(found[i], expected.flip(2) if draws.mirrored[i] else expected)

    def test_every_offset_and_both_directions_occur(self):
        draws = Augmentation(1).draw(0, ("x",), 500)
        assert set(draws.offsets.ravel().tolist()) == {0, 1, 2}
        assert 0.4 < draws.mirrored.mean() < 0.6

    def test_what_happens_to_an_image_does_not_depend_on_its_batch(self):
        pixels = torch.rand(6, 3, 8, 8)
        draws = Augmentation(2, (0.0, 0.0, 0.0)).draw(0, ("x",), 6)
        assert torch.equal(draws.apply(pixels, torch.arange(6))[4:5], draws.apply(pixels[4:5], torch.tensor([4])))

    def test_no_flip_means_none(self):
        assert not Augmentation(1, flip=False).draw(0, ("x",), 50).mirrored.any()

    def test_what_was_drawn_before_is_drawn_still(self):
        plain, more = (Augmentation(2, noise=noise, rotation=20 * noise).draw(3, ("x",), 50) for noise in (0.0, 1.0))
        np.testing.assert_array_equal(plain.offsets, more.offsets)
        np.testing.assert_array_equal(plain.mirrored, more.mirrored)

    @pytest.mark.parametrize("size", [(24, 24), (16, 30)])
    def test_images_are_turned_as_torchvision_turns_them(self, size):
        images, angles = torch.rand(4, 3, *size), torch.tensor([-20.0, 3.3, 20.0, 90.0])
        found = augmentation.turned(images, angles)
        for turned, image, angle in zip(found, images, angles.tolist(), strict=True):
            expected = functional.rotate(image, angle)
            # Where a centre falls between two pixels, either may be the nearest.
            assert (turned != expected).any(dim=0).float().mean() < 0.01

    def test_images_are_blurred_as_torchvision_blurs_them(self):
        images, sigmas = torch.rand(3, 3, 9, 12), torch.tensor([0.1, 0.7, 2.0])
        for found, image, sigma in zip(augmentation.blurred(images, sigmas), images, sigmas.tolist(), strict=True):
            torch.testing.assert_close(found, functional.gaussian_blur(image, [3, 3], [sigma, sigma]))

    def test_angles_and_widths_fill_their_ranges(self):
        draws = Augmentation(rotation=20.0, blur=True).draw(0, ("x",), 2000)
        for drawn, low, high in ((draws.angles, -20, 20), (draws.sigmas, 0.1, 2.0)):
            assert low <= drawn.min() < low + 0.02 * (high - low)
            assert high - 0.02 * (high - low) < drawn.max() <= high
            np.testing.assert_allclose(drawn.mean(), (low + high) / 2, atol=0.02 * (high - low))

    def test_noise_has_the_asked_spread_and_is_another_for_each_image_and_epoch(self):
        still = torch.zeros(20, 3, 16, 16)
        first, second = (
            Augmentation(noise=0.5).draw(0, ("epoch", number), 20).disturb(still, torch.arange(20)) for number in (1, 2)
        )
        assert abs(first.std().item() - 0.5) < 0.02
        assert abs(first.mean().item()) < 0.02
        everything = torch.cat([first, second]).flatten(1)
        assert (torch.corrcoef(everything).fill_diagonal_(0).abs() < 0.2).all()

    def test_how_an_image_is_disturbed_does_not_depend_on_its_batch(self):
        images = torch.rand(6, 3, 8, 8)
        draws = Augmentation(noise=1.0, rotation=20.0, blur=True).draw(0, ("x",), 6)
        whole = draws.disturb(images, torch.arange(6))
        assert torch.equal(whole[4:5], draws.disturb(images[4:5], torch.tensor([4])))
        assert not torch.equal(whole, images)

    def test_noise_comes_first_then_rotation_then_blur(self):
        images, everything = torch.rand(3, 3, 8, 8), torch.arange(3)
        together = Augmentation(noise=1.0, rotation=20.0, blur=True).draw(0, ("x",), 3).disturb(images, everything)
        for step in ({"noise": 1.0}, {"rotation": 20.0}, {"blur": True}):
            images = Augmentation(**step).draw(0, ("x",), 3).disturb(images, everything)
        assert torch.equal(images, together)


class TestSchedule:
    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 30), st.integers(1, 30))
    def test_the_rate_rises_and_falls_in_straight_lines(self, warmup, more):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
        total = warmup + more
        schedule, rates = WarmUpLinearDecay(optimizer, total, warmup), []
        for _ in range(total + 1):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        expected = [
            2.0 * (step / warmup if step < warmup else (total - step) / (total - warmup)) for step in range(total + 1)
        ]
        np.testing.assert_allclose(rates, expected, atol=1e-12)
        assert optimizer.param_groups[0]["lr"] == 0.0  # and stays there

    def test_a_warm_up_without_end_is_refused(self):
        scheduler = Named("heatproof.training.schedules.WarmUpLinearDecay", {"warmup_steps": 4})
        with pytest.raises(PluginError, match=r"warmup_steps: 4 must be less than the 4 steps .*scheduler_per_batch"):
            fit(recipe=recipe(scheduler=scheduler))
        per_batch = fit(recipe=recipe(scheduler=scheduler, scheduler_per_batch=True))
        assert per_batch.history[1].learning_rate == pytest.approx(0.02 * 18 / 20)

    def test_a_scheduler_is_told_the_steps_only_where_it_must_be(self):
        for asked, expected in (
            (Named("torch.optim.lr_scheduler.OneCycleLR", {"max_lr": 1.0}), {"max_lr": 1.0}),
            (Named("heatproof.training.schedules.WarmUpLinearDecay"), {"total_steps": 7}),
            (Named("heatproof.training.schedules.WarmUpLinearDecay", {"total_steps": 3}), {"total_steps": 3}),
        ):
            assert classifier.told_total_steps(asked, 7).options == expected


class TestFit:
    def test_it_learns(self):
        fitted = fit()
        assert fitted.best.validation_accuracy > 0.9
        assert fitted.history[fitted.best_epoch - 1].validation_accuracy == fitted.best.validation_accuracy

    def test_the_earliest_of_equally_good_epochs_is_kept(self):
        accuracies = [line.validation_accuracy for line in fit(recipe=recipe(epochs=8)).history]
        fitted = fit(recipe=recipe(epochs=8))
        assert fitted.best_epoch == accuracies.index(max(accuracies)) + 1

    def test_equal_seeds_give_equal_bytes_and_other_runs_others(self):
        assert same(fit().state, fit().state)
        assert not same(fit().state, fit(purpose=("other",)).state)

    def test_the_learning_rate_follows_the_schedule(self):
        assert [line.learning_rate for line in fit().history] == [0.02, 0.02, 0.01, 0.01]

    def test_killed_and_continued_equals_uninterrupted(self, tmp_path):
        checkpoint = tmp_path / "c.pt"

        def stop_after_two(history):
            if len(history) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(checkpoint=checkpoint, identity="a", on_epoch=stop_after_two)
        lines = []
        continued = fit(
            net(seed=9), checkpoint=checkpoint, identity="a", on_epoch=lambda history: lines.append(history[-1].epoch)
        )
        assert lines == [3, 4]
        whole = fit()
        assert same(continued.state, whole.state)
        assert continued.history == whole.history

    def test_killed_and_continued_equals_uninterrupted_with_a_schedule_per_batch_and_all_augmentation(self, tmp_path):
        asked = recipe(
            optimizer=Named("torch.optim.RAdam", {"lr": 0.02, "weight_decay": 0.01, "decoupled_weight_decay": True}),
            scheduler=Named("heatproof.training.schedules.WarmUpLinearDecay", {"warmup_steps": 3}),
            scheduler_per_batch=True,
            augmentation=Augmentation(1, (0.5, 0.5, 0.5), noise=0.1, rotation=20.0, blur=True),
        )

        def stop(history):
            if len(history) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(checkpoint=tmp_path / "c.pt", identity="a", on_epoch=stop, recipe=asked)
        continued = fit(net(seed=9), checkpoint=tmp_path / "c.pt", identity="a", recipe=asked)
        whole = fit(recipe=asked)
        assert same(continued.state, whole.state)
        assert continued.history == whole.history
        # 96 images in batches of 16: 6 steps an epoch, 24 in all.
        np.testing.assert_allclose(
            [line.learning_rate for line in whole.history],
            [0.0, 0.02 * 18 / 21, 0.02 * 12 / 21, 0.02 * 6 / 21],
        )

    def test_training_ends_when_nothing_has_been_gained_for_as_long_as_is_allowed(self, tmp_path):
        whole = fit(recipe=recipe(epochs=12))
        accuracies = [line.validation_accuracy for line in whole.history]
        best = np.maximum.accumulate(accuracies)
        # The first epoch after which two more have not beaten what there was.
        expected = next(
            n for n in range(3, 13) if best[n - 1] == best[n - 3] and accuracies.index(best[n - 1]) <= n - 3
        )
        patient = recipe(epochs=12, patience=2)
        assert expected < 12
        assert fit(recipe=patient, checkpoint=tmp_path / "c.pt").history == whole.history[:expected]
        assert fit(net(seed=9), recipe=patient, checkpoint=tmp_path / "c.pt").history == whole.history[:expected]

    def test_no_epoch_follows_one_that_is_enough_also_after_a_restart(self, tmp_path):
        whole = fit()
        enough = {"is_enough": lambda line: line.epoch == 2, "checkpoint": tmp_path / "checkpoint.pt"}
        assert fit(**enough).history == whole.history[:2]
        assert fit(net(seed=9), **enough).history == whole.history[:2]

    def test_a_checkpoint_of_another_training_is_not_used(self, tmp_path):
        fit(checkpoint=tmp_path / "c.pt", identity="a", recipe=recipe(epochs=2))
        lines = []
        fit(checkpoint=tmp_path / "c.pt", identity="b", on_epoch=lambda history: lines.append(history[-1].epoch))
        assert lines == [1, 2, 3, 4]

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x05\x06".ljust(22)])
    def test_a_damaged_checkpoint_is_named_and_the_training_starts_again(self, tmp_path, caplog, content):
        (tmp_path / "c.pt").write_bytes(content)
        fitted = fit(checkpoint=tmp_path / "c.pt", identity="a")
        assert [record.getMessage() for record in caplog.records] == [
            f"{tmp_path / 'c.pt'}: damaged; the training starts again"
        ]
        assert fitted.history == fit().history

    def test_a_state_with_other_parts_is_not_used(self, tmp_path, caplog):
        """Such as that of an earlier version."""
        caplog.set_level("INFO")
        save_checkpoint(tmp_path / "c.pt", "a", {"history": [], "best": None, "network": {}})
        assert fit(checkpoint=tmp_path / "c.pt", identity="a").history == fit().history
        assert "c.pt: of another version; the training starts again" in caplog.text

    def test_divergence_says_in_which_epoch(self):
        with pytest.raises(DivergedError, match=r"diverged in epoch 1: .* smaller optimizer\.lr than 1e\+30"):
            fit(recipe=recipe(optimizer=Named("torch.optim.SGD", {"lr": 1e30}), scheduler=None))

    def test_wrong_options_are_found_before_training(self):
        with pytest.raises(PluginError, match="unknown option 'lrr'; did you mean 'lr'"):
            recipe(optimizer=Named("torch.optim.Adam", {"lrr": 1})).check()

    @pytest.mark.parametrize(
        "changes",
        [
            {"scheduler": Named("torch.optim.lr_scheduler.ReduceLROnPlateau")},
            {"optimizer": Named("torch.optim.LBFGS")},
        ],
    )
    def test_a_step_that_needs_more_than_training_gives_is_refused(self, changes):
        with pytest.raises(PluginError, match=r"each step needs (metrics|closure), which training does not give"):
            recipe(**changes).check()

    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            # With as many images as classes in a batch, labels would be broadcast without an error.
            (
                Named("torch.nn.MSELoss"),
                "MSELoss does not compare logits with classes; known are torch.nn.CrossEntropyLoss",
            ),
            (Named("torch.nn.NLLLoss"), "NLLLoss takes logarithms of probabilities"),
            (Named("torch.nn.CrossEntropyLoss", {"reduction": "none"}), r"gives shape \(3,\) for a batch"),
        ],
    )
    def test_losses_that_would_train_for_something_else_are_refused(self, loss, message):
        with pytest.raises(ConfigError, match=message):
            fit(recipe=recipe(loss=loss, batch_size=3))

    def test_logarithms_of_probabilities_have_the_loss_of_their_classes(self):
        module = nn.Sequential(net(), nn.LogSoftmax(dim=1))
        assert fit(module, recipe=recipe(loss=Named("torch.nn.NLLLoss"))).best.validation_accuracy > 0.9

    def test_a_network_without_a_gradient_is_refused(self):
        with pytest.raises(ModelError, match="Net: cannot be trained, because the loss has no gradient"):
            fit(net().requires_grad_(requires_grad=False))

    def test_bfloat16_and_channels_last_learn_too(self):
        assert fit(recipe=recipe(precision="bfloat16", channels_last=True)).best.validation_accuracy > 0.9

    def test_predictions_leave_the_mode_as_it_was(self):
        module = net().train()
        classifier.predict(module, lambda p: p, Examples(Images(8), CPU), batch_size=3)
        assert module.training
