"""What a user can mend. Each error is one line: what was wrong, where, what to do; the command ends with status 2.

Any other exception that reaches the command line is a bug of ours.
"""

from pathlib import Path


class HeatproofError(Exception):
    """Base of all errors that are shown as one line, without a traceback."""


class ConfigError(HeatproofError):
    """A configuration file or an override on the command line is wrong."""


class PluginError(HeatproofError):
    """A dotted path does not lead to something that can be used, or its options do not fit."""


class DataError(HeatproofError):
    """Images, labels or boxes are missing, damaged or of the wrong form."""


class ModelError(HeatproofError):
    """A classifier or its weights cannot be used: wrong architecture, missing layer, unsafe file."""


class MapError(HeatproofError):
    """An attribution map is invalid, or an attribution file is damaged, foreign or incomplete."""


class MissingInputError(HeatproofError):
    """What an earlier stage makes is not there yet; a dry run says so and goes on."""


class DamagedError(MissingInputError):
    """A file that an earlier stage left does not hold what that stage wrote.

    Args:
        path: the file.
        reason: how that shows, in a few words.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: damaged ({reason}); run its stage again")
        self.reason = reason


class InputError(HeatproofError, ValueError):
    """An argument of a public function has the wrong shape, type or value."""


class DivergedError(HeatproofError):
    """A training's loss became infinite or NaN."""


class CellsFailedError(HeatproofError):
    """Some cells of a grid failed; the others are done. The command ends with status 1."""


def nearest(name: str, known: object) -> str:
    """A hint for a misspelt name: "; did you mean 'x'?", or the known names where none is near."""
    import difflib

    names = [str(n) for n in known]  # type: ignore[attr-defined]
    close = [n for n in names if name and n.startswith(name)] or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if 0 < len(names) <= 40 else ""
