"""`bundle/ship/allowed.json` holds the names that our own configs use, each of them and no other."""

from __future__ import annotations

import pytest

from bundle.data.plan import plan_task
from bundle.ship.audit import ALLOWED, executed, read_config
from scripts.data.checks import Facts
from tests.commands import CONFIGS, ROOT

INSIDE = {"mean": 50.0, "std": 20.0, "percentiles": [-10.0, 50.0, 120.0], "voxels": 9}

OURS = {
    **{
        file.relative_to(ROOT).as_posix(): read_config(file)
        for folder in (CONFIGS, ROOT / "bundle/runs/variants", ROOT / "models")
        for file in sorted(folder.rglob("*.json"))
        if file.name != "summary.json"
    },
    "task.json": plan_task(
        [Facts((64, 64), (1.0, 1.0), {})],
        spatial_dims=2,
        in_channels=1,
        labels={},
        instances=True,
        pictures=True,
    ),
    "ct.json": plan_task(
        [Facts((64, 64, 64), (1.0, 1.0, 1.0), {0: 9, 1: 1}, {"channels": [{"foreground": INSIDE}]})],
        spatial_dims=3,
        in_channels=1,
        labels={"background": 0, "liver": 1},
        modality=["CT"],
    ),
    "scribbles.json": plan_task(
        [
            Facts(
                (64, 64, 64),
                (1.0, 1.0, 1.0),
                {0: 9, 1: 9, 255: 64**3 - 18},
                {"channels": [{"foreground": INSIDE}], "far": 64**3 // 2},
            )
        ],
        spatial_dims=3,
        in_channels=1,
        labels={"background": 0, "organ": 1, "ignore": 255},
        modality=["CT"],
    ),
}


def test_none_is_missing() -> None:
    missing = [f"{found.place}: {found.what}: {found.problem}" for found in executed(OURS) if found.problem]
    assert not missing, f"add to bundle/ship/allowed.json what {missing} use"


def test_none_is_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {found.what for found in executed(OURS)}  # each once
    kinds = {what: "_target_" if what in ALLOWED["targets"] else "reader" for what in used}
    configs = {what: {"run" if what.startswith("$") else key: what} for what, key in kinds.items()}
    assert not any(found.problem for found in executed(configs))
    for kind, names in ALLOWED.items():
        for name in sorted(names):
            with monkeypatch.context() as patch:
                patch.setitem(ALLOWED, kind, names - {name})
                needed = any(found.problem for found in executed(configs))
            assert needed, f"no config uses {name}: take it out of bundle/ship/allowed.json"
