"""Hidden blocks: how many, where, and what the label keeps of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.errors import InputError
from scripts.labels import IGNORE_LABEL
from scripts.transforms import MaskBlocksd, RandMaskBlocksd
from scripts.transforms.masking import hidden_blocks


@pytest.mark.parametrize(("shape", "edges"), [((8, 12), (4, 4)), ((8, 8, 6), (4, 2, 3)), ((5, 7), (4, 4))])
def test_blocks_are_whole_and_as_many_as_asked_for(shape: tuple[int, ...], edges: tuple[int, ...]) -> None:
    hidden = hidden_blocks(shape, edges, 0.5, np.random.default_rng(0))[0].numpy()
    assert hidden.shape == shape
    corners = hidden[tuple(slice(None, None, edge) for edge in edges)]
    assert corners.sum() == round(corners.size / 2)
    for index in np.ndindex(*corners.shape):
        block = hidden[tuple(slice(i * e, (i + 1) * e) for i, e in zip(index, edges, strict=True))]
        assert (block == corners[index]).all()


def test_neither_all_nor_nothing_is_hidden() -> None:
    draws = np.random.default_rng(0)
    assert hidden_blocks((4, 4), (2, 2), 0.99, draws).sum() == 12
    assert hidden_blocks((4, 4), (2, 2), 0.01, draws).sum() == 4
    assert hidden_blocks((4, 4), (4, 4), 0.5, draws).all()  # the only block there is


def image(*shape: int) -> torch.Tensor:
    return 1 + torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


def test_image_and_label_share_the_voxels() -> None:
    whole = image(8, 8, 8)
    out = MaskBlocksd("image", block_size=4, ratio=0.75)({"image": whole, "case": "a"})
    hidden = out["label"] != IGNORE_LABEL
    assert hidden.float().mean() == 0.75
    assert (out["label"][hidden] == whole[hidden]).all()
    assert (out["image"][hidden] == 0).all()
    assert (out["image"][~hidden] == whole[~hidden]).all()
    assert out["case"] == "a"


def test_what_lies_outside_the_scan_is_not_learnt() -> None:
    whole = image(8, 8)
    label = whole.clone()
    label[:, :3] = IGNORE_LABEL
    out = MaskBlocksd("image", block_size=2, ratio=0.75)({"image": whole, "label": label})
    assert (out["label"][:, :3] == IGNORE_LABEL).all()
    assert (out["label"][:, 3:] != IGNORE_LABEL).any()


def test_one_hides_the_same_blocks_each_time_the_other_by_its_seed() -> None:
    whole = {"image": image(16, 16)}
    fixed = MaskBlocksd("image", block_size=4)
    assert torch.equal(fixed(whole)["label"], fixed(whole)["label"])
    drawn = RandMaskBlocksd("image", block_size=4).set_random_state(seed=1)
    first, second = drawn(whole)["label"], drawn(whole)["label"]
    assert not torch.equal(first, second)
    again = RandMaskBlocksd("image", block_size=4).set_random_state(seed=1)
    assert torch.equal(first, again(whole)["label"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0.0}, "mask_ratio is 0.0"),
        ({"ratio": 1.0}, "mask_ratio is 1.0"),
        ({"block_size": 0}, "mask_block is 0"),
    ],
)
def test_wrong_arguments_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskBlocksd("image", **settings)


def test_a_label_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="without valid convolutions"):
        MaskBlocksd("image")({"image": image(8, 8), "label": image(4, 4)})
