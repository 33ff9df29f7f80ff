"""What is drawn to be annotated next, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from bundle.runs.suggest import draw, not_labelled, scores_of
from scripts.errors import InputError
from scripts.judging.uncertainty import ANY
from tests.commands import workbench

LATE = 12  # a round without noise to speak of


def scores(**classes: dict[str, float]) -> dict[str, dict[str, float]]:
    """Scores of all classes, and of the whole image last."""
    return {**{name: found for name, found in classes.items() if name != ANY}, ANY: classes[ANY]}


RANKED = scores(
    a={"p": 0.5, "q": 0.4, "r": 0.3, "s": 0.2},
    b={"p": 0.1, "q": 0.2, "r": 0.3, "s": 0.4},
    any={"p": 0.2, "q": 0.3, "r": 0.1, "s": 0.1},
)


def test_classes_take_turns_and_every_third_draw_goes_by_the_whole_image() -> None:
    """Without noise: the highest of each class, then the highest of what is left whatever the class."""
    drawn = draw(RANKED, 4, LATE, seed=0)
    assert dict(drawn[:2]) == {"p": "a", "s": "b"}
    assert drawn[2] == ("q", ANY)
    assert drawn[3][0] == "r"


def test_two_of_three_draws_are_shared_by_the_classes() -> None:
    cases = {f"case{index}": 0.5 for index in range(30)}
    names = Counter(name for _, name in draw(scores(a=cases, b=cases, c=cases, any=cases), 18, 1, seed=3))
    assert names == {"a": 4, "b": 4, "c": 4, ANY: 6}


def test_a_seed_and_a_round_give_the_same_draw_and_others_another() -> None:
    cases = {f"case{index}": 0.1 + index / 100 for index in range(40)}
    found = scores(a=cases, any=cases)
    assert draw(found, 10, 1, seed=0) == draw(found, 10, 1, seed=0)
    assert len({str(draw(found, 10, turn, seed)) for turn in (1, 2) for seed in (0, 1)}) == 4


def test_the_first_round_draws_in_proportion_to_the_score() -> None:
    """The first of the draws, over many seeds: log(score) and Gumbel's noise of scale 1 give just that."""
    found = scores(a={"low": 0.1, "high": 0.3}, any={"low": 0.1, "high": 0.3})
    first = Counter(draw(found, 1, 1, seed)[0][0] for seed in range(2000))
    assert first["high"] / 2000 == pytest.approx(0.75, abs=0.03)


def test_noise_falls_with_the_rounds() -> None:
    found = scores(a={"low": 0.1, "high": 0.3}, any={"low": 0.1, "high": 0.3})
    shares = [
        sum(draw(found, 1, turn, seed)[0][0] == "high" for seed in range(400)) / 400 for turn in (1, 2, 4)
    ]
    assert shares[0] < shares[1] <= shares[2] == 1


def test_no_case_is_drawn_twice_and_no_more_than_there_are() -> None:
    drawn = [case for case, _ in draw(RANKED, 9, 1, seed=5)]
    assert sorted(drawn) == ["p", "q", "r", "s"]


def test_chance_prefers_images_that_show_the_class(tmp_path: Path) -> None:
    """ "Random" knows of the entropy nothing, and of the class whether it is found."""
    table = tmp_path / "uncertainty.csv"
    rows = [("p", "a", 0.9, 0), ("p", ANY, 0.9, 8), ("q", "a", 0.1, 5), ("q", ANY, 0.1, 8)]
    lines = ["case,class,entropy,voxels", *(",".join(map(str, row)) for row in rows)]
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert scores_of(table, ["background", "a"], "entropy")["a"] == {"p": 0.9, "q": 0.1}
    found = scores_of(table, ["background", "a"], "random")
    assert found == {"a": {"p": 0.0, "q": 1.0}, ANY: {"p": 1.0, "q": 1.0}}
    assert {draw(found, 1, 1, seed)[0][0] for seed in range(50)} == {"q"}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Images a, b and c; a has a label."""
    for name in ("images/a.nii.gz", "images/b.nii.gz", "images/c.nii.gz", "labels/a.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "images", tmp_path / "labels"


def test_images_with_a_label_are_left_out(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    assert [case["case"] for case in not_labelled(images, labels, 1)] == ["b", "c"]
    assert [case["case"] for case in not_labelled(images, None, 1)] == ["a", "b", "c"]


def test_labels_of_other_images_are_refused(folders: tuple[Path, Path]) -> None:
    images, labels = folders
    (labels / "a.nii.gz").rename(labels / "a_label.nii.gz")
    with pytest.raises(InputError, match=r"holds a_label, none of which is called as an image"):
        not_labelled(images, labels, 1)


def test_nothing_left_is_told(folders: tuple[Path, Path]) -> None:
    images, _ = folders
    with pytest.raises(InputError, match=r"a label for each of the 3 images"):
        not_labelled(images, images, 1)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (None, "is no file: name the inference.json"),
        ({"config_file": ["configs/train.json"]}, "does not segment images: name the inference.json"),
        ({"labels": {"background": 0, "a": 1}}, "does not segment images: name the inference.json"),
    ],
)
def test_what_does_not_segment_is_refused(
    folders: tuple[Path, Path], recipe: dict | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.json"
    if recipe is not None:
        file.write_text(json.dumps(recipe), encoding="utf-8")
    options = ("--recipe", file, "--images", folders[0], "--output_dir", tmp_path / "out")
    assert message in workbench("suggest", *options)
    assert not (tmp_path / "out").exists()


def test_absent_folders_are_refused(tmp_path: Path) -> None:
    options = ("--recipe", "configs/inference.json", "--images", tmp_path / "none", "--output_dir", tmp_path)
    assert "--images" in (said := workbench("suggest", *options))
    assert "is no folder; it must exist" in said
