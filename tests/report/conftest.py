"""One run's folder for all tests that only read it, and a page parsed into its parts."""

from html.parser import HTMLParser

import pytest

from heatproof.stages import report
from tests.report import run_folder

VOID = {"meta", "link", "img", "input", "br", "wbr"}


class Page(HTMLParser):
    """A page's tables, texts, links and whether its tags are balanced."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.stack, self.problems, self.links, self.rows, self.texts = [], [], [], {}, []
        self.ids, self.alternatives, self._row, self._table = [], [], None, None
        self.tables = 0
        self.feed(html)
        self.close()
        self.problems += [f"<{tag}> is never closed" for tag in self.stack]

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [
            (tag, name, found[name]) for name in ("src", "href", "srcset", "action", "data") if name in found
        ]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "img":
            self.alternatives.append(found.get("alt"))
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "table":
            self.tables += 1
            self._table = found.get("id") or f"table {self.tables}"
            self.rows[self._table] = []
        if tag == "tr":
            self._row = []
        if tag in ("td", "th") and self._row is not None:
            self._row.append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        if not self.stack or self.stack[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.stack[-1:]} at {self.getpos()}")
        else:
            self.stack.pop()
        if tag == "tr":
            self.rows[self._table].append([" ".join(cell.split()) for cell in self._row])
            self._row = None

    def handle_data(self, data):
        if self.stack and self.stack[-1] in ("script", "style"):
            return
        self.texts.append(data)
        if self._row:
            self._row[-1] += f" {data}"

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split()).replace("\u202f", " ")

    def row(self, name, table=None):
        """The first row that begins with a name, in a table or anywhere."""
        tables = [self.rows[table]] if table else self.rows.values()
        return next(row for rows in tables for row in rows if row and row[0].split(" (")[0] == name)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The configuration of a run with all results and its page."""
    path = run_folder.write_configuration(tmp_path_factory.mktemp("whole"))
    run_folder.write_all(path)
    report.run(run_folder.open_run(path))
    return path


@pytest.fixture
def page_of():
    def read(path):
        return Page((run_folder.open_run(path).config.outdir / "report" / "index.html").read_text(encoding="utf-8"))

    return read


@pytest.fixture
def parsed():
    return Page
