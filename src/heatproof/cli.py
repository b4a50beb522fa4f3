"""The command line: arguments in, stage called, errors turned into one line.

Exit status: 0 done (also when nothing was left to do), 2 the user can mend it, 1 a bug of ours or failed cells,
130 interrupted (what is done is kept; the same command goes on).
"""

import argparse
import errno
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from heatproof import config
from heatproof.errors import CellsFailedError, HeatproofError, MissingInputError, nearest
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - a user's own modules are found from where the command is started
    parser = _parser()
    # argparse gives up on positional arguments that stand on both sides of options; overrides may stand anywhere.
    asked, others = parser.parse_known_args(arguments)
    if others and not (hasattr(asked, "overrides") and all(re.match(r"[a-z]\S*=", other) for other in others)):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    asked.overrides = [*getattr(asked, "overrides", []), *others]
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        asked.command(asked)
    except CellsFailedError as error:
        return _fail(error, 1)
    except HeatproofError as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        print("heatproof: interrupted; what is done is kept, the same command goes on from there", file=sys.stderr)  # noqa: T201
        return 130
    except OSError as error:
        if error.errno not in MENDABLE and "No space left" not in str(error):
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _fail(
            f"{where}{error.strerror or error}; what is done is kept, mend it and run the same command again", 2
        )
    return 0


def _fail(error: object, status: int) -> int:
    message = " ".join(str(error).split("\n"))
    print(f"heatproof: {message}", file=sys.stderr)  # noqa: T201
    return status


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


class _Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest command."""

    def error(self, message: str) -> NoReturn:
        if "invalid choice" in message and len(sys.argv) > 1:
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

    heatproof {name} --config configs/demo.yml seed=1 train_cls.nb_epochs=2""",
    )
    stage.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file of the experiment")
    stage.add_argument(
        "--dry-run", action="store_true", help="say what would be computed and what is there; compute nothing"
    )
    stage.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that replace those of the file"
    )
    stage.set_defaults(command=lambda asked: _run_stages(asked, stages, needs_all=name != "demo"))


def _run_stages(asked: argparse.Namespace, stages: Sequence[str], *, needs_all: bool) -> None:
    settings = config.read(asked.config, asked.overrides)
    from heatproof import runtime
    from heatproof.stages.run import Run

    run = Run(settings, dry_run=asked.dry_run)
    runtime.keep_freed_memory()
    runtime.make_deterministic(run.device)
    for name in stages:
        if not needs_all and getattr(settings, STAGES[name].section) is None:
            continue
        try:
            STAGES[name].load().run(run)
        except MissingInputError as error:
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
    tool.set_defaults(command=_import_maps)


def _import_maps(asked: argparse.Namespace) -> None:
    settings = config.read(asked.config, asked.overrides)
    from heatproof.stages import maps
    from heatproof.stages.run import Run

    maps.import_maps(Run(settings), asked.source, method=asked.method, split=asked.split)


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


TOOLS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "inspect": (_add_inspect, "say what an attribution file is, how far it got, and whether it is whole"),
    "import-maps": (_add_import, "make an attribution file of maps that were computed elsewhere"),
    "export": (_add_export, "give an attribution file away in another form"),
    "schema": (_add_schema, "print the JSON schema of configuration files, for editors"),
}
