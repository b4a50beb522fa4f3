"""The command line: arguments in, stage called, errors turned into one line.

Exit status: 0 done (also when nothing was left to do), 2 the user can mend it, 1 a bug of ours or failed cells,
130 interrupted, 141 the reader of the output has closed it.
"""

import argparse
import contextlib
import errno
import logging
import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from heatproof import config, plugins, threads
from heatproof.errors import CellsFailedError, HeatproofError, MapError, MissingInputError
from heatproof.stages import registry
from heatproof.stages.registry import STAGES
from heatproof.tools import RESUMES, TOOLS, Parser

if TYPE_CHECKING:
    from heatproof.stages.run import Run

logger = logging.getLogger(__name__)

CHAINS = {
    "roar": (
        ("train-cls", "extract-attribution-maps", "evaluate-attribution-maps-roar"),
        "run train-cls, extract-attribution-maps and evaluate-attribution-maps-roar in order",
    ),
    "demo": (tuple(STAGES), "all stages that the configuration has a section for, one after the other"),
}
# What the operating system refuses and a user can mend: space, permissions, quota, paths, disks.
MENDABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST,
    errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE,
}  # fmt: skip


CLOSED = 141  # as shells report a program that SIGPIPE has ended


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


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="heatproof",
        description="Tests whether the heatmaps that explain vision models can be trusted.",
        epilog="Try: heatproof demo --config configs/demo.yml",
        formatter_class=formatter,
    )
    parser.commands = (*STAGES, *CHAINS, *TOOLS)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
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
    commands: "argparse._SubParsersAction[Parser]", name: str, summary: str, stages: tuple[str, ...]
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
        if not needs_all and not getattr(settings, STAGES[name].section):
            continue
        threads.begin()
        if asked.dry_run:
            _describe(run, name)
        else:
            STAGES[name].load().run(run)


def _describe(run: "Run", name: str) -> None:
    """Says of each artefact of a stage how it stands, and how many are complete."""
    try:
        states = [artefact.described() for artefact in registry.plan(run, name)]
    except (MissingInputError, MapError) as error:  # not there yet, or of another classifier or other data
        logger.info("%s: all of it is still to be computed; it waits for what comes before (%s)", name, error)
        return
    done = sum(state.is_complete for state in states)
    logger.info("%s: %d of %d complete", name, done, len(states))
