"""The commands that are no stages: their options, and the functions that they call."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import yaml

from heatproof import config
from heatproof.errors import HeatproofError, InputError, nearest

RESUMES = "completed work is kept, and the same command resumes there"


class Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest command.

    `prepare`, where set, is called with the parser and its arguments before they are read: options that depend on others.
    """

    commands: Sequence[str] = ()
    prepare: "Callable[[Parser, Sequence[str]], None] | None" = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; where options are prepared, all must be known."""
        if self.prepare is None:
            return super().parse_known_args(args, namespace)
        try:
            self.prepare(self, args)
        except HeatproofError as error:
            self.error(str(error))
        found, others = super().parse_known_args(args, namespace)
        for other in others:
            known = [option for option in self._option_string_actions if option.startswith("--")]
            hint = nearest(other.split("=")[0], known) if other.startswith("--") else "; name all pictures in one place"
            self.error(f"unknown {'option ' if other.startswith('-') else ''}{other!r}{hint}")
        return found, others

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2."""
        if "argument COMMAND: invalid choice" in message and len(sys.argv) > 1:
            message = f"unknown command {sys.argv[1]!r}{nearest(sys.argv[1], self.commands)}"
        self.exit(2, f"heatproof: {message} (see {self.prog} --help)\n")


def _add_schema(tool: argparse.ArgumentParser) -> None:
    tool.epilog = "heatproof schema > schema.json, then in your editor: # yaml-language-server: $schema=schema.json"
    tool.set_defaults(command=lambda asked: print(json.dumps(config.Config.model_json_schema(), indent=2)))  # noqa: T201


def _add_inspect(tool: argparse.ArgumentParser) -> None:
    tool.add_argument("file", type=Path, metavar="FILE", help="attribution file (.h5), complete or not")
    tool.set_defaults(command=lambda asked: import_module("heatproof.stages.maps").inspect(asked.file))


def _add_import(tool: argparse.ArgumentParser) -> None:
    tool.add_argument(
        "source", type=Path, metavar="SOURCE", help=".npz with maps (N,H,W) or (N,C,H,W); also index, target"
    )
    tool.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file of the experiment")
    tool.add_argument(
        "--method", required=True, metavar="NAME", help="name of the method, as attribution_methods will call it"
    )
    tool.add_argument("--split", required=True, choices=("train", "validation", "test"))
    tool.add_argument("overrides", nargs="*", metavar="section.key=value")
    tool.set_defaults(command=_import_maps, kept=RESUMES)


def _import_maps(asked: argparse.Namespace) -> None:
    settings = config.read(asked.config, asked.overrides)
    from heatproof.stages import maps
    from heatproof.stages.run import Run

    maps.import_maps(Run(settings), asked.source, method=asked.method, split=asked.split)


def _add_import_masker(tool: argparse.ArgumentParser) -> None:
    tool.epilog = """\
Writes FOLDER/masker.pth, for the method heatproof.methods.masker.Masker, and FOLDER/classifier.pth, the classifier that it reads,
to be explained with it (model: {arch: torchvision.models.resnet50, pretrained_weights: FOLDER/classifier.pth})."""
    tool.add_argument(
        "file", type=Path, metavar="FILE", help="checkpoint of the published code, such as fix.chk or ca.chk"
    )
    tool.add_argument("target", type=Path, metavar="FOLDER", help="where the files go")
    tool.add_argument("--arch", metavar="ARCH", help="its classifier; default: torchvision.models.resnet50")
    tool.add_argument("--taps", nargs="+", metavar="LAYER", help="its layers that indices 0, 1, ... stand for")
    tool.set_defaults(command=_import_masker)


def _import_masker(asked: argparse.Namespace) -> None:
    from heatproof.models import catalogue
    from heatproof.stages import masker_import

    arch = None if asked.arch is None else catalogue.path_of(asked.arch)
    given: dict[str, Any] = {name: value for name, value in (("arch", arch), ("taps", asked.taps)) if value is not None}
    masker_import.import_masker(asked.file, asked.target, **given)


def _add_export(tool: argparse.ArgumentParser) -> None:
    tool.add_argument("file", type=Path, metavar="FILE", help="complete attribution file (.h5)")
    tool.add_argument("target", type=Path, metavar="TARGET", help="file, or folder for --virelay")
    form = tool.add_mutually_exclusive_group(required=True)
    form.add_argument("--npz", dest="form", action="store_const", const="npz", help="NumPy archive")
    form.add_argument(
        "--archive", dest="form", action="store_const", const="archive", help="compressed HDF5, for shipping"
    )
    form.add_argument(
        "--virelay", dest="form", action="store_const", const="virelay", help="project for the ViRelAy browser"
    )
    tool.add_argument(
        "--config", type=Path, metavar="FILE", help="experiment that the maps belong to; --virelay needs its images"
    )
    tool.set_defaults(command=_export_maps)


def _export_maps(asked: argparse.Namespace) -> None:
    from heatproof.stages import maps
    from heatproof.stages.run import Run

    run = None if asked.config is None else Run(config.read(asked.config))
    maps.export_maps(asked.file, asked.target, form=asked.form, run=run)


def _add_prepare(tool: argparse.ArgumentParser) -> None:
    tool.epilog = """\
The lists are those of the masking-based saliency code, for the same seed. Then, in a configuration:

    data: {dataset: Prepared, dataset_dir: FOLDER}"""
    optional: dict[str, Any] = {"type": Path, "metavar": "DIR"}
    needed: dict[str, Any] = {"required": True, **optional}
    tool.add_argument("--train-path", **needed, help="training pictures, a folder for each class")
    tool.add_argument("--val-path", **needed, help="pictures that are tested on, a folder for each class")
    tool.add_argument("--output-base-path", **needed, help="folder for the lists")
    tool.add_argument(
        "--val-annotation-path", **optional, help="XML files of the val pictures; default: boxes are not known"
    )
    tool.add_argument(
        "--extended-annot-base-path",
        **optional,
        help="<class>/<file stem>.xml of some training pictures; they make train_train.json and train_val.json",
    )
    count: dict[str, Any] = {"type": int, "metavar": "N"}
    tool.add_argument(
        "--num-per-class-in-train-val", **count, default=50, help="pictures of a class in train_val.json; default: 50"
    )
    tool.add_argument("--seed", **count, default=1234, help="of all draws; default: 1234")
    tool.add_argument("--size", **count, default=224, help="side of the frame that boxes are scaled to; default: 224")
    tool.add_argument(
        "--break-ratio",
        action="store_true",
        help="both sides are scaled; default: the shorter one, then the centre cut",
    )
    tool.add_argument(
        "--exif",
        choices=("turn", "ignore"),
        default="turn",
        help="whether pictures are turned as their cameras say (EXIF), or taken as they are stored; default: turn",
    )
    tool.add_argument("--examples-per-class", **count, help="cut the training lists to so many pictures of each class")
    tool.add_argument("--num-classes", **count, help="cut the training lists to so many classes; labels stay")
    tool.add_argument("--dry-run", action="store_true", help="read all, write nothing, say what would be written")
    tool.set_defaults(command=_prepare)


def _prepare(asked: argparse.Namespace) -> None:
    from heatproof.stages import prepare

    prepare.run(
        prepare.Request(
            train=asked.train_path,
            val=asked.val_path,
            out=asked.output_base_path,
            val_annotations=asked.val_annotation_path,
            train_annotations=asked.extended_annot_base_path,
            per_class=asked.num_per_class_in_train_val,
            seed=asked.seed,
            size=asked.size,
            squash=asked.break_ratio,
            exif=asked.exif,
            examples_per_class=asked.examples_per_class,
            classes=asked.num_classes,
            dry_run=asked.dry_run,
        )
    )


def _add_explain(tool: Parser) -> None:
    tool.epilog = """\
Each picture leaves <picture>_<method>.npy (the map, float32, of the part that the model sees), <picture>_<method>.png (over
the picture) and <picture>_sheet.png (all methods side by side). Methods go by name, with or without dashes, or by dotted path;
their options are listed behind --method NAME --help.

    heatproof explain cat.jpg --model torchvision.models.resnet50 --method grad-cam --layer layer4
    heatproof explain photos/ --model timm:vit_tiny_patch16_224 --method attention-rollout --head-fusion max --discard-ratio 0.9
    heatproof explain cat.jpg --model timm:vit_tiny_patch16_224 --method chefer --method intgrad --target 'tabby'
    heatproof explain disc.png --model heatproof.models.vit.ViTTiny --weights runs/vit_planted/train_cls/best_model.pth \\
        --method gradient"""
    tool.add_argument("sources", nargs="+", type=Path, metavar="PICTURE", help="picture file, or folder of pictures")
    tool.add_argument(
        "--model",
        required=True,
        metavar="ARCH",
        help="torchvision's name, such as resnet50, one of the package's, such as ResNet8, timm:NAME, hf:NAME, or dotted path",
    )
    tool.add_argument(
        "--method", required=True, action="append", metavar="NAME", help="what explains; again for several"
    )
    tool.add_argument(
        "--weights", default="DEFAULT", metavar="FILE", help="file of weights, or random; default: the library's own"
    )
    tool.add_argument(
        "--target",
        metavar="CLASS",
        help="index or name; 'A, B' for any of several, 'A - B' for one rather than another; default: the most probable class",
    )
    tool.add_argument("--classes", type=Path, metavar="FILE", help="text file with the name of each class, one a line")
    tool.add_argument("--out", type=Path, default=Path("explained"), metavar="FOLDER", help="default: explained")
    tool.add_argument(
        "--colour",
        choices=("perceptual", "jet"),
        default="perceptual",
        help="of the overlays; jet as vit-explain draws it",
    )
    tool.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    tool.add_argument("--size", type=_sides, metavar="N | HxW", help="scale pictures to this size")
    tool.add_argument("--mean", type=_numbers, metavar="R,G,B", help="of the model's normalisation, if not known")
    tool.add_argument("--std", type=_numbers, metavar="R,G,B", help="likewise")
    tool.add_argument(
        "--model-output",
        choices=("softmax", "sigmoid", "probabilities"),
        help="what the model gives: logits of classes, logits of labels that can be true together, or probabilities; "
        "default: logits of classes",
    )
    tool.add_argument(
        "--channel-reduction",
        default="signed_max",
        help="how a map with channels becomes one: signed_max, abs_max, sum, abs_sum, l2 or mean",
    )
    tool.allow_abbrev = False
    tool.prepare = _add_method_options
    tool.set_defaults(
        command=_explain,
        kept="files written so far are kept, and the same command starts again with the first picture",
        smaller="use a smaller --size, or one method at a time",
    )


def _add_method_options(tool: Parser, arguments: Sequence[str]) -> None:
    """Adds the options of the methods that the arguments name."""
    asked = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    asked.add_argument("--method", action="append", default=[], nargs="?")
    names = [name for name in asked.parse_known_args(arguments)[0].method if name]
    from heatproof.methods import catalogue
    from heatproof.stages import explain

    group = tool.add_argument_group("options of the methods")
    added: set[str] = set()
    for name in names:
        path = catalogue.path_of(name)
        for option, parameter in explain.settable(path).items():
            if option in added:
                continue
            added.add(option)
            default = "needed" if parameter.default is parameter.empty else f"default {parameter.default!r}"
            form: dict[str, Any] = {"type": _value, "metavar": "VALUE"}
            if isinstance(parameter.default, bool):
                form = {"action": argparse.BooleanOptionalAction}
            title, dashed = catalogue.dashed(path.rpartition(".")[2]), catalogue.dashed(option)
            form |= {"dest": f"option.{option}", "default": argparse.SUPPRESS}
            form["help"] = f"{title}: {default}".replace("%", "%%")
            try:
                group.add_argument(f"--{dashed}", **form)
            except argparse.ArgumentError:  # explain has an option of this name, such as --method
                group.add_argument(f"--{title}-{dashed}", **form)


def _explain(asked: argparse.Namespace) -> None:
    from heatproof.models import Normalization, catalogue
    from heatproof.stages import explain

    if (asked.mean is None) != (asked.std is None):
        raise InputError("--mean and --std: give both, or neither")
    options = {key.removeprefix("option."): value for key, value in vars(asked).items() if key.startswith("option.")}
    request = explain.Request(
        asked.sources,
        catalogue.path_of(asked.model),
        explain.methods_named(asked.method, options, asked.channel_reduction),
        weights=asked.weights,
        target=asked.target,
        out=asked.out,
        colour=asked.colour,
        device=asked.device,
        classes=asked.classes,
        size=asked.size,
        normalization=None if asked.mean is None else Normalization(asked.mean, asked.std),
        output=asked.model_output,
    )
    for line in explain.run(request):
        print(line)  # noqa: T201


def _value(text: str) -> Any:
    """A number, else what YAML makes of it: true, null, a list, text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, list or word") from error


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number for each channel, such as 0.5,0.5,0.5") from error


def _sides(text: str) -> tuple[int, int]:
    sides = [int(part) if part.isdecimal() else 0 for part in text.split("x")]
    if not 1 <= len(sides) <= 2 or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give one side, such as 224, or height and width, such as 224x448")
    return sides[0], sides[-1]


TOOLS: dict[str, tuple[Callable[[Parser], None], str]] = {
    "explain": (_add_explain, "explain pictures: a map and an overlay of each, for one method or several"),
    "prepare-data": (_add_prepare, "list a tree's pictures, labels and boxes, as trained maskers read them"),
    "inspect": (_add_inspect, "say what an attribution file is, how far it got, and whether it is whole"),
    "import-maps": (_add_import, "make an attribution file of maps that were computed elsewhere"),
    "import-masker": (_add_import_masker, "make a masker of a checkpoint of the published code"),
    "export": (_add_export, "give an attribution file away in another form"),
    "schema": (_add_schema, "print the JSON schema of configuration files, for editors"),
}
