"""map-tests: run tests of your own on the stored maps.

Reads each method's stored maps; writes tests/<name>/<method>.h5 and results.csv for each entry of the section `tests`. An entry
names one of two things by a dotted path:

- what scores a batch when it is called: a function, or a class whose instances can be called. It asks by name for what it needs
  (`GIVEN`), and returns one number for each image, NaN where it is undefined. Gradients are off: `torch.enable_grad` turns them on.
- a class with `scores`, a sequence of `metrics.score.Score`, and `measure(images, subject)`, as the tests of this package have
  them: one array for each column. `columns(size)` and `read(column)` say which columns these are, and how scores and curves
  follow from them; without both, each score is a column. `origin()` adds what an origin has to name beside options and code.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from heatproof import artefacts, config, plugins, store
from heatproof.errors import ConfigError, DataError, InputError, PluginError
from heatproof.metrics.score import Curve, Direction, Pooled, Score, Scored
from heatproof.stages.evaluate import KNOWN, Images, Subject, evaluate
from heatproof.stages.run import Run

GIVEN: dict[str, Callable[[Images, Subject], Any]] = {
    "maps": lambda images, subject: images.maps,
    "ranks": lambda images, subject: images.ranks,
    "images": lambda images, subject: subject.loaded.normalization(images.pixels.float().div(255.0)),
    "pixels": lambda images, subject: images.pixels,
    "targets": lambda images, subject: torch.from_numpy(images.target).to(images.pixels.device),
    "labels": lambda images, subject: torch.from_numpy(images.label).to(images.pixels.device),
    "regions": lambda images, subject: images.regions,
    "boxes": lambda images, subject: images.boxes,
    "ignored": lambda images, subject: images.ignored,
    "model": lambda images, subject: subject.loaded.module,
    "normalization": lambda images, subject: subject.loaded.normalization,
    "indices": lambda images, subject: images.index,
    "seed": lambda images, subject: subject.run.config.seed,
}
"""What a function may ask for by name. `maps` (B, H, W), `regions`, `boxes`, `ignored` and `indices` are NumPy arrays as `Images`
describes them; `images` (B, C, H, W, normalised), `pixels` (uint8), `ranks` (0 = most important), `targets` (the class that is
explained) and `labels` are tensors on the classifier's device; `model` gives logits."""
COLUMN = "score"
"""Where a function's score is kept."""


@dataclass(frozen=True)
class OwnTest:
    """A test from outside, as `evaluate` takes it.

    Args:
        settings: its entry.
        measurer: what scores: a callable, or an object with `measure`.
        options: what a function gets beside the values that it asks for.
        code: version of the code.
    """

    settings: config.OwnTest
    measurer: Any
    options: Mapping[str, Any]
    code: str

    @classmethod
    def of(cls, settings: config.OwnTest, seed: int) -> "OwnTest":
        """What an entry asks for, checked before anything is read.

        Raises:
            PluginError: the path leads nowhere, the options do not fit, or it is neither of the two forms.
            ConfigError: it has options that belong to the other form.
        """
        path, target, options = settings.test, plugins.resolve(settings.test), settings.kwargs
        is_class = isinstance(target, type)
        measurer = plugins.build(path, target, options, provided={"seed": seed}) if is_class else target
        if not hasattr(measurer, "measure") and not callable(measurer):
            raise PluginError(f"{path}: has neither measure(images, subject) nor __call__; a test needs one of them")
        found = cls(settings, measurer, {} if is_class else options, plugins.code_version(target))
        if found.is_called:
            plugins.check_options(path, measurer, found.options, provided=GIVEN)
        found._check_scores()
        return found

    def _check_scores(self) -> None:
        path, better = self.settings.test, getattr(self.measurer, "better", "higher")
        if self.is_called:
            if better not in get_args(Direction):
                raise PluginError(f"{path}: better is {better!r}; expected one of {', '.join(get_args(Direction))}")
            return
        scores = getattr(self.measurer, "scores", None)
        if not isinstance(scores, Sequence) or not scores or not all(isinstance(score, Score) for score in scores):
            raise PluginError(f"{path}: needs scores, a sequence of heatproof.metrics.score.Score")
        for option in ("better", "chance"):
            if getattr(self.settings, option) is not None:
                raise ConfigError(f"{self.where}.{option}: is for a function; the scores of {path} have their own")

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return f"tests: {self.settings.name}"

    @property
    def section(self) -> str:
        """Its folder."""
        return f"tests/{self.settings.name}"

    @property
    def summary(self) -> str:
        """The first line of its documentation."""
        return (self.measurer.__doc__ or "").strip().partition("\n")[0].rstrip(".") or self.settings.test

    @property
    def is_called(self) -> bool:
        """Whether it is called, with what it asks for by name."""
        return not hasattr(self.measurer, "measure")

    @property
    def scores(self) -> Sequence[Score]:
        """Those of the class, or the one of the function."""
        if not self.is_called:
            return tuple(self.measurer.scores)
        better: Direction = getattr(self.measurer, "better", "higher")
        if self.settings.better is not None:
            better = self.settings.better
        return (Score(self.settings.name, better, self.summary, headline=True),)

    def columns(self, size: tuple[int, int]) -> Sequence[store.Column]:
        """Those of the class, or one number for each score."""
        if self.is_called:
            return [store.Column(COLUMN, "float64")]
        columns = self._asked(
            "columns", lambda size: [store.Column(score.name, "float64") for score in self.scores], size
        )
        for column in columns:
            if column.name in KNOWN:
                raise PluginError(f"{self.where}: {column.name!r} is a column that every test has; take another name")
        return list(columns)

    def origin(self) -> dict[str, Any]:
        """Path, options and code, and what the class adds."""
        asked = self.settings
        named = {"path": asked.test, "kwargs": artefacts.with_content(asked.kwargs), "code": self.code}
        return {"test": {**self._asked("origin", dict), **named, "chance": asked.chance}}

    def measure(self, images: Images, subject: Subject) -> Mapping[str, NDArray[Any]]:
        """What the function returns, or the class, checked."""
        with torch.no_grad():
            if self.is_called:
                measured: Any = {COLUMN: self.measurer(**self._given(images, subject))}
            else:
                measured = self.measurer.measure(images, subject)
        columns = {column.name: column for column in self.columns((images.maps.shape[1], images.maps.shape[2]))}
        if not isinstance(measured, Mapping) or measured.keys() != columns.keys():
            names = sorted(map(str, measured)) if isinstance(measured, Mapping) else type(measured).__name__
            raise PluginError(f"{self.where}: measure returned {names}; expected arrays named {sorted(columns)}")
        return {name: self._checked(column, measured[name], images) for name, column in columns.items()}

    def _given(self, images: Images, subject: Subject) -> dict[str, Any]:
        """The values that the function asks for, and its options."""
        given = {name: value(images, subject) for name, value in plugins.given(self.measurer, GIVEN).items()}
        for name in ("regions", "boxes"):
            if name in given and given[name] is None and plugins.needs(self.measurer, name):
                raise DataError(
                    f"{self.where}: needs {name}, which {subject.run.config.data.dataset} does not have; a data set of your own may have a method {name}(indices)"
                )
        return {**given, **self.options}

    def _checked(self, column: store.Column, values: Any, images: Images) -> NDArray[Any]:
        try:
            array = column.checked(values.detach().cpu() if isinstance(values, torch.Tensor) else values, len(images))
        except InputError as error:
            raise PluginError(f"{self.where}: {self.settings.test} returned {error}") from error
        infinite = np.isinf(array).reshape(len(images), -1).any(axis=1)
        if infinite.any():
            index = images.index[infinite][0]
            raise PluginError(f"{self.where}: {column.name} of image {index} is infinite; an undefined one is NaN")
        return array

    def read(self, column: Callable[[str], NDArray[Any]]) -> Iterator[Scored | Pooled | Curve]:
        """The scores that the class makes of its columns, or the columns as they are."""
        if self.is_called:
            values, chance = column(COLUMN), self.settings.chance
            yield Scored(self.settings.name, values, "", None if chance is None else np.full(len(values), chance))
            return
        names, images = [score.name for score in self.scores], len(column("index"))
        for part in self._asked("read", lambda column: [Scored(name, column(name)) for name in names], column):
            found = _of_arrays(part, images)
            if found is None or (not isinstance(found, Curve) and found.name not in names):
                raise PluginError(
                    f"{self.where}: read yields {part!r:.80}; expected Scored or Pooled of {names}, or Curve, with values of "
                    f"{images} images"
                )
            yield found

    def _asked(self, name: str, otherwise: Callable[..., Any], *arguments: Any) -> Any:
        """What a method of the class answers, or what follows without it."""
        return getattr(self.measurer, name, otherwise)(*arguments)


def _of_arrays(part: Any, images: int) -> Scored | Pooled | Curve | None:
    """What a class reads from its columns, with arrays in it; None where its type or a shape is wrong."""
    kinds: dict[type, tuple[str, ...]] = {Scored: ("values",), Pooled: ("sums",), Curve: ("values", "x")}
    if type(part) not in kinds:
        return None
    try:
        arrays = {name: np.asarray(getattr(part, name), dtype=np.float64) for name in kinds[type(part)]}
    except (TypeError, ValueError):
        return None
    found: Scored | Pooled | Curve = dataclasses.replace(part, **arrays)
    if isinstance(found, Pooled):
        return found if len(np.atleast_1d(found.sums)) == images else None
    shape = (images, *found.x.shape) if isinstance(found, Curve) else (images,)
    return found if found.values.shape == shape and not np.isinf(found.values).any() else None


def tests(settings: config.Config) -> list[OwnTest]:
    """The tests that a configuration asks for.

    Raises:
        ConfigError: it has no section `tests`; PluginError: one of them cannot be used.
    """
    if settings.tests is None:
        raise ConfigError("section tests is missing in the configuration; this stage needs it")
    return [OwnTest.of(entry, settings.seed) for entry in settings.tests]


def run(run: Run) -> None:
    """Computes what is missing or stale of every test's scores, and summarises them."""
    for test in tests(run.config):
        evaluate(run, test.settings, test)
