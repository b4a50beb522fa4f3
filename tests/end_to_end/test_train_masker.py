"""The stage train-masker and its method on generated images: what they leave, what is not done twice, and what is refused."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from heatproof import artefacts, config, removal, store
from heatproof.errors import HeatproofError
from heatproof.methods import masker as methods
from heatproof.models import load
from heatproof.models.inpainting import GatedUNet
from heatproof.models.loading import classes_in
from heatproof.models.masker import Masker, MaskerForm
from heatproof.models.masker_files import read_masker
from heatproof.models.resnet_cifar import NarrowResNet8
from heatproof.stages import train_masker
from heatproof.stages.run import Run
from heatproof.training.masker_steps import MaskerRecipe, MaskerTraining
from tests.end_to_end.conftest import heatproof, results
from tests.end_to_end.test_messages import refused

SECTION = """
train_masker:
    model: *TRAINED
    form: [fix, ca]
    taps: [relu, layer3.0.relu]
    width: 8
    mask_stride: 2
    nb_epochs: 2
    batch_size: 32
    share: 0.5
    masker_lr: 0.01
    zoo_every: 2
    permuted_labels: true
    sample_images: 3
    augmentation: *AUGMENTATION
localise: {test_samples: 40, controls: [random, oracle], mask: as_is}
sanity_checks: {test_samples: 8, orders: [top_down], layer_depth: 1, random_logit: false, controls: [sobel]}
"""
METHOD = "{{name: {0}, method: heatproof.methods.masker.Masker, kwargs: {{checkpoint: '${{outdir}}/train_masker/{0}/masker.pth'{1}}}}}"
METHODS = f"[{METHOD.format('fix', '')}, {METHOD.format('ca', ', classifier: checkpoint')}]"


@pytest.fixture(scope="module")
def trained(small_trained):
    """The configuration after training of classifier and maskers: its path."""
    path = small_trained("train_masker")
    path.write_text(path.read_text() + SECTION)
    assert heatproof("train-masker", "--config", path) == 0
    return path


def folder(path):
    return path.parent / "out" / "train_masker"


def test_each_form_leaves_its_masker_and_how_it_went(trained):
    for name in ("fix", "ca", "fix_permuted", "ca_permuted"):
        with (folder(trained) / name / "history.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        assert [line["epoch"] for line in lines] == ["1", "2"]
        assert 0 < float(lines[-1]["validation_area"]) < 1
        assert {p.name for p in (folder(trained) / name).iterdir()} == {
            "masker.pth", "masker.json", "history.csv", "masks.png", "tensorboard"
        } | ({"classifier.pth", "classifier.json"} if name.startswith("ca") else set())  # fmt: skip
        assert list((folder(trained) / name / "tensorboard").iterdir())


def test_fix_keeps_the_classifier_and_ca_brings_its_own(trained):
    weights = trained.parent / "out" / "train_cls" / "best_model.pth"
    fix, ca = (read_masker(folder(trained) / name / "masker.pth") for name in ("fix", "ca"))
    assert fix.classifier is None
    assert fix.classifier_sha256 == fix.started_from == ca.started_from
    before, after = (
        torch.load(weights, weights_only=True),
        torch.load(folder(trained) / "ca" / "classifier.pth", weights_only=True),
    )
    assert before.keys() == after.keys() == ca.classifier.keys()
    assert not torch.equal(before["linear.weight"], after["linear.weight"])
    assert torch.equal(ca.classifier["linear.weight"], after["linear.weight"])


def test_permuted_labels_give_another_masker(trained):
    own, other = (read_masker(folder(trained) / name / "masker.pth").state for name in ("fix", "fix_permuted"))
    assert not torch.equal(own["final.0.weight"], other["final.0.weight"])


def test_nothing_is_trained_twice_and_a_change_names_itself(trained, caplog):
    caplog.set_level("INFO")
    before = results(trained)
    assert heatproof("train-masker", "--config", trained) == 0
    assert results(trained) == before
    assert caplog.text.count("masker.pth: complete") == 4
    assert heatproof("train-masker", "--config", trained, "--dry-run", "train_masker.mask_out.lambda_r=3") == 0
    assert "stale, to be trained again: training.mask_out.lambda_r: null -> 3" in caplog.text
    caplog.clear()
    assert heatproof("train-masker", "--config", trained, "--dry-run", "train_masker.zoo_every=9") == 0
    assert caplog.text.count("masker.pth: complete") == 2  # FIX has no zoo
    assert results(trained) == before


def test_a_killed_training_goes_on_to_the_same_bytes(trained, tmp_path, monkeypatch):
    shutil.copytree(trained.parent, tmp_path / "run")
    path = tmp_path / "run" / "small.yml"
    path.write_text(path.read_text().replace(str(trained.parent), str(tmp_path / "run")))
    shutil.rmtree(folder(path))
    show = train_masker.Scalars.show

    def killed(scalars, name, picture, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        show(scalars, name, picture, epoch)

    monkeypatch.setattr(train_masker.Scalars, "show", killed)
    command = ("train-masker", "--config", path, "train_masker.form=ca", "train_masker.permuted_labels=false")
    assert heatproof(*command) == 130
    assert {p.name for p in (folder(path) / "ca").iterdir()} == {"checkpoint.pt", "history.csv", "tensorboard"}
    monkeypatch.undo()
    assert heatproof(*command) == 0
    wanted, found = results(trained), results(path)
    for name in ("masker.pth", "classifier.pth", "history.csv", "masks.png", "masker.json"):
        assert found[f"train_masker/ca/{name}"] == wanted[f"train_masker/ca/{name}"], name


def test_maskers_are_methods_among_others(trained):
    methods = f"extract_cams.attribution_methods={METHODS}"
    assert heatproof("extract-attribution-maps", "--config", trained, methods) == 0
    maps = {name: store.MapReader(trained.parent / "out" / "extract_cams" / name / "test.h5") for name in ("fix", "ca")}
    masker = trained.parent / "out" / "train_masker" / "ca" / "masker.pth"
    assert maps["ca"].origin["method"]["kwargs"]["checkpoint"] == artefacts.sha256(masker)  # wherever it lies
    values = maps["fix"].maps(np.arange(40))
    assert 0 <= values.min() <= values.max() <= 1
    assert heatproof("localise", "--config", trained, methods) == 0
    for name in ("fix", "ca"):
        summary = json.loads((trained.parent / "out" / "localise" / f"{name}.json").read_text())
        assert {
            "F1",
            "F1a",
            "OM",
            "LE",
            "SM",
            "SM1",
            "SM2",
            "top1",
            "top5",
            "sm_acc",
            "binarized",
            "avg_mask",
            "std_mask",
            "entropy",
            "tv",
        } <= summary.keys()
        assert None not in summary.values()


def test_sanity_checks_randomise_the_classifier_and_keep_the_masker(trained):
    logits = METHODS.replace("/masker.pth'", "/masker.pth', output: logits")
    assert heatproof("sanity-checks", "--config", trained, f"extract_cams.attribution_methods={logits}") == 0
    with (trained.parent / "out" / "sanity_checks" / "results.csv").open(newline="") as file:
        last = [row for row in csv.DictReader(file) if row["verdict"] and row["score"] == "spearman"]
    similar = {row["method"]: float(row["mean"]) for row in last}
    assert abs(similar["fix"]) < 0.9
    assert similar["ca"] == pytest.approx(
        1.0
    )  # it reads the classifier of its checkpoint, which is not the randomised one


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_masker.taps=[layer3.0.rleu]", "layer 'layer3.0.rleu': NarrowResNet8 has no such layer; did you mean 'layer3.0.relu'?"),
        ("train_masker.taps=[linear]", "layer 'linear': gives (1, 4); a map needs a layer with (N, C, h, w)"),
        ("train_masker.layouts={layer4: tokens}", "train_masker.layouts: 'layer4' is none of taps; did you mean 'layer3.0.relu'?"),
        ("train_masker.layouts={relu: nhwc}", "masker: tap 'relu': layout 'nhwc' is unknown; it can be channels_first"),
        ("train_masker.form=fox", "train_masker.form[0]: 'fox': input should be 'fix' or 'ca'"),
        ("train_masker.mask_in.lambda_rr=1", "train_masker.mask_in.lambda_rr: unknown key; did you mean 'lambda_r'?"),
        ("train_masker.batch_size=500", "128 images for an epoch do not fill a batch of 500"),
        ("train_masker.model.pretrained_weights=none.pth", "train_masker.model.pretrained_weights: none.pth: no such file; correct the path"),
        ("train_masker.infiller={name: heatproof.models.Normalization, mean: [0], std: [1]}", "has no generate(images, hole)"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_line_and_nothing_is_lost(trained, capsys, override, message):
    before = results(trained)
    assert message in refused(capsys, "train-masker", "--config", trained, override)
    assert results(trained) == before


def test_every_option_of_the_network_and_an_infiller_by_its_path_can_be_asked_for(trained):
    options = (
        "form=fix", "permuted_labels=false", "nb_epochs=1", "takes_area=true", "takes_class=true", "gumbel=soft", "upsample=bilinear",
        "precision=bfloat16", "infiller={name: tests.training.test_masker.Blur}", "infill=out", "target=predicted",
        "mask_out={criterion: kldivergence, prior: {kl: backward, compare: divide}}", "layouts={relu: channels_first}",
    )  # fmt: skip
    outdir = trained.parent / "options"
    weights = f"train_masker.model.pretrained_weights={trained.parent / 'out' / 'train_cls' / 'best_model.pth'}"
    asked = (f"outdir={outdir}", weights, *(f"train_masker.{option}" for option in options))
    assert heatproof("train-masker", "--config", trained, *asked) == 0
    form = read_masker(outdir / "train_masker" / "fix" / "masker.pth").form
    assert form.layouts == ("channels_first", None)
    assert (form.takes_area, form.classes, form.gumbel, form.upsample) == (True, 4, "soft", "bilinear")


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ("blur", removal.WholePictures),
        ("{name: telea}", removal.WholePictures),
        ("{name: blur, sigma: 0.1}", removal.WholePictures),
        ("{name: learned, checkpoint: learned.pth}", removal.LearnedInfill),
        ("{name: LearnedInfill, checkpoint: learned.pth}", removal.LearnedInfill),
        ("{name: heatproof.removal.normalised_infill, infill: LearnedInfill, checkpoint: learned.pth}", removal.LearnedInfill),
        ("{name: heatproof.removal.NormalisedInfill, infill: learned, checkpoint: learned.pth}", removal.LearnedInfill),
        ("mine", removal.LearnedInfill),
        ("'infill:mine'", removal.LearnedInfill),
    ],
)  # fmt: skip
def test_an_infiller_is_named_like_any_fill_and_gets_pixels(trained, monkeypatch, asked, kind):
    monkeypatch.chdir(trained.parent)
    torch.save(GatedUNet(3, 4).state_dict(), "learned.pth")
    run = Run(config.read(trained, [f"train_masker.infiller={asked}", ENTRIES]))
    section = run.config.train_masker
    infiller = train_masker._infiller(run, section, run.trained(section.model))
    assert isinstance(infiller, kind)
    pixels = torch.rand(2, 3, 32, 32)
    assert infiller.generate(pixels, torch.rand(2, 1, 32, 32)).shape == pixels.shape


ENTRIES = "infill={infillers: [{name: mine, infiller: LearnedInfill, kwargs: {checkpoint: learned.pth}}, {name: mean, infiller: telea}]}"


class WantsNormalization:
    def __init__(self, normalization):
        pass

    def generate(self, images, hole):
        return images


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("blurr", "fill: there is no 'blurr'; did you mean 'blur'?"),
        ("'infill:meine'", "train_masker.infiller: infill.infillers has no 'meine'; did you mean 'mine'?"),
        ("{name: mine, width: 3}", "train_masker.infiller: mine is one of infill.infillers, which has its options; give none here"),
        ("mean", "train_masker.infiller: mean is a fill, and in infill.infillers the name of another, telea; write infill:mean"),
        ("ca_gan", "ca_gan: option 'weights' is missing"),
        ("{name: math.pi}", "math.pi: is not callable"),
        ("{name: tests.end_to_end.test_train_masker.WantsNormalization}", "takes a normalization, but infillers get pixels in [0, 1]"),
    ],
)  # fmt: skip
def test_an_infiller_that_cannot_be_used_is_one_line(trained, asked, message):
    run = Run(config.read(trained, [f"train_masker.infiller={asked}", ENTRIES]))
    section = run.config.train_masker
    with pytest.raises(HeatproofError, match=re.escape(message)):
        train_masker._infiller(run, section, run.trained(section.model))


def test_an_infiller_that_changes_makes_a_masker_stale(trained):
    def origin(*overrides):
        run = Run(config.read(trained, [ENTRIES, *overrides]))
        return train_masker._origin(run, run.config.train_masker, train_masker.Job("fix", False))

    plain, blur, wider = (
        origin(*o) for o in ((), ("train_masker.infiller=blur",), ("train_masker.infiller={name: blur, sigma: 0.1}",))
    )
    assert len({artefacts.canonical(one) for one in (plain, blur, wider)}) == 3


def test_no_term_at_all_is_one_line(trained, capsys):
    none = ("train_masker.mask_in.criterion=none", "train_masker.mask_out.criterion=none")
    assert "criterion are both none" in refused(capsys, "train-masker", "--config", trained, *none)


def test_labels_that_the_classifier_does_not_know_are_one_line(trained, capsys):
    """As for photographs of breeds and a classifier of something else: its own answers can be explained."""
    path = trained.parent / "fewer.yml"
    path.write_text(trained.read_text().replace("NarrowResNet8}", "NarrowResNet8, constructor_args: {num_classes: 3}}"))
    fewer = ("outdir=" + str(trained.parent / "fewer"), "train_cls.model.constructor_args.num_classes=4")
    message = refused(capsys, "train-masker", "--config", path, *fewer)
    assert "no such file of weights" in message
    state = torch.load(trained.parent / "out" / "train_cls" / "best_model.pth", weights_only=True)
    state = {name: value[:3] if name.startswith("linear.") else value for name, value in state.items()}
    weights = trained.parent / "fewer" / "train_cls" / "best_model.pth"
    weights.parent.mkdir(parents=True)
    torch.save(state, weights)
    known = "train_masker.model.normalization={mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}"
    message = refused(capsys, "train-masker", "--config", path, *fewer, known)
    assert "gives 3 outputs, and Planted has 4 classes" in message
    names = trained.parent / "names.txt"
    names.write_text("one\ntwo\nthree\n")
    known = (known, f"train_masker.model.class_names={names}")
    message = refused(capsys, "train-masker", "--config", path, *fewer, *known)
    assert (
        "label 3 (rising) is no class of the classifier, which has 3; mend model, or set train_masker.target: predicted"
        in message
    )
    options = (
        "train_masker.target=predicted",
        "train_masker.form=fix",
        "train_masker.permuted_labels=false",
        "train_masker.nb_epochs=1",
    )
    assert heatproof("train-masker", "--config", path, *fewer, *known, *options) == 0
    with (trained.parent / "fewer" / "train_masker" / "fix" / "history.csv").open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert float(line["validation_accuracy"]) == 1.0


def test_a_masker_of_another_classifier_and_a_missing_one_are_one_line(trained, capsys):
    entry = "extract_cams.attribution_methods=[{name: mine, method: heatproof.methods.masker.Masker, kwargs: {checkpoint: '%s'}}]"
    message = refused(capsys, "extract-attribution-maps", "--config", trained, entry % "none/masker.pth")
    assert "none/masker.pth: no such masker; correct the path, train one (train-masker)" in message
    message = refused(
        capsys, "extract-attribution-maps", "--config", trained, entry % (folder(trained) / "ca" / "masker.pth")
    )
    assert "reads the classifier as CA training has left it" in message
    assert config.read(trained).train_masker.form == ["fix", "ca"]


def test_ca_explains_its_own_classifier(trained):
    entry = METHOD.format("ca", "")
    weights = f"extract_cams.model.pretrained_weights={folder(trained) / 'ca' / 'classifier.pth'}"
    others = (
        "outdir=" + str(trained.parent / "own"),
        f"extract_cams.attribution_methods=[{entry}]",
        "extract_cams.controls=[]",
    )
    shutil.copytree(folder(trained), trained.parent / "own" / "train_masker")
    assert heatproof("extract-attribution-maps", "--config", trained, *others, weights) == 0
    methods = f"extract_cams.attribution_methods={METHODS}"
    assert heatproof("extract-attribution-maps", "--config", trained, methods) == 0
    run = Run(config.read(trained))
    own = store.MapReader(trained.parent / "own" / "extract_cams" / "ca" / "test.h5")
    beside = store.MapReader(run.config.outdir / "extract_cams" / "ca" / "test.h5")
    np.testing.assert_array_equal(own.maps(np.arange(20)), beside.maps(np.arange(20)))


def published(path, **changes):
    """A checkpoint in the published form, of a small classifier."""
    torch.manual_seed(0)
    form = MaskerForm(taps=("layer2", "layer3"), channels=(16, 16), indices=(3, 4))
    classifier = NarrowResNet8(5).state_dict() | changes
    torch.save(
        {
            "state_dict_masker": Masker(form).state_dict(),
            "state_dict_classifier": classifier,
            "args": {"masker_use_layers": "3,4"},
        },
        path,
    )
    return path


def test_a_published_checkpoint_becomes_a_masker_that_explains_its_classifier(tmp_path, capsys):
    arch = (
        "--arch",
        "heatproof.models.resnet_cifar.NarrowResNet8",
        "--taps",
        "conv1",
        "relu",
        "layer1",
        "layer2",
        "layer3",
    )
    assert heatproof("import-masker", published(tmp_path / "fix.chk"), tmp_path / "fix", *arch) == 0
    saved = read_masker(tmp_path / "fix" / "masker.pth")
    assert saved.form.taps == ("layer2", "layer3")
    loaded = load(arch[1], num_classes=5, pretrained_weights=tmp_path / "fix" / "classifier.pth")
    assert loaded.normalization.mean == (0.485, 0.456, 0.406)
    assert loaded.weights_sha256 == saved.classifier_sha256
    method = methods.Masker(
        loaded.module, str(tmp_path / "fix" / "masker.pth"), classifier_sha256=loaded.weights_sha256
    )
    assert method(torch.randn(2, 3, 64, 64), torch.tensor([0, 1])).shape == (2, 64, 64)


def test_the_class_count_of_a_published_checkpoint_does_not_depend_on_the_order_of_its_tensors(tmp_path):
    path = published(tmp_path / "fix.chk")
    content = torch.load(path, weights_only=True)
    content["state_dict_classifier"] = dict(sorted(content["state_dict_classifier"].items()))
    state = content["state_dict_classifier"]
    content["state_dict_classifier"] = state = {name: state[name] for name in reversed(state)}
    arch = "heatproof.models.resnet_cifar.NarrowResNet8"
    assert classes_in(state, arch, channels=3, where=str(path)) == 5


def test_a_published_checkpoint_that_does_not_fit_leaves_nothing(tmp_path, capsys):
    arch = (
        "--arch",
        "heatproof.models.resnet_cifar.NarrowResNet8",
        "--taps",
        "conv1",
        "relu",
        "layer1",
        "layer2",
        "layer3",
    )
    none = tmp_path / "none"
    assert "none.chk: no such checkpoint; the published ones" in refused(
        capsys, "import-masker", tmp_path / "none.chk", none
    )
    other = published(tmp_path / "other.chk", **{"linear.weight": torch.zeros(5, 8)})
    message = refused(capsys, "import-masker", other, none, *arch)
    assert "state_dict_classifier: does not fit" in message
    assert "linear.weight has shape (5, 8) in the file and (5, 16) in the model" in message
    wrong = ("--taps", "conv1", "relu", "layer1", "layer2", "layer4")
    assert "NarrowResNet8 has no such layer; did you mean" in refused(
        capsys, "import-masker", published(tmp_path / "fix.chk"), none, *arch[:2], *wrong
    )
    assert not none.exists()


# --- the published settings

PUBLISHED = json.loads((Path(__file__).parents[1] / "golden" / "casme" / "config.json").read_text())


@pytest.mark.parametrize("form", ["fix", "ca"])
def test_the_defaults_are_the_published_settings(trained, form):
    run = Run(config.read(trained))
    model = run.config.train_masker.model
    section = config.TrainMasker(model=model, form=[form], taps=["layer3"])
    recipe = train_masker._recipe(run, section, train_masker.Job(form, False), run.trained(model))
    wanted = PUBLISHED[form]
    found = {
        "epochs": recipe.epochs, "batch_size": recipe.batch_size, "perc_of_training": recipe.share, "lr": recipe.classifier_rate,
        "lr_casme": recipe.masker_rate, "lrde": recipe.decay_every, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay,
        "upsample": section.upsample, "f_size": recipe.zoo_size, "prob_historic": recipe.historic_probability,
        "mask_in_objective_type": recipe.mask_in.objective, "mask_in_objective_direction": recipe.mask_in.direction,
        "mask_in_lambda_r": recipe.mask_in.lambda_r, "mask_in_lambda_tv": recipe.mask_in.lambda_tv, "mask_in_weight": recipe.mask_in.weight,
        "mask_out_objective_type": recipe.mask_out.objective, "mask_out_objective_direction": recipe.mask_out.direction,
        "mask_out_lambda_r": recipe.mask_out.lambda_r, "mask_out_lambda_tv": recipe.mask_out.lambda_tv, "mask_out_weight": recipe.mask_out.weight,
        "prob_loss_func": section.area_distance, "apply_gumbel_tau": section.temperature, "add_prob_layers": section.takes_area,
        "add_class_ids": section.takes_class, "infiller_model": section.infiller,
    }  # fmt: skip
    assert found == {name: wanted[name] for name in found}
    assert section.zoo_every == PUBLISHED["ca"]["save_freq"]  # FIX has no zoo


def test_the_learning_rate_falls_as_published():
    for decay, rates in PUBLISHED["lr_per_epoch_base_0.001"].items():
        recipe = MaskerRecipe(decay_every=int(decay))
        training = MaskerTraining(NarrowResNet8(2), Masker(MaskerForm(taps=("relu",), channels=(16,))), recipe)
        for epoch, rate in enumerate(rates):
            training.set_rates(epoch)
            assert training.of_masker.param_groups[0]["lr"] == pytest.approx(rate)
