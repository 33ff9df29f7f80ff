"""The strategy "suggested" in a real MONAI Label server: as docs/monai-label.md has it."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator

import pytest

from tests.commands import ROOT, workbench
from tests.hosts.conftest import Kind, Report
from tests.hosts.server import Server, serving

pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture(scope="module")
def served(volumes: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with images of its own, of which none has a label."""
    studies = tmp_path_factory.mktemp("studies")
    for image in volumes.images().values():
        shutil.copyfile(image, studies / image.name)
    folder = tmp_path_factory.mktemp("suggested")
    with serving([volumes.bundle], studies, folder, ROOT / "bundle/ship/monai_label.py") as running:
        yield running


def ranked(server: Server, kind: Kind, *labels: object) -> list[str]:
    """What the command writes into the folder of the app."""
    recipe = server.app / "model" / kind.model / "configs/inference.json"
    workbench(
        *(
            "suggest",
            "--recipe",
            recipe,
            "--checkpoint",
            server.weights(kind.model),
            "--images",
            server.studies,
        ),
        *("--number", 3, "--output_dir", server.app, *labels),
    )
    with (server.app / "suggested.csv").open(encoding="utf-8", newline="") as file:
        return [row["case"] for row in csv.DictReader(file)]


def test_images_are_handed_out_as_they_were_ranked(served: Server, volumes: Kind, report: Report) -> None:
    def sample() -> str:
        return str(served.call("next_sample", strategy="suggested", params={})["id"])

    assert "suggested" in served.call("info")["strategies"]
    with report.step("next sample, strategy suggested", volumes.model) as result:
        assert sample() == min(volumes.images())  # before anything is suggested: any
        first = ranked(served, volumes)
        assert len(first) == 3
        handed = []
        truth = str(next(iter(volumes.truth.values())))
        for _ in first:
            handed.append(sample())
            served.call("save_label", image_id=handed[-1], label_in=truth, params={"label_info": []})
        assert handed == first
        assert sample() == min(set(volumes.images()) - set(first))  # after the last of the table: any other
        result(f"{len(first)} images in the order of suggested.csv, each without label")
    second = ranked(served, volumes, "--labels", f"{served.studies}/labels/final", "--round", 2)
    assert not set(first) & set(second)
    assert sample() == second[0]
