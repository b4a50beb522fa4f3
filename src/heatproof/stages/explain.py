"""explain: pictures in, for each method a map, an overlay and a sheet that shows all of them.

Reads pictures; writes `<picture>_<method>.npy` (float32, H x W, of the part that the model sees), `<picture>_<method>.png`
and `<picture>_sheet.png` into a folder. It needs no configuration file and no display.
"""

import difflib
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from heatproof import artefacts, plugins, records, runtime, seeding, threads
from heatproof.datasets import listed, pictures, trees
from heatproof.errors import ConfigError, DataError, InputError, ModelError, PluginError, nearest
from heatproof.methods import catalogue
from heatproof.methods.explainer import PROVIDED, Explained, Explainer
from heatproof.models import LoadedModel, Normalization, load, outputs
from heatproof.models.loading import classes_in
from heatproof.models.preparation import Preparation, input_size, library_preparation, resized
from heatproof.models.probabilities import kind_of, probabilities
from heatproof.models.targets import AnyOf, Difference, Output, Retargeted
from heatproof.models.weights import read_weights
from heatproof.report.overlay import Colour, overlay, sheet

_BATCH = 16
Question = int | AnyOf | Difference | Output
_TOP = 5


@dataclass(frozen=True)
class Request:
    """What to explain, and how.

    Args:
        sources: picture files, and folders of them.
        model: as `model.arch` of a configuration.
        methods: what explains; `methods_named` makes them.
        weights: a file, DEFAULT for the library's own, or `random` (drawn from seed 0: to try things, they know nothing).
        target: index or name of a class; several, with commas between them, for any of these classes; two, with a minus between
            them, for what speaks for the first rather than the second. None explains each picture's most probable class, and
            the output of a network that has one only.
        out: folder for what is written.
        colour: of the overlays.
        device: as `device` of a configuration.
        classes: text file with the name of each class, one a line.
        size: height and width to which pictures are scaled, in place of what the model's library does.
        normalization: where neither library nor weights know it.
        output: what the model gives, as `model.output` of a configuration; None: as it was trained by train-cls, else softmax.
    """

    sources: Sequence[Path]
    model: str
    methods: Sequence[Explainer]
    weights: str = "DEFAULT"
    target: str | None = None
    out: Path = Path("explained")
    colour: Colour = "perceptual"
    device: str = "auto"
    classes: Path | None = None
    size: tuple[int, int] | None = None
    normalization: Normalization | None = None
    output: outputs.Output | None = None


def methods_named(names: Sequence[str], options: Mapping[str, Any], channel_reduction: str) -> list[Explainer]:
    """Methods by dashed name or dotted path; each gets those of the options that it has.

    Raises:
        PluginError: an unknown method, or an option that is missing or that none of them has.
    """
    explainers: list[Explainer] = []
    for name in dict.fromkeys(names):
        path = catalogue.path_of(name)
        known = settable(path)
        chosen = {option: value for option, value in options.items() if option in known}
        title = catalogue.dashed(path.rpartition(".")[2])
        explainer = Explainer(title, path, chosen, channel_reduction)
        if "regions" in known:
            raise PluginError(f"{title}: needs to know where the object is; a picture does not say it")
        missing = [option for option, p in known.items() if p.default is p.empty and option not in chosen]
        if missing:
            raise PluginError(f"{title}: needs --{catalogue.dashed(missing[0])}")
        explainer.check()
        if path not in (other.path for other in explainers):
            explainers.append(explainer)
    return explainers


def settable(path: str) -> dict[str, Any]:
    """The options of a method that a command line can set, by name; `regions` among them where it needs them."""
    found = catalogue.options_of(path, provided=tuple(name for name in PROVIDED if name != "regions"))
    is_function = Explainer(path, path, {})._is_function(plugins.resolve(path))
    return dict(itertools.islice(found.items(), 2, None)) if is_function else dict(found)


def run(request: Request) -> Iterator[str]:
    """Explains all pictures; yields what is to be told about each, line by line.

    Raises:
        HeatproofError: a picture, the model, its weights or the class cannot be had; nothing is written for that picture.
    """
    files = _files(request.sources)
    device = runtime.resolve_device(request.device)
    runtime.make_deterministic(device)
    threads.begin()
    subject = _subject(request, device)
    question = None if request.target is None else _question(request.target, subject.class_names)
    bound: dict[str, Callable[[Tensor, Tensor, Tensor], Explained]] = {}
    names = _names(files)
    for start in range(0, len(files), _BATCH):
        batch = files[start : start + _BATCH]
        # What is drawn for a picture is drawn as for image 0, so that it does not depend on which others are explained.
        indices = torch.zeros(len(batch), dtype=torch.int64)
        pixels = torch.stack([subject.pixels(pictures.read_rgb(path, "picture")) for path in batch]).to(device)
        images = subject.loaded.normalization(pixels)
        threads.raise_for(subject.loaded.module, (images.shape[2], images.shape[3]))
        if not bound:
            outputs.read(
                subject.loaded.module,
                images,
                name=request.model,
                output=subject.output,
                classes=len(subject.class_names) or None,
                binary=len(subject.class_names) == 2,  # else its output is what is explained
            )
        with torch.inference_mode():
            logits = subject.loaded.module(images)
        if not bound:
            if question is None and logits.shape[1] == 1:
                question = Output(0)
            _check_classes(question, logits.shape[1], subject)
            bound = _bound(request.methods, subject, question)
        targets = torch.zeros_like(logits[:, 0], dtype=torch.int64)
        if question is None or isinstance(question, int):
            targets = logits.argmax(dim=1) if question is None else targets + question
        maps = {name: explain(images, targets, indices).maps.cpu().numpy() for name, explain in bound.items()}
        shown = (255 * pixels).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for row, path in enumerate(batch):
            explained = int(targets[row]) if question is None else question
            yield from _told(path, logits[row].float().cpu(), explained, subject)
            written = {name: found[row] for name, found in maps.items()}
            yield f"  wrote {', '.join(map(str, _write(request, names[path], _rgb(shown[row]), written)))}"


def _bound(
    methods: Sequence[Explainer], subject: "_Subject", question: Question | None
) -> dict[str, Callable[[Tensor, Tensor, Tensor], Explained]]:
    """The methods at work on the classifier, or on the scalar of its outputs that is asked for."""
    loaded = subject.loaded
    provided = {
        "seed": 0, "normalization": loaded.normalization, "classifier_sha256": loaded.weights_sha256
    }  # fmt: skip
    module = loaded.module
    if question is not None and not isinstance(question, int):
        module = Retargeted(module, question).eval()
    return {method.name: method.bind(module, provided) for method in methods}


@dataclass(frozen=True)
class _Subject:
    """A classifier, how pictures are made for it, and the names of its classes ("" where it has none)."""

    loaded: LoadedModel
    pixels: Callable[[Image.Image], Tensor]
    class_names: tuple[str, ...]
    output: outputs.Output


def _subject(request: Request, device: torch.device) -> _Subject:
    library = library_preparation(request.model) if request.weights != "random" or request.model[:3] != "hf:" else None
    names = () if request.classes is None else _read_names(request.classes)
    file = Path(request.weights) if request.weights not in ("DEFAULT", "random") else None
    if file is None and request.weights == "DEFAULT" and not _has_library(request.model):
        raise ModelError(f"{request.model}: has no weights of its own; name a file with --weights FILE")
    kept = {} if file is None else records.beside(file)
    trained = kept.get("origin", {}).get("model", {})
    same = trained if trained.get("arch") == request.model else {}
    building = {name: same.get(name) for name in ("constructor_args", "transformer")}
    if file is not None:
        names = names or tuple(kept.get("class_names", ()))
        classes = (
            len(names)
            or classes_in(
                read_weights(file), request.model, where=str(file), channels=_channels(request, kept), **building
            )
            or 1
        )  # the network has a number of its own
    else:
        names = names or (() if library is None else library.class_names)
        classes = len(names) or 1000
    torch.manual_seed(seeding.derive(0, "explain", "weights"))
    loaded = load(
        request.model,
        num_classes=classes,
        channels=_channels(request, kept),
        **building,
        pretrained_weights=None if request.weights == "random" else request.weights,
        normalization=request.normalization,
    )
    loaded.module.to(device).eval()
    if file is not None and not names and library is not None and len(library.class_names) == classes:
        names = library.class_names
    return _Subject(loaded, _pixels(request, loaded, library), names, request.output or same.get("output", "softmax"))


def _channels(request: Request, kept: Mapping[str, Any]) -> int:
    """As many as the normalisation has numbers."""
    if request.normalization is not None:
        return len(request.normalization.mean)
    return len(kept["normalization"]["mean"]) if "normalization" in kept else 3


def _pixels(request: Request, loaded: LoadedModel, library: Preparation | None) -> Callable[[Image.Image], Tensor]:
    if request.size is None and library is not None:
        return library.pixels
    size = request.size or input_size(loaded.module)
    if size is None:
        raise ModelError(f"{request.model}: takes pictures of any size; say with --size how large they are to be")
    return functools.partial(resized, size=size, channels=len(loaded.normalization.mean))


def _has_library(arch: str) -> bool:
    return arch.startswith(("timm:", "hf:", "torchvision."))


def _read_names(path: Path) -> tuple[str, ...]:
    # ImageNet's lists put the WordNet id first.
    return tuple(re.sub(r"^n\d{8}\s+", "", line).strip() for _, line in listed.records(path))


def _question(text: str, names: Sequence[str]) -> Question:
    """What `--target` asks for: a class, any of several, or the difference of two."""
    is_name = text.casefold() in {name for name, _ in _synonyms(names)}
    if not is_name and (two := re.fullmatch(r"(\d+)\s*-\s*(\d+)|(.+?)\s+-\s+(.+)", text)):
        first, second = (part for part in two.groups() if part is not None)
        return Difference(_class_index(first, names), _class_index(second, names))
    if not is_name and "," in text:
        return AnyOf(tuple(_class_index(part.strip(), names) for part in text.split(",")))
    return _class_index(text, names)


def _synonyms(names: Sequence[str]) -> list[tuple[str, int]]:
    """What each class may be called: of "tabby, tabby cat", the whole and each word of it."""
    return [(part.strip().casefold(), index) for index, name in enumerate(names) for part in [name, *name.split(",")]]


def _class_index(target: str, names: Sequence[str]) -> int:
    if re.fullmatch(r"-?\d+", target):
        return int(target)
    synonyms = _synonyms(names)
    found = {index for name, index in synonyms if name == target.casefold()}
    if len(found) == 1:
        return found.pop()
    if found:
        raise InputError(
            f"--target {target!r}: classes {', '.join(map(str, sorted(found)))} have this name; give an index"
        )
    if not names:
        raise InputError(
            f"--target {target!r}: the classes have no names; give an index, or their names with --classes"
        )
    near = difflib.get_close_matches(target.casefold(), [name for name, _ in synonyms], n=6, cutoff=0.5)
    hint = (
        f"; did you mean {' or '.join(map(repr, list(dict.fromkeys(near))[:3]))}?" if near else nearest(target, names)
    )
    raise InputError(f"--target {target!r}: no class has this name{hint}")


def _check_classes(question: Question | None, classes: int, subject: _Subject) -> None:
    for target in _classes_of(question):
        if not 0 <= target < classes:
            raise InputError(f"--target {target}: the model has {classes} classes (0 to {classes - 1})")
    if isinstance(question, AnyOf | Difference) and kind_of(subject.loaded.module) == "sigmoid":
        raise InputError(
            "--target: the model's classes do not share a softmax, so each is explained alone; name one class"
        )
    if isinstance(question, Difference) and question.first == question.second:
        raise InputError(f"--target: the difference of class {question.first} and itself is 0; name two classes")
    if isinstance(question, AnyOf) and len(set(question.classes)) == classes:
        raise InputError("--target: names all classes of the model; leave one out at least")
    if subject.class_names and len(subject.class_names) != classes:
        raise ConfigError(f"--classes: {len(subject.class_names)} names; the model has {classes} classes")


def _files(sources: Sequence[Path]) -> list[Path]:
    """The pictures that are named and those in named folders, each once."""
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = trees.pictures_in(source)
            if not inside:
                raise DataError(f"{source}: no picture in this folder; known are {' '.join(pictures.SUFFIXES)}")
            files += inside
        elif source.exists():
            files.append(source)
        else:
            there = [path.name for path in source.parent.iterdir() if path.exists()] if source.parent.is_dir() else []
            hint = difflib.get_close_matches(source.name, there, n=1)
            raise DataError(f"{source}: no such file{f'; did you mean {hint[0]!r}?' if hint else ''}")
    return list(dict.fromkeys(files))


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """What the written files of each picture begin with: its name, with its ending or a number where two would be the same."""
    names: dict[Path, str] = {}
    for path in files:
        stems = [other for other in files if other.stem == path.stem]
        wanted = path.stem if len(stems) == 1 else path.name.replace(".", "_")
        taken = set(names.values())
        numbered = (f"{wanted}_{count}" for count in itertools.count(2))
        names[path] = wanted if wanted not in taken else next(name for name in numbered if name not in taken)
    return names


def _classes_of(question: Question | None) -> tuple[int, ...]:
    match question:
        case AnyOf(classes):
            return classes
        case Difference(first, second):
            return first, second
        case Output(index) | int(index):
            return (index,)
    return ()


def _told(path: Path, logits: Tensor, question: Question, subject: _Subject) -> Iterator[str]:
    yield f"{path}"
    if isinstance(question, Output):
        yield f"  explained: the output, {float(logits[question.index]):.4g}"
        return
    shares = probabilities(logits[None], kind_of(subject.loaded.module))[0]
    best = shares.topk(min(_TOP, len(shares)))
    for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        yield f"  {100 * probability:5.1f} %  {_called(index, subject)}"
    between = " rather than " if isinstance(question, Difference) else " or "
    yield f"  explained: {between.join(_called(target, subject) for target in _classes_of(question))}"


def _called(index: int, subject: _Subject) -> str:
    return f"{index} {subject.class_names[index]}" if subject.class_names else f"{index}"


def _rgb(shown: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return shown if shown.shape[2] == 3 else np.repeat(shown, 3, axis=2)


def _write(
    request: Request,
    name: str,
    shown: np.ndarray[Any, np.dtype[np.uint8]],
    maps: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]],
) -> list[Path]:
    written, panels = [], [(name, shown)]
    for method, values in maps.items():
        drawn = overlay(shown, values, request.colour)
        panels.append((method, drawn))
        path = request.out / f"{name}_{method}.npy"
        with artefacts.whole_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, values)
        written += [path, _save(Image.fromarray(drawn), request.out / f"{name}_{method}.png")]
    return [*written, _save(sheet(panels), request.out / f"{name}_sheet.png")]


def _save(picture: Image.Image, path: Path) -> Path:
    with artefacts.whole_file(path) as temporary:
        picture.save(temporary, format="PNG")
    return path
