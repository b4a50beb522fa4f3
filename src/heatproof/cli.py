"""The command line: arguments in, stage called, errors turned into one line.

Exit status: 0 done (also when nothing was left to do), 2 the user can mend it, 1 a bug of ours or failed cells,
130 interrupted, 141 the reader of the output has closed it.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, TextIO

import yaml

from heatproof import config, plugins, threads
from heatproof.errors import CellsFailedError, HeatproofError, InputError, MapError, MissingInputError, nearest
from heatproof.stages.registry import STAGES

logger = logging.getLogger(__name__)

CHAINS = {
    "roar": (
        ("train-cls", "extract-attribution-maps", "evaluate-attribution-maps-roar"),
        "train, compute the maps, remove and retrain",
    ),
    "demo": (tuple(STAGES), "all stages that the configuration has a section for, one after the other"),
}
# What the operating system refuses and a user can mend: space, permissions, quota, paths, disks.
MENDABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE,
}  # fmt: skip


CLOSED = 141  # as shells report a program that SIGPIPE has ended
RESUMES = "completed work is kept, and the same command resumes there"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    threads.settle_environment()
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()  # the last lines may be refused as well
    except BrokenPipeError:
        if not _reader_has_left():  # another pipe, of a process of ours
            raise
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - the interpreter flushes once more when it ends
            for stream in filter(_is_closed, (sys.stdout, sys.stderr)):
                os.dup2(nowhere.fileno(), stream.fileno())
        return CLOSED


def _reader_has_left() -> bool:
    return _is_closed(sys.stdout) or _is_closed(sys.stderr)


def _is_closed(stream: TextIO) -> bool:
    """Whether nobody reads a pipe any more."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _main(arguments: Sequence[str] | None) -> int:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - a user's own modules are found from where the command is started
    parser = _parser()
    # argparse gives up on positional arguments that stand on both sides of options; overrides may stand anywhere.
    asked, others = parser.parse_known_args(arguments)
    if others and not (hasattr(asked, "overrides") and all(re.match(r"[a-z]\S*=", other) for other in others)):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    asked.overrides = [*getattr(asked, "overrides", []), *others]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # Pillow's, of what is read all the same
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        asked.command(asked)
    except CellsFailedError as error:
        return _fail(error, 1)
    except HeatproofError as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail(f"interrupted; {asked.kept}", 130)
    except BrokenPipeError:  # `main` tells a reader that has enough from a broken pipe of our own
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            raise  # also where a user's own code was printing
        known = _mendable(error, asked) or plugins.raised_by_a_plugin(error)
        if known is None:
            raise
        return _fail(known, 2)
    return 0


def _mendable(error: Exception, asked: argparse.Namespace) -> str | None:
    """What a user can do about an error of the operating system or about full memory; None for any other error."""
    if isinstance(error, OSError) and (error.errno in MENDABLE or "No space left" in str(error)):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; {asked.kept}"
    if isinstance(error, MemoryError | RuntimeError) and _is_out_of_memory(error):
        reason = " ".join(str(error).split())[:150]
        return f"memory is full ({reason}); {asked.kept}; {asked.smaller}"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Whether host or device had no memory left; torch, which has its own error for devices, need not be imported for it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _fail(error: object, status: int) -> int:
    message = " ".join(str(error).split("\n"))
    print(f"heatproof: {message}", file=sys.stderr)  # noqa: T201
    return status


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


class _Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest command.

    `prepare`, where set, is called with the parser and its arguments before they are read: options that depend on others.
    """

    prepare: "Callable[[_Parser, Sequence[str]], None] | None" = None

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
        if "argument COMMAND: invalid choice" in message and len(sys.argv) > 1:
            message = f"unknown command {sys.argv[1]!r}{nearest(sys.argv[1], [*STAGES, *CHAINS, *TOOLS])}"
        self.exit(2, f"heatproof: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="heatproof",
        description="Tests whether the heatmaps that explain vision models can be trusted.",
        epilog="Try: heatproof demo --config configs/demo.yml",
        formatter_class=formatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, stage in STAGES.items():
        _add_stage(commands, name, stage.summary, (name,))
    for name, (stages, summary) in CHAINS.items():
        _add_stage(commands, name, summary, stages)
    for name, (add, summary) in TOOLS.items():
        tool = commands.add_parser(name, help=summary, description=summary, formatter_class=formatter)
        tool.set_defaults(kept="run the same command again", smaller="close other programs, or use a machine with more")
        add(tool)
    return parser


def _add_stage(
    commands: "argparse._SubParsersAction[_Parser]", name: str, summary: str, stages: tuple[str, ...]
) -> None:
    stage = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"""\
What is complete is left as it is, what is partial is continued, what is stale is made again, and the log says which.
Overrides name a key of the configuration and its value:

    heatproof {name} --config configs/demo.yml seed=1 train_cls.nb_epochs=2
{_keys(name)}""",
    )
    stage.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file of the experiment")
    stage.add_argument(
        "--dry-run", action="store_true", help="say what would be computed and what is there; compute nothing"
    )
    stage.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that replace those of the file"
    )
    stage.set_defaults(
        command=lambda asked: _run_stages(asked, stages, needs_all=name != "demo"),
        kept=RESUMES,
        smaller="use a smaller batch_size or width",
    )


def _keys(name: str) -> str:
    """The keys of a stage's section, for its help."""
    if name not in STAGES:
        return ""
    section = STAGES[name].section
    lines = [
        f"    {key}: {default}".rstrip() + f"    # {told}" * bool(told) for key, default, told in config.keys(section)
    ]
    return "\n".join(
        ["", f"The keys of {section} and their defaults (heatproof schema prints those inside of them):", "", *lines]
    )


def _run_stages(asked: argparse.Namespace, stages: Sequence[str], *, needs_all: bool) -> None:
    settings = config.read(asked.config, asked.overrides)
    from heatproof import downloads

    with downloads.none() if asked.dry_run else contextlib.nullcontext():
        _run_each(asked, settings, stages, needs_all=needs_all)


def _run_each(asked: argparse.Namespace, settings: config.Config, stages: Sequence[str], *, needs_all: bool) -> None:
    from heatproof import runtime
    from heatproof.stages.run import Run

    run = Run(settings, dry_run=asked.dry_run)
    runtime.keep_freed_memory()
    runtime.make_deterministic(run.device)
    for name in stages:
        if not needs_all and getattr(settings, STAGES[name].section) is None:
            continue
        threads.begin()
        try:
            STAGES[name].load().run(run)
        except (MissingInputError, MapError) as error:  # not there yet, or of another classifier or other data
            if not asked.dry_run:
                raise
            logger.info("%s: all of it is still to be computed; it waits for what comes before (%s)", name, error)


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
    from heatproof.stages import masker_import

    given = {name: value for name, value in (("arch", asked.arch), ("taps", asked.taps)) if value is not None}
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


def _add_explain(tool: _Parser) -> None:
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
        "--model", required=True, metavar="ARCH", help="torchvision.models.NAME, timm:NAME, hf:NAME, or dotted path"
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


def _add_method_options(tool: _Parser, arguments: Sequence[str]) -> None:
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
    from heatproof.models import Normalization
    from heatproof.stages import explain

    if (asked.mean is None) != (asked.std is None):
        raise InputError("--mean and --std: give both, or neither")
    options = {key.removeprefix("option."): value for key, value in vars(asked).items() if key.startswith("option.")}
    request = explain.Request(
        asked.sources,
        asked.model,
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


TOOLS: dict[str, tuple[Callable[[_Parser], None], str]] = {
    "explain": (_add_explain, "explain pictures: a map and an overlay of each, for one method or several"),
    "prepare-data": (_add_prepare, "list a tree's pictures, labels and boxes, as trained maskers read them"),
    "inspect": (_add_inspect, "say what an attribution file is, how far it got, and whether it is whole"),
    "import-maps": (_add_import, "make an attribution file of maps that were computed elsewhere"),
    "import-masker": (_add_import_masker, "make a masker of a checkpoint of the published code"),
    "export": (_add_export, "give an attribution file away in another form"),
    "schema": (_add_schema, "print the JSON schema of configuration files, for editors"),
}
