"""Sparse labels of a data set that is annotated whole, and what is planned for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundle.cli import Sparse
from bundle.data.phantom import Kind, write_phantom
from bundle.data.plan import REASONS
from bundle.data.sparsify import KINDS, write_sparse
from scripts.data.datalist import sections
from scripts.errors import InputError
from tests.commands import invoke, read_array


@pytest.fixture(scope="module")
def organ(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("organ") / "data"
    write_phantom(Kind.ORGAN, folder, 5, 0, (40, 42, 36))
    return folder


def labels_of(folder: Path, section: str) -> dict[str, np.ndarray]:
    return {case["case"]: read_array(Path(case["label"])) for case in sections(folder)[section]}


def test_every_kind_is_a_choice_of_the_command() -> None:
    assert [kind.value for kind in Sparse] == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_is_as_it_was(kind: str, organ: Path, tmp_path: Path) -> None:
    share = write_sparse(organ, tmp_path / "one", kind)
    again = write_sparse(organ, tmp_path / "again", kind)
    write_sparse(organ, tmp_path / "other", kind, seed=1)
    description = json.loads((tmp_path / "one/dataset.json").read_text())
    assert description["labels"]["255"] == "ignore"
    kept = []
    for section in ("training", "validation"):
        whole, one, same, other = (
            labels_of(folder, section)
            for folder in (organ, *(tmp_path / name for name in ("one", "again", "other")))
        )
        assert one
        for case, label in one.items():
            known = label != 255
            kept.append((known.sum(), known.size))
            np.testing.assert_array_equal(label[known], whole[case][known])
            assert {0, 1} <= set(np.unique(label[known]))
            np.testing.assert_array_equal(label, same[case])
        assert any((one[case] != other[case]).any() for case in one)
    assert share == again == pytest.approx(np.divide(*np.sum(kept, axis=0)))
    assert 0 < share < (0.01 if kind == "scribbles" else 0.25)
    for case, label in labels_of(tmp_path / "one", "testing").items():
        np.testing.assert_array_equal(label, labels_of(organ, "testing")[case])


def test_plan_of_scribbles_has_a_background_that_they_lack(organ: Path, tmp_path: Path) -> None:
    """And of slices, which have it, nothing of the kind."""
    for kind, planned in (("scribbles", True), ("slices", False)):
        write_sparse(organ, tmp_path / kind, kind)
        result = invoke("plan", "--dataset_dir", tmp_path / kind, "--no-trial")
        assert result.exit_code == 0, result.output
        task = json.loads((tmp_path / kind / "task.json").read_text())
        assert task["labels"]["ignore"] == 255
        assert task["alpha"] == 0.5
        assert ("spatial" in task) == ("heads_loss" in task) == planned
    task = json.loads((tmp_path / "scribbles/task.json").read_text())
    assert [step if isinstance(step, str) else step["_target_"] for step in task["spatial"]] == [
        "scripts.transforms.FarBackgroundd",
        "scripts.transforms.CountClassesd",
        "@patch",
        "ConcatItemsd",
    ]
    assert task["heads_loss"]["loss"] == {
        "_target_": "scripts.losses.GatedCRFLoss",
        "loss": "@loss",
        "radius": [5, 5, 3],
    }
    assert "of the voxels are annotated, and foreground is" in task[REASONS]["spatial"]


def test_cells_lose_all_but_a_box(tmp_path: Path) -> None:
    write_phantom(Kind.CELLS, tmp_path / "cells", 5, 0, (64, 72))
    result = invoke("sparsify", *arguments(tmp_path, "boxes"))
    assert result.exit_code == 0, result.output
    assert "in which 25.00% of the voxels are annotated" in result.output
    for label in labels_of(tmp_path / "boxes", "training").values():
        assert (label != 255).sum() == 32 * 36
    for kind, why in (("slices", "lists pictures, which have no slices"), ("scribbles", "numbered objects")):
        with pytest.raises(InputError, match=why):
            raise invoke("sparsify", *arguments(tmp_path, kind)).exception
        assert not (tmp_path / kind).exists()
    with pytest.raises(InputError, match="boxes' is there already: name a new folder"):
        write_sparse(tmp_path / "cells", tmp_path / "boxes", "boxes")
    with pytest.raises(InputError, match="has the value 255 for what nobody annotated"):
        write_sparse(tmp_path / "boxes", tmp_path / "twice", "boxes")


def test_a_value_that_no_object_has(tmp_path: Path) -> None:
    write_phantom(Kind.CELLS, tmp_path / "cells", 5, 0, (64, 72))
    [label] = [Path(case["label"]) for case in sections(tmp_path / "cells")["training"][:1]]
    values = np.asarray(Image.open(label)).astype(np.uint8)
    values[values == 1] = 255
    Image.fromarray(values).save(label)
    write_sparse(tmp_path / "cells", tmp_path / "sparse", "boxes")
    assert json.loads((tmp_path / "sparse/dataset.json").read_text())["labels"]["256"] == "ignore"


def arguments(folder: Path, kind: str) -> tuple[object, ...]:
    return "--dataset_dir", folder / "cells", "--output_dir", folder / kind, "--kind", kind
