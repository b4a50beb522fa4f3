"""What comes from outside: the files of CONTRIBUTING and of the README run as they stand, and tests of maps are checked."""

import csv
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from heatproof import config, store
from heatproof.stages import map_tests
from heatproof.stages.results import Results
from heatproof.stages.run import Run
from tests.end_to_end.conftest import heatproof

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"```(?:python|yaml)\n# (own\S+)\n(.*?)```", re.DOTALL)
EXAMPLES = dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8")))
MINE = '''
import numpy as np
import torch
from heatproof.metrics.score import Curve, Pooled, Score, Scored

SEEN = []


def half(maps, indices, seed, value: float = 1.0):
    """Every second image has a score. The rest does not."""
    SEEN.extend(indices.tolist())
    return np.where(indices % 2 == 0, value, np.nan)


def lower(indices):
    return indices / 1000


lower.better = "lower"


def given(maps, ranks, images, pixels, targets, labels, regions, boxes, model, normalization):
    assert maps.shape == ranks.shape == regions.shape and maps.dtype == np.float32 and regions.dtype == bool
    assert ranks.min() == 0 and ranks.max() == maps[0].size - 1 and len(boxes) == len(maps)
    assert torch.equal(normalization(pixels / 255), images) and not torch.is_grad_enabled()
    assert (model(images).argmax(1) == targets).all() and labels.shape == targets.shape
    return regions.sum((1, 2))


class Called:
    def __init__(self, seed, add):
        self.add = seed + add

    def __call__(self, maps):
        return torch.full((len(maps),), float(self.add), requires_grad=True)


class Two:
    """Two scores without columns or read"""

    scores = (Score("plain", "higher", "one"), Score("turned", "lower", "two"))
    measured = None

    def measure(self, images, subject):
        return self.measured or {"plain": images.index, "turned": -images.index}


class Wrong(Two):
    def __init__(self, returned):
        self.measured = returned


class Misread(Two):
    def __init__(self, kind):
        self.kind = kind

    def read(self, column):
        index = column("index")
        yield {
            "name": Scored("other", index),
            "rows": Scored("plain", index[:3]),
            "infinite": Scored("plain", np.full(len(index), np.inf)),
            "text": Scored("plain", "values"),
            "sums": Pooled("plain", index[:3], np.sum),
            "curve": Curve("c", (0, 1), np.zeros((len(index), 3)), "x", "y", "higher"),
            "type": 3,
        }[self.kind]


class Known(Two):
    scores = (Score("label", "higher", "one"),)


class Unscored(Two):
    scores = ("plain",)


def shape(maps):
    return maps


def infinite(indices):
    return np.where(indices == 70, np.inf, 0)


def words(maps):
    return ["good"] * len(maps)


def crash(maps):
    raise ValueError("no such luck")


def direction(maps):
    return maps.sum((1, 2))


direction.better = "up"


def late(indices):
    if indices[0] >= 64 and not STOPPED:
        STOPPED.append(1)
        raise KeyboardInterrupt
    SEEN.extend(indices.tolist())
    return indices


STOPPED = []
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The experiment of CONTRIBUTING after all its stages."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in EXAMPLES.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert heatproof("demo", "--config", "own.yml", "report.resamples=200", "report.gallery_images=2") == 0
    return folder


@pytest.fixture
def here(own, monkeypatch):
    """The folder of the experiment, where commands start, with one more module `mine`."""
    (own / "mine.py").write_text(MINE)
    monkeypatch.chdir(own)
    yield own
    sys.modules.pop("mine", None)


def run(entry, *others):
    return heatproof("map-tests", "--config", "own.yml", f"tests=[{entry}]", *others)


def table(folder, test):
    with (folder / "runs" / "own" / "tests" / test / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scores(folder, test, column="score", method="gradient"):
    return store.RowReader(folder / "runs" / "own" / "tests" / test / f"{method}.h5").read(column)


# --- examples


def test_an_addition_from_outside_has_at_most_20_lines():
    assert sorted(EXAMPLES) == sorted(
        ["own.yml", *(f"own_{kind}.py" for kind in ("data", "model", "methods", "fills", "scores", "tests"))]
    )
    assert {name: text.count("\n") for name, text in EXAMPLES.items() if text.count("\n") > 20} == {}


def test_the_experiment_of_contributing_finds_the_squares(own):
    inside = {line["method"]: line for line in table(own, "inside")}
    assert float(inside["oracle"]["mean"]) == 1
    assert float(inside["gradient"]["difference_low"]) > 0
    assert float(inside["random"]["mean"]) == pytest.approx(16 / 256, abs=0.02)
    assert inside["oracle"]["control"] == "True"
    blackout = {line["method"]: float(line["mean"]) for line in table(own, "blackout")}
    assert blackout["oracle"] < blackout["random"]
    origin = store.RowReader(own / "runs" / "own" / "pixel_perturbation_analysis" / "oracle.h5").origin
    assert origin["fill"] == {"name": "own_fills.Grey", "value": 0.4}


def test_tests_from_outside_have_their_place_in_the_report(own, monkeypatch):
    monkeypatch.chdir(own)
    tests = {test.name: test for test in Results.of(Run(config.read(Path("own.yml")))).tests}
    assert list(tests) == ["pixel_perturbation_analysis", "inside", "blackout"]
    assert tests["inside"].summary == "Share of the most important pixels that lie on the object"
    assert [score.headline for score in tests["inside"].scores] == [True]
    page = (own / "runs" / "own" / "report" / "index.html").read_text()
    assert 'id="test-inside"' in page
    assert (own / "runs" / "own" / "report" / "figures" / "blackout-morf.csv").is_file()


def test_nothing_is_left_to_do_and_a_dry_run_says_so(own, monkeypatch, caplog):
    monkeypatch.chdir(own)
    caplog.set_level("INFO")
    before = results_of(own)
    assert heatproof("map-tests", "--config", "own.yml", "report.resamples=200", "--dry-run") == 0
    assert "map-tests: 8 of 8 complete" in caplog.text
    assert heatproof("map-tests", "--config", "own.yml", "report.resamples=200") == 0
    assert results_of(own) == before


def results_of(folder):
    tests = folder / "runs" / "own" / "tests"
    return {path: path.stat().st_mtime_ns for path in tests.rglob("*") if path.name != "timing.csv"}


def test_the_readmes_function_runs(here):
    (code,) = re.findall(r"`my_tests.py`:\n\n```python\n(.*?)```", README, re.DOTALL)
    (entry,) = re.findall(r"tests:\n    - (\{.*?\})\n```", README, re.DOTALL)
    assert len(code.splitlines()) <= 20
    (here / "my_tests.py").write_text(code)
    assert run(entry) == 0
    means = {line["method"]: float(line["mean"]) for line in table(here, "drop")}
    assert means["oracle"] > means["random"] + 0.1


def test_the_readme_lists_all_that_a_function_may_ask_for():
    (names,) = re.findall(r"A function gets what it names: (.*?)\. NaN", README, re.DOTALL)
    assert re.findall(r"`(\w+)`", names) == list(map_tests.GIVEN)


# --- functions and classes


def test_an_undefined_score_is_counted_and_left_out(here):
    assert (
        run("{name: half, test: mine.half, kwargs: {value: 3.0}, chance: 0.5, better: lower, test_samples: 100}") == 0
    )
    line = table(here, "half")[0]
    index = scores(here, "half", "index")
    even = int((index % 2 == 0).sum())
    assert (int(line["n"]), int(line["n_undefined"]), float(line["mean"])) == (even, 100 - even, 3)
    assert (line["score"], line["better"]) == ("half", "lower")
    assert 0.5 in [float(value) for value in line.values() if re.fullmatch(r"[\d.]+", value)]


def test_a_function_may_state_its_own_direction(here):
    assert run("{name: lower, test: mine.lower}") == 0
    assert {line["better"] for line in table(here, "lower")} == {"lower"}
    np.testing.assert_array_equal(scores(here, "lower"), scores(here, "lower", "index") / 1000)


def test_a_function_gets_what_it_names(here):
    assert run("{name: given, test: mine.given}") == 0
    np.testing.assert_array_equal(scores(here, "given"), 16)


def test_a_class_whose_instances_are_called_is_a_function_with_options(here):
    assert run("{name: called, test: mine.Called, kwargs: {add: 5}}", "seed=0") == 0
    np.testing.assert_array_equal(scores(here, "called"), 5)


def test_a_class_without_columns_and_read_has_a_column_for_each_score(here):
    assert run("{name: two, test: mine.Two}") == 0
    assert [(line["score"], line["better"]) for line in table(here, "two")][:2] == [
        ("plain", "higher"),
        ("turned", "lower"),
    ]
    np.testing.assert_array_equal(scores(here, "two", "turned"), -scores(here, "two", "index"))


def test_options_and_code_that_change_make_scores_stale(here, caplog):
    caplog.set_level("INFO")
    entry = "{{name: stale, test: mine.half, kwargs: {{value: {}}}, better: {}}}"
    assert run(entry.format(1.0, "higher")) == 0
    assert run(entry.format(2.0, "higher")) == 0
    assert "test.kwargs.value: 1.0 -> 2.0" in caplog.text
    np.testing.assert_array_equal(scores(here, "stale")[scores(here, "stale", "index") % 2 == 0], 2)
    # The direction is the table's alone.
    before = (here / "runs" / "own" / "tests" / "stale" / "gradient.h5").read_bytes()
    assert run(entry.format(2.0, "lower")) == 0
    assert (here / "runs" / "own" / "tests" / "stale" / "gradient.h5").read_bytes() == before
    assert {line["better"] for line in table(here, "stale")} == {"lower"}
    (here / "mine.py").write_text(MINE + "\n# edited\n")
    caplog.clear()
    assert run(entry.format(2.0, "lower"), "--dry-run") == 0
    assert "gradient.h5: stale, to be computed again: test.code" in caplog.text


def test_an_interrupted_test_resumes_with_the_same_result(here):
    entry = "{name: late, test: mine.late, controls: []}"
    assert run(entry) == 130
    assert run(entry) == 0
    seen = sys.modules["mine"].SEEN
    assert sorted(seen) == list(range(240)), "every image once"
    np.testing.assert_array_equal(scores(here, "late"), np.arange(240))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("test: mine.hlaf", "mine.hlaf: mine has no 'hlaf'; did you mean 'half'?"),
        ("test: no_such.half", "no_such.half: there is no module 'no_such'"),
        ("test: mine.half, kwargs: {valeu: 1}", "mine.half: unknown option 'valeu'; did you mean 'value'?"),
        ("test: mine.half, kwargs: {value: high}", "mine.half: option 'value': 'high' should be a number"),
        ("test: mine.half, kwargs: {maps: 1}", "mine.half: unknown option 'maps'"),
        ("test: mine.Called", "mine.Called: option 'add' is missing"),
        ("test: mine.SEEN", "mine.SEEN: has neither measure(images, subject) nor __call__"),
        ("test: numpy", "numpy: has neither measure(images, subject) nor __call__"),
        ("test: mine.direction", "mine.direction: better is 'up'; expected one of higher, lower, neither"),
        ("test: mine.Unscored", "mine.Unscored: needs scores, a sequence of heatproof.metrics.score.Score"),
        ("test: mine.Two, better: lower", "tests: wrong.better: is for a function; the scores of mine.Two have their own"),
        ("test: mine.Two, chance: 0", "tests: wrong.chance: is for a function; the scores of mine.Two have their own"),
        ("test: mine.Known", "tests: wrong: 'label' is a column that every test has; take another name"),
        ("test: mine.shape", "tests: wrong: mine.shape returned score: shape (64, 16, 16); expected (64,)"),
        ("test: mine.words", "tests: wrong: mine.words returned score: <U4 values; expected float64"),
        ("test: mine.infinite", "tests: wrong: score of image 70 is infinite; an undefined one is NaN"),
        ("test: mine.Wrong, kwargs: {returned: {plain: 1}}", "measure returned ['plain']; expected arrays named ['plain', 'turned']"),
        ("test: mine.Wrong, kwargs: {returned: 5}", "measure returned int; expected arrays named ['plain', 'turned']"),
        *((f"test: mine.Misread, kwargs: {{kind: {kind}}}", "expected Scored or Pooled of ['plain', 'turned'], or Curve")
          for kind in ("name", "rows", "infinite", "text", "sums", "curve", "type")),
        ("test: mine.crash", "ValueError: no such luck (an error in your code, not in heatproof"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_test_is_one_line(here, capsys, entry, problem):
    assert run(f"{{name: wrong, {entry}}}") == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("heatproof: ")]
    assert problem in line
    shutil.rmtree(here / "runs" / "own" / "tests" / "wrong", ignore_errors=True)


def test_annotations_that_the_data_set_lacks_are_named(here, capsys):
    (here / "plain_data.py").write_text(EXAMPLES["own_data.py"].replace("def boxes", "def _boxes"))
    overrides = ("data.dataset=plain_data.Squares", "extract_cams.controls=[]")
    assert run("{name: bare, test: own_scores.inside}", *overrides) == 2
    assert "bare: needs regions, which plain_data.Squares does not have" in capsys.readouterr().err


def test_the_section_is_needed_by_its_command_alone(small, capsys):
    path = small("without")
    assert heatproof("map-tests", "--config", path, "--dry-run") == 2
    assert "section tests is missing in the configuration; this stage needs it" in capsys.readouterr().err
