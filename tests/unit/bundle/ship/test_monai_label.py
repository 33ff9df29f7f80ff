"""The app for MONAI Label, with the few things of the server that it touches; tests/hosts has the server."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.commands import ROOT


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module as the server loads it."""

    class MONAILabelApp:
        app_dir = str(tmp_path)

    class MyApp(MONAILabelApp):
        def init_strategies(self) -> dict[str, Any]:
            return {"first": None}

    class Strategy:
        def __init__(self, description: str) -> None:
            self.description = description

    names = {
        "monaibundle": {"MyApp": MyApp},
        "monailabel.interfaces.app": {"MONAILabelApp": MONAILabelApp},
        "monailabel.interfaces.datastore": {"Datastore": object},
        "monailabel.interfaces.tasks.strategy": {"Strategy": Strategy},
    }
    for parent in ("monailabel", "monailabel.interfaces", "monailabel.interfaces.tasks"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    for name, content in names.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("main", ROOT / "bundle/ship/monai_label.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def datastore(*names: str) -> Any:
    return SimpleNamespace(get_unlabeled_images=lambda: list(names))


def test_server_finds_one_class(app: Any) -> None:
    """MONAI Label 0.8.5 takes the first class, by name, of which MONAILabelApp is a direct base."""
    bases = {
        name: [base.__name__ for base in thing.__bases__]
        for name, thing in vars(app).items()
        if isinstance(thing, type)
    }
    assert [name for name in sorted(bases) if "MONAILabelApp" in bases[name]] == ["App"]


def test_next_sample_follows_the_table(app: Any, tmp_path: Path) -> None:
    strategy = app.App().init_strategies()["suggested"]
    assert list(app.App().init_strategies()) == ["suggested", "first"]
    (tmp_path / "suggested.csv").write_text(
        "rank,case,file,class,score\n1,b,,any,1\n2,c,,any,1\n3,x,,any,1\n"
    )
    assert strategy({}, datastore("a", "b", "c")) == {"id": "b"}
    assert strategy({}, datastore("a", "c")) == {"id": "c"}
    assert strategy({}, datastore("d", "a")) == {"id": "a"}  # nobody ranked them
    assert strategy({}, datastore()) is None


def test_without_a_table_any_image_is_next(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert app.App().init_strategies()["suggested"]({}, datastore("b", "a")) == {"id": "a"}
    assert "suggested.csv is not there: python -m bundle suggest writes it" in caplog.text
