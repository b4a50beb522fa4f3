"""The configuration file: strict, safe, and errors that name what to mend."""

import json
from pathlib import Path

import pytest

from heatproof import config
from heatproof.errors import ConfigError
from heatproof.stages.registry import STAGES

ROOT = Path(__file__).parent.parent
SMALL = """
outdir: runs/x
data: {dataset: Planted}
train_cls: &TRAIN
    model: {arch: heatproof.models.resnet_cifar.ResNet8}
extract_cams:
    model: {arch: heatproof.models.resnet_cifar.ResNet8, pretrained_weights: '${outdir}/train_cls/best_model.pth'}
    attribution_methods: &METHODS
        - {name: gradcam, method: heatproof.methods.cam.GradCam, kwargs: {layer: layer3.0.relu}}
retrain_cls:
    <<: *TRAIN
    attribution_methods: *METHODS
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yml")), ids=lambda path: path.name)
def test_every_configuration_that_we_ship_is_valid(path):
    assert config.read(path).outdir.parts[0] == "runs"


def test_outdir_is_substituted_after_overrides(path):
    assert config.read(path, ["outdir=elsewhere"]).extract_cams.model.pretrained_weights == (
        "elsewhere/train_cls/best_model.pth"
    )


def test_an_override_changes_one_place_although_yaml_aliases_share_it(path):
    read = config.read(path, ["extract_cams.attribution_methods.0.kwargs.layer=layer1", "train_cls.model.arch=a.B"])
    assert read.extract_cams.attribution_methods[0].kwargs == {"layer": "layer1"}
    assert read.retrain_cls.attribution_methods[0].kwargs == {"layer": "layer3.0.relu"}
    assert read.retrain_cls.model.arch == "heatproof.models.resnet_cifar.ResNet8"


OTHER_NAMES = [(stage.command, stage.section) for stage in STAGES.values() if stage.command != stage.section]


@pytest.mark.parametrize(("command", "section"), OTHER_NAMES)
def test_a_stages_command_names_its_section_in_files_and_overrides(path, command, section):
    path.write_text(text_with(section, section))
    expected = config.read(path)
    assert getattr(expected, section) is not None
    path.write_text(text_with(section, command))
    assert config.read(path) == expected
    assert config.read(path, [f"{command}={NEEDED[section]}"]) == config.read(path, [f"{section}={NEEDED[section]}"])
    path.write_text(f"{text_with(section, command)}\n{section}: {{}}\n")
    with pytest.raises(ConfigError, match=rf"c.yml: {command} and {section} name the same section; keep one of them$"):
        config.read(path)


MODEL = "{arch: a.B}"
NEEDED = dict.fromkeys((section for _, section in OTHER_NAMES), "{}")
NEEDED |= {
    "train_cls": f"{{model: {MODEL}}}",
    "train_diffmask": f"{{model: {MODEL}}}",
    "train_masker": f"{{model: {MODEL}, taps: [layer1]}}",
    "extract_cams": f"{{model: {MODEL}, attribution_methods: [{{name: a, method: x.Y}}]}}",
    "retrain_cls": f"{{model: {MODEL}}}",
    "tests": "[{name: a, test: x.y}]",
}  # fmt: skip


def text_with(section, name):
    """A small file with one more section, under this name."""
    others = {"extract_cams": NEEDED["extract_cams"]} | {name: NEEDED[section]}
    if section == "extract_cams" != name:
        del others["extract_cams"]
    return "\n".join(
        ["outdir: runs/x", "data: {dataset: Planted}", *(f"{key}: {value}" for key, value in others.items())]
    )


def test_what_stands_under_a_commands_name_is_checked_and_completed_like_its_section(path):
    read = config.read(path, ["lerf={}", "lerf.percentiles=[1]"])
    assert read.pixel_perturbation_analysis.percentiles == [1]
    assert read.pixel_perturbation_analysis.model == read.extract_cams.model


@pytest.mark.parametrize("section", sorted(config.schema.KINDS))
def test_a_section_inherits_what_its_help_says(path, section):
    inherited = {key for key, default, _ in config.keys(section) if default == "(default: that of extract_cams)"}
    if not issubclass(kind := config.schema.KINDS[section], config.Methods) or section == "extract_cams":
        assert not inherited
        return
    given = {"controls": ["uniform"], "twins": ["blurred"], "target": "label", "ties": "index", "dtype": "float32"}
    needed = NEEDED | {"infill": "{infillers: [{name: a, infiller: mean}]}"}
    extraction = [f"extract_cams.{key}={value}" for key, value in given.items()]
    read = config.read(path, [*extraction, f"{section}={needed.get(section, '{}')}"])
    found = dict(read.sections()).get(f"{section}[0]") or getattr(read, section)
    same = {key for key in kind.model_fields if getattr(found, key) == getattr(read.extract_cams, key, ...)}
    assert same - {"batch_size"} == inherited >= {"attribution_methods", "controls", "twins"}


def test_numbers_without_a_dot_before_the_exponent_are_numbers(path):
    read = config.read(path, ["train_cls.optimizer={name: torch.optim.SGD, lr: 1e-3}"])
    assert read.train_cls.optimizer.options == {"lr": 0.001}


def test_controls_are_added_unless_a_method_has_their_name(path):
    entry = "{name: sobel, method: heatproof.methods.controls.Sobel, kwargs: {mode: hooker}}"
    read = config.read(path, [f"extract_cams.attribution_methods=[{entry}]"])
    assert [(m.name, m.control) for m in read.extract_cams.methods()] == [
        ("sobel", False), ("random", True), ("centre", True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian_cls=1", "trian_cls: unknown key; did you mean 'train_cls'?"),
        ("insertion-deltion={}", "insertion-deltion: unknown key; did you mean 'insertion-deletion'?"),
        ("train_cls.nb_epoch=1", "train_cls.nb_epoch: unknown key; did you mean 'nb_epochs'?"),
        ("train_cls.model.arhc=x", "train_cls.model.arhc: unknown key; did you mean 'arch'?"),
        (
            "extract_cams.attribution_methods.0.kwarg={}",
            "extract_cams.attribution_methods[0].kwarg: unknown key; did you mean 'kwargs'?",
        ),
        ("retrain_cls.percentiles=[10,30,150]", "retrain_cls.percentiles[2]: 150: must lie between 0 and 100"),
        ("retrain_cls.percentiles=[-1]", "retrain_cls.percentiles[0]: -1: must lie between 0 and 100"),
        ("retrain_cls.percentiles=[10,10]", "retrain_cls.percentiles: [10, 10]: 10 occurs twice"),
        ("retrain_cls.metrics=roas", "retrain_cls.metrics[0]: 'roas': input should be 'roar', 'kar' or 'mask_only'"),
        ("data.dataset=null", "data.dataset: None: input should be a valid string"),
        ("outdir=null", "outdir: None: input is not a valid path"),
        ("train_cls.model=null", "train_cls.model: None: "),
        ("extract_cams.attribution_methods.0.name=a/b", "extract_cams.attribution_methods[0].name: 'a/b': "),
        ("nonsense", "'nonsense': an override is written section.key=value"),
        ("extract_cams.attribution_methods.7.name=a", "is a list of 1; '7' is no position in it"),
        ("seed.x=1", "'seed.x=1': seed is a value, not a section"),
        ("seed=!!python/object/apply:os.system [echo]", "tags such as !!python/... are not allowed"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_file_key_and_mend(path, override, message):
    with pytest.raises(ConfigError) as caught:
        config.read(path, ["seed=0", override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "line 1"),
        ("just text", "holds str, not sections"),
        ("outdir: x\noutdir: y", "line 2: key 'outdir' occurs twice"),
        (
            "outdir: !!python/object/apply:os.system ['touch pwned']",
            "line 1: tags such as !!python/... are not allowed",
        ),
        ("outdir: x", "data: is missing"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "broken.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yml") as caught:
        config.read(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        config.read(tmp_path / "none.yml")


def test_two_methods_of_one_name_are_refused(path):
    method = "{name: a, method: x.Y}"
    with pytest.raises(ConfigError, match=r"extract_cams.attribution_methods\[1\].name: 'a' occurs twice"):
        config.read(path, [f"extract_cams.attribution_methods=[{method},{method}]"])


SENSES = (
    "retrain_cls.percentiles", "pixel_perturbation_analysis.percentiles", "road.percentiles", "infill.percentiles",
    "faithfulness.within_fractions",
)  # fmt: skip


@pytest.mark.parametrize("key", SENSES)
def test_numbers_that_would_share_a_file_or_a_line_of_results_are_refused(path, key):
    infillers = ["infill.infillers=[{name: a, infiller: mean}]"] if key.startswith("infill") else []
    config.read(path, [*infillers, f"{key}=[0.1, 0.10001]"])
    with pytest.raises(ConfigError, match=rf"{key}.*: 0.1000000001 is written 0.1, as one before it"):
        config.read(path, [*infillers, f"{key}=[0.1, 0.1000000001]"])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cam", "CAM"), "[1].name: 'CAM' differs from 'cam' in case only; names must differ"),
        (("results",), "[0].name: 'results' is the name of a file of results"),
        (("timing.csv",), "[0].name: 'timing.csv' is the name of a file of results"),
        (("cam", "random"), "[1].name: 'random' is the name of the control heatproof.methods.controls.Random"),
        (("Anti_Oracle",), "[0].name: 'Anti_Oracle' is the name of the control"),
        (("cam", "cam+blurred"), "[1].name: 'cam+blurred' is the name of a control that is derived from a method"),
        (("a/b",), "[0].name: 'a/b': string should match pattern"),
        (("..",), "[0].name: '..': string should match pattern"),
    ],
)
@pytest.mark.parametrize("section", ["extract_cams", "retrain_cls", "pixel_perturbation_analysis"])
def test_names_that_share_a_path_or_replace_a_control_are_refused(path, section, names, message):
    entries = ", ".join(f"{{name: {name!r}, method: x.Y}}" for name in names)
    with pytest.raises(ConfigError) as caught:
        config.read(path, [f"{section}.attribution_methods=[{entries}]"])
    assert f"{section}.attribution_methods{message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_control_may_be_listed_as_itself(path):
    entry = "{name: random, method: heatproof.methods.controls.Random, control: true}"
    assert len(config.read(path, [f"extract_cams.attribution_methods=[{entry}]"]).extract_cams.methods()) == 3


def test_infillers_whose_names_differ_in_case_only_are_refused(path):
    with pytest.raises(ConfigError, match=r"infillers\[1\].name: 'Mean' differs from 'mean' in case only"):
        config.read(path, ["infill.infillers=[{name: mean, infiller: mean}, {name: Mean, infiller: mean}]"])


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("a", "A"), r"tests\[1\].name: 'A' differs from 'a' in case only; names must differ"),
        (("a", "a"), r"tests\[1\].name: 'a' occurs twice; names must differ"),
        (("results",), r"tests\[0\].name: 'results' is the name of a file of results; take another"),
        (("a", "Road"), r"tests\[1\].name: 'Road' is the name of a stage; take another"),
        (("map-tests",), r"tests\[0\].name: 'map-tests' is the name of a stage; take another"),
        (("../a",), r"tests\[0\].name: '../a': string should match pattern"),
    ],
)
def test_tests_whose_names_would_share_a_folder_or_a_place_in_the_report_are_refused(path, names, problem):
    with pytest.raises(ConfigError, match=problem):
        config.read(path, [f"tests=[{', '.join(f'{{name: {name}, test: x.y}}' for name in names)}]"])


def test_what_is_wrong_is_shown_in_a_few_words(path):
    with pytest.raises(ConfigError, match=r"c.yml: tests: .{80}: input should be a valid list$"):
        config.read(path, ["tests={}"])


def test_the_json_schema_describes_every_key():
    schema = config.Config.model_json_schema()
    assert '"split_ratio"' in json.dumps(schema)
    assert '"additionalProperties": false' in json.dumps(schema)
    for command, stage in STAGES.items():
        assert schema["properties"][command] == schema["properties"][stage.section]
        assert schema["properties"][command]["description"] == f"{command}: {stage.summary}"


def test_every_section_but_the_common_ones_belongs_to_a_stage():
    sections = [stage.section for stage in STAGES.values()]
    assert [name for name in config.Config.model_fields if name not in sections] == [
        "desc", "outdir", "seed", "device", "data"
    ]  # fmt: skip
    assert [name for name in config.Config.model_fields if name in sections] == sections


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e300", str(10**30)])
@pytest.mark.parametrize(
    "key",
    ["train_cls.optimizer.lr", "extract_cams.attribution_methods[0].kwargs.sigma", "train_cls.augmentation.noise"],
)
def test_numbers_that_arithmetic_cannot_hold_are_refused_wherever_they_stand(path, key, value):
    with pytest.raises(ConfigError, match=r": input should be a (finite|whole) number") as error:
        config.read(path, [f"{key}={value}"])
    assert f"c.yml: {key}: " in str(error.value)


@pytest.mark.parametrize("text", ["data: &D {dataset: Planted, options: *D}", "data: " + "[" * 5000])
def test_a_file_that_contains_itself_is_one_line(path, text):
    path.write_text(f"outdir: x\n{text}\n")
    with pytest.raises(ConfigError, match=r"c\.yml: nested too deeply, or an alias stands inside of what it names"):
        config.read(path)
