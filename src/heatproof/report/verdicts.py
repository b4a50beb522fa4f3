"""What a report concludes, as data: marks, rows, verdicts, findings."""

from dataclasses import dataclass
from typing import Literal

Pass = Literal["all", "some", "none", "unknown"]


Level = Literal["good", "note", "warning"]


@dataclass(frozen=True)
class Mark:
    """A method under one test: which reference controls it beats.

    Args:
        test: its name.
        passes: all, some or none of them; unknown where there is no interval yet.
        text: the same in words.
    """

    test: str
    passes: Pass
    text: str


@dataclass(frozen=True)
class Row:
    """A method's marks, one for each test."""

    method: str
    marks: tuple[Mark, ...]

    def passed(self) -> list[str]:
        """The tests in which it beats every reference control."""
        return [mark.test for mark in self.marks if mark.passes == "all"]


@dataclass(frozen=True)
class Verdict:
    """The answer: a headline, a few sentences, and a table of marks."""

    headline: str
    sentences: tuple[str, ...]
    tests: tuple[str, ...]
    rows: tuple[Row, ...]
    references: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """Something that a reader must know.

    Args:
        level: good, note or warning.
        title: one phrase.
        paragraphs: what, and why.
        points: the numbers, one line each.
    """

    level: Level
    title: str
    paragraphs: tuple[str, ...]
    points: tuple[str, ...] = ()
