"""The documents name what exists: every id, default, overlay and file."""

from __future__ import annotations

import json
import re
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
