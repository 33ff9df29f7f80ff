"""The documents name what exists: every id, default, overlay and file."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
COMPLETE = ("train.json", "inference.json")


def read(name: str) -> dict:
    return json.loads((ROOT / "configs" / name).read_text(encoding="utf-8"))


def plain(value: object) -> bool:
    """Numbers, booleans and lists of numbers, which a table can show as they are."""
    return isinstance(value, int | float) or (
        isinstance(value, list) and bool(value) and all(map(plain, value))
    )


@pytest.mark.parametrize("name", COMPLETE)
def test_reference_names_every_top_level_id(name: str) -> None:
    assert [key for key in read(name) if f"`{key}`" not in REFERENCE] == []


@pytest.mark.parametrize("name", COMPLETE)
def test_reference_states_the_defaults(name: str) -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", REFERENCE, re.MULTILINE))
    wrong = {
        key: value
        for key, value in read(name).items()
        if plain(value) and json.dumps(value) != rows.get(key, "").strip(" `")
    }
    assert wrong == {}


def test_reference_names_every_overlay() -> None:
    overlays = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.json")}
    complete = {f"configs/{name}" for name in (*COMPLETE, "metadata.json")}
    assert sorted(path for path in overlays - complete if f"`{path}`" not in REFERENCE) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = re.findall(r"(?<![\w/.])(?:configs|scripts|bundle|tests)/[\w/]+\.(?:json|py|conf)", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def template(node: ast.expr) -> str:
    """A string in the code as the table writes it: what is filled in is '...'."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) if isinstance(part, ast.Constant) else "..." for part in node.values)
    return "..."


def nodes() -> Iterator[ast.AST]:
    """The code, piece by piece."""
    for path in [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "bundle").rglob("*.py")]:
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def faults() -> set[str]:
    """What a file can be found to hold."""
    place = {"Fault": 0, "Problem": 2}
    found: list[ast.expr] = []
    for node in nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in place:
            for argument in node.args[place[node.func.id] :][:1]:
                choice = isinstance(argument, ast.IfExp)
                found += [argument.body, argument.orelse] if choice else [argument]  # type: ignore[attr-defined]
    return {message for message in map(template, found) if re.search(r"\w", message)}


def explained() -> list[str]:
    """The messages that docs/own-data.md explains, as written there."""
    text = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    table = text.split("## What the messages mean")[1].split("Other messages:")[0]
    cells = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)[1:]
    return [phrase.strip() for cell in cells for phrase in cell.replace("(warning)", "").split(";")]


def says(phrase: str, message: str) -> bool:
    """Whether the fixed words of a row stand in a message, in their order."""
    parts = [re.escape(part.strip()) for part in phrase.split("...")]
    return re.search(".*".join(parts), message) is not None


def test_every_message_about_a_file_is_explained() -> None:
    rows = explained()
    assert sorted(text for text in faults() if not any(says(row, text) for row in rows)) == []


def test_every_message_that_is_explained_exists() -> None:
    texts = {template(node) for node in nodes() if isinstance(node, ast.Constant | ast.JoinedStr)}
    assert [row for row in explained() if not any(says(row, text) for text in texts)] == []
