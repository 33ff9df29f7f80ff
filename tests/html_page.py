"""An HTML page as a test looks at it: tables, links, ids, scripts, by the parser of the standard library."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

#: Elements without an end.
VOID = {"meta", "link", "img", "input", "br"}


@dataclass
class Table:
    """A table.

    Attributes:
        section: id of the section that it stands in.
        attributes: of the element.
        caption: its text.
        rows: texts of all rows, the head among them.
    """

    section: str
    attributes: dict[str, str]
    caption: str = ""
    rows: list[list[str]] = field(default_factory=list)

    def records(self) -> list[dict[str, str]]:
        """Rows by the names of the head."""
        return [dict(zip(self.rows[0], row, strict=True)) for row in self.rows[1:]]


class Page(HTMLParser):
    """A page.

    Attributes:
        ids: of all elements.
        links: what `a` leads to.
        sources: what `src` and other attributes load.
        scripts: attributes and content of each.
        tables: of the page.
        texts: of each section, by its id.
        open: elements that were not closed at the end, which there should be none of.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.tables: list[Table] = []
        self.texts: dict[str, str] = {}
        self.meta: dict[str, str] = {}
        self.open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.sources += [
            given[name] for name in ("src", "data", "srcset", "poster", "action") if name in given
        ]
        self.sources += [given["href"]] if tag == "link" else []
        if tag == "meta":
            self.meta[given.get("name", given.get("http-equiv", "charset"))] = given.get("content", "")
        if tag not in VOID:
            self.open.append((tag, given.get("id", "")))
        if tag == "script":
            self.scripts.append((given, ""))
        if tag == "table":
            self.tables.append(Table(self.section(), given))
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in ("th", "td"):
            self.tables[-1].rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self.open.pop()
        assert opened == tag, f"</{tag}> ends <{opened}>"

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if tags[-1:] == ["script"]:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif "caption" in tags:
            self.tables[-1].caption += data
        elif "th" in tags or "td" in tags:
            self.tables[-1].rows[-1][-1] += data
        if "script" not in tags and "style" not in tags:
            self.texts[self.section()] = self.texts.get(self.section(), "") + data

    def section(self) -> str:
        """The id of the section that the parser is in."""
        named = [name for tag, name in self.open if tag == "section" and name]
        return named[-1] if named else ""
