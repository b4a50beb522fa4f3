"""Folders of pictures: which files are pictures, which folders are classes, and what is left out.

Operating systems, servers and notebooks leave folders and files of their own among the user's. They are no classes and no
pictures, and neither is a folder without pictures: counted as a class, it would shift the labels of all others.
"""

import errno
import logging
import os
import stat
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from heatproof.datasets import pictures
from heatproof.errors import DataError

logger = logging.getLogger(__name__)

# In lower case. Names that begin with a dot are hidden as well: .DS_Store, ._photo.jpg, .ipynb_checkpoints, .thumbnails.
SYSTEM = frozenset(
    {
        "__macosx", "__pycache__", "@eadir", "@synoeastream", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot",
        "$recycle.bin", "recycler", "system volume information", "lost+found", "network trash folder", "temporary items",
        "thumbs.db", "ehthumbs.db", "desktop.ini",
    }
)  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or belongs to a system."""
    return name.startswith(".") or name.lower() in SYSTEM


class LeftOut:
    """What is left out below a folder, for one line in the log."""

    def __init__(self) -> None:
        self._paths: dict[str, list[Path]] = {}

    def add(self, reason: str, path: Path) -> None:
        """Notes a file or folder."""
        self._paths.setdefault(reason, []).append(path)

    def log(self, root: Path) -> None:
        """Logs how many there are for each reason, with the first names."""
        if self._paths:
            logger.info("%s: left out: %s", root, "; ".join(_listed(root, *item) for item in self._paths.items()))


def _listed(root: Path, reason: str, paths: Sequence[Path]) -> str:
    shown = [str(path.relative_to(root)) for path in paths[:3]] + ["..."] * (len(paths) > 3)
    return f"{len(paths)} {reason} ({', '.join(shown)})"


def class_folders(roots: Sequence[Path], declared: Collection[str] = ()) -> list[str]:
    """Names of the folders that are classes in any of several trees, sorted: those with a picture in or below them.

    What is left out is logged, for each tree that is there.

    Args:
        roots: the trees; one that is not there has none.
        declared: names that are classes even where their folder is empty.

    Raises:
        DataError: a folder cannot be read, a link leads nowhere, or two trees spell a class differently.
    """
    left_out = {root: LeftOut() for root in roots}
    folders = {root: list(_subfolders(root, left_out[root])) for root in roots}
    names = {
        folder.name
        for own in folders.values()
        for folder in own
        if folder.name in declared or any(True for _ in _walk(folder, LeftOut(), _trail(folder)))
    }
    for root, own in folders.items():
        for folder in own:
            if folder.name not in names:
                left_out[root].add("folders without pictures", folder)
        left_out[root].log(root)
    _check_spellings(names, folders)
    return sorted(names)


def _check_spellings(names: Collection[str], folders: Mapping[Path, Sequence[Path]]) -> None:
    """Refuses two classes whose names look alike and stand in no tree side by side: one class under two spellings."""
    spellings: dict[str, str] = {}
    for name in sorted(names):
        other = spellings.setdefault(unicodedata.normalize("NFKC", name).strip().casefold(), name)
        spelling = [root for root, own in folders.items() if any(folder.name in (name, other) for folder in own)]
        beside = any({name, other} <= {folder.name for folder in own} for own in folders.values())
        if other != name and not beside:
            raise DataError(
                f"{spelling[-1]}: the classes {other!a} and {name!a} are one class in two spellings, each in another of "
                f"{', '.join(map(str, spelling))}; rename the folders of one of the two"
            )


def pictures_below(folder: Path, left_out: LeftOut) -> list[tuple[Path, int]]:
    """Picture files in a folder and those below it, with their sizes in bytes, sorted by path; none where it is not there.

    Args:
        folder: links in it are followed, but for those that lead up again.
        left_out: takes what is left out.

    Raises:
        DataError: a folder cannot be read, or a link to a picture leads nowhere.
    """
    return list(_walk(folder, left_out, _trail(folder))) if folder.is_dir() else []


def pictures_in(folder: Path) -> list[Path]:
    """Picture files in a folder, not below it, sorted; what is left out is logged.

    Raises:
        DataError: the folder cannot be read, or a link to a picture leads nowhere.
    """
    left_out = LeftOut()
    found = [Path(entry.path) for entry in _entries(folder, left_out) if _size_of_picture(entry, left_out) is not None]
    left_out.log(folder)
    return found


def _trail(folder: Path) -> tuple[Path, ...]:
    """The real folder that holds a folder, and its own real path: a link below that leads to either of them leads up."""
    return folder.absolute().parent.resolve(), folder.resolve()


def _walk(folder: Path, left_out: LeftOut, trail: tuple[Path, ...]) -> Iterator[tuple[Path, int]]:
    """The pictures below a folder. The trail ends with its real path; before it stand those from which links led on."""
    for entry in _entries(folder, left_out):
        path = folder / entry.name
        if not _is_folder(entry):
            size = _size_of_picture(entry, left_out)
            if size is not None:
                yield path, size
        elif not entry.is_symlink():
            yield from _walk(path, left_out, (*trail[:-1], trail[-1] / entry.name))
        elif _leads_up(path, trail):
            left_out.add("links that lead up", path)
        else:
            yield from _walk(path, left_out, (*trail, path.resolve()))


def _subfolders(root: Path, left_out: LeftOut) -> Iterator[Path]:
    """The folders in a tree that may be classes; a file beside them, such as a list, is none of their pictures."""
    for entry in _entries(root, left_out) if root.is_dir() else ():
        path = root / entry.name
        if _is_folder(entry) and entry.is_symlink() and _leads_up(path, (root.resolve(),)):
            left_out.add("links that lead up", path)
        elif _is_folder(entry):
            yield path
        elif entry.is_symlink():  # to a file, or to nothing
            try:
                path.stat()
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise _unreadable(path, error.strerror) from error
                left_out.add("links that lead to themselves", path)


def _entries(folder: Path, left_out: LeftOut) -> list["os.DirEntry[str]"]:
    """What a folder holds, sorted by name, without the entries of systems."""
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder}: the folder cannot be read: {error.strerror}; change its rights, or move it elsewhere"
        ) from error
    kept = []
    for entry in entries:
        if is_hidden(entry.name):
            left_out.add("hidden or system entries", folder / entry.name)
        else:
            kept.append(entry)
    return kept


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    # Of a link to itself, entry.is_dir() would be an error.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _leads_up(link: Path, trail: Sequence[Path]) -> bool:
    return any(place.is_relative_to(link.resolve()) for place in trail)


def _size_of_picture(entry: "os.DirEntry[str]", left_out: LeftOut) -> int | None:
    """Bytes of a picture file; None for what is none."""
    if not entry.name.lower().endswith(pictures.SUFFIXES):
        left_out.add("entries without the ending of a picture", Path(entry.path))
        return None
    try:
        found = entry.stat()
    except OSError as error:  # a link that leads nowhere, or to itself
        raise _unreadable(Path(entry.path), error.strerror) from error
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    left_out.add("folders and devices with the ending of a picture", Path(entry.path))
    return None


def _unreadable(path: Path, reason: object) -> DataError:
    return DataError(f"{path}: cannot be read: {reason}; restore or remove it")
