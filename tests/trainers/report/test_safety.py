"""The report's page holds no foreign markup, loads nothing, and its Markdown tables stay tables."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llm_mcts.runner import Record
from llm_mcts.runs.directory import RunDirectory
from tests.trainers.report_cases import asked, make_run, scored_tree, searched
from trainers.report.markdown import inline, table
from trainers.report.report import write_reports
from trainers.report.tables import Table

EVIL = (
    '</p></div><script>alert(1)</script><img src=x onerror="alert(1)"><a href="javascript:alert(1)">x</a>" onload="x \u202e\x00'
)
TAGS = (
    "html head meta title style body header main nav h1 h2 h3 h4 p a ul li div span table thead tbody tr th td details "
    "summary pre figure figcaption svg g title line polyline circle path rect text"
)
ATTRIBUTES = (
    "lang charset http-equiv content name class id href title tabindex viewbox role aria-label aria-hidden width height open "
    "x y x1 y1 x2 y2 cx cy r d points fill stroke text-anchor"
)


class Reader(HTMLParser):
    """Tags, attributes and links of a page; unbalanced tags fail."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.open: list[str] = []
        self.style = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run in which every text that comes from elsewhere is hostile."""
    made = make_run(tmp_path, "num_rounds: 1\nmethods: {greedy: greedy}\ntask: {name: arith}\nnote: '<script>'\n", {})
    made.write_manifest({"git": {"commit": EVIL}})
    made.round(0).questions.write([asked(EVIL, EVIL, EVIL, "held-out")])
    for number, right in ((0, False), (1, True)):
        solution = f"{EVIL}\n{number}"
        made.round(number).evaluation("greedy").write([Record(EVIL, EVIL, right, solution=solution, error=EVIL).to_dict()])
    here = made.round(1)
    here.imagined.write([{"id": EVIL, "question": EVIL, "kind": EVIL, "parent": EVIL, "kept": False, "reason": EVIL}])
    here.questions.write([asked(EVIL, EVIL, "1")])
    here.trees.write([searched(EVIL, scored_tree(EVIL, [(EVIL, EVIL, 0.5), (f"{EVIL}\n#### 1", "1", 0.9)]), True)])
    here.note("rows", {"searched": 1, "refused": {EVIL: 1}, EVIL: 2})
    here.note(EVIL, {"seconds": 1.0})
    here.note("gate", {"accepted": True, "reason": EVIL})
    write_reports(made, note=EVIL)
    return made


def pages(run: RunDirectory) -> list[Path]:
    found = [run.path / "report.html", *(run.path / "trees").iterdir()]
    assert len(found) == 2
    return found


def read(file: Path) -> Reader:
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


def test_foreign_text_never_becomes_markup(run: RunDirectory) -> None:
    for file in pages(run):
        found = read(file)
        assert found.tags - set(TAGS.split()) == set()
        assert found.attributes - set(ATTRIBUTES.split()) == set()
        assert "&lt;script&gt;alert(1)" in file.read_text(encoding="utf-8")


def test_pages_load_nothing(run: RunDirectory) -> None:
    for file in pages(run):
        text, found = file.read_text(encoding="utf-8"), read(file)
        assert not re.search(r"https?://|url\(|@import|//[a-z]+\.", text)
        assert "default-src &#x27;none&#x27;; style-src &#x27;unsafe-inline&#x27;" in text
        assert "prefers-color-scheme: dark" in found.style
        assert "@media print" in found.style
        for link in found.links:
            assert link.startswith("#") or (file.parent / link).is_file()


def test_every_anchor_leads_somewhere(run: RunDirectory) -> None:
    text = (run.path / "report.html").read_text(encoding="utf-8")
    anchors = re.findall(r'href="#(\w+)"', text)
    assert len(anchors) >= 7
    assert all(f'id="{anchor}"' in text for anchor in anchors)


def test_a_tree_page_stays_in_its_folder(run: RunDirectory) -> None:
    (file,) = (run.path / "trees").iterdir()
    assert re.fullmatch(r"round_001_[\w-]+\.html", file.name)
    assert run.tree_page(1, "../../a") != run.tree_page(1, "../../b/a")
    assert run.tree_page(1, "a/b") != run.tree_page(1, "a b")  # alike once they are safe
    assert run.tree_page(1, "../a").parent == run.path / "trees"


def test_markdown_tables_keep_their_columns(run: RunDirectory) -> None:
    block: list[str] = []
    tables = 0
    for line in [*(run.path / "report.md").read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block}
            assert len(widths) == 1
            assert re.fullmatch(r"\|((---|---:)\|)+", block[1])
            assert len(block) > 2
            tables += 1
            block = []
    assert tables >= 6


def test_markdown_holds_no_foreign_markup(run: RunDirectory) -> None:
    assert not re.search(r"(?<!\\)<", (run.path / "report.md").read_text(encoding="utf-8"))


def test_a_markdown_table_by_hand() -> None:
    found = table(Table(("name", "#n"), [("a|b\nc", "1"), ("#", "2")]))
    assert found == "| name | n |\n|---|---:|\n| a\\|b c | 1 |\n| # | 2 |"
    assert inline("[x](y) `z` <b> [1, 2]") == "[x\\](y) \\`z\\` \\<b> [1, 2]"
