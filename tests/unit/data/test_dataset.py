"""The samples of an epoch are the same however many processes and workers draw them, and after a resume."""

from __future__ import annotations

import os
import pickle
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, Lambdad, RandGaussianNoised, RandScaleIntensityd, Transform

from scripts.data import CachedCases, EpochSampler, SeededCacheDataset
from scripts.errors import CaseError, InputError
from scripts.handlers import FillCaches
from scripts.transforms import CountClassesd, RandSpatialPatchd

CASES = 6


def load(path: int) -> torch.Tensor:
    """A picture that shows which case it is."""
    return torch.full((1, 8, 8), 100.0 * path) + torch.arange(64).reshape(1, 8, 8)


def make_dataset(seed: int = 0, cache_rate: float = 1.0, cases: int = CASES) -> SeededCacheDataset:
    data = [{"image": case, "label": case} for case in range(cases)]
    transform = Compose(
        [
            Lambdad(["image", "label"], load),
            RandSpatialPatchd(
                ["image", "label"], ["bilinear", "nearest"], (4, 4), elastic_prob=1, elastic_std=1.0
            ),
            RandGaussianNoised("image", prob=0.5),
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
        ]
    )
    return SeededCacheDataset(data, transform, seed=seed, cache_rate=cache_rate)


def test_what_is_cached_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        make_dataset(cache_rate=0.5, cases=4)
    assert "caching 2 of 4 cases in memory" in caplog.text


def make_sampler(
    dataset, rank: int = 0, world: int = 1, seed: int = 0, repeats: int = 1, **of_an_epoch: int
) -> EpochSampler:
    """The sampler of one of several processes."""
    with pytest.MonkeyPatch.context() as patch:
        if world > 1:
            patch.setattr(torch.distributed, "is_initialized", lambda: True)
            patch.setattr(torch.distributed, "get_world_size", lambda *_: world)
            patch.setattr(torch.distributed, "get_rank", lambda *_: rank)
        return EpochSampler(dataset, seed, repeats, **of_an_epoch)


def run_epochs(epochs, dataset, sampler, batch_size: int = 2, num_workers: int = 0) -> list[torch.Tensor]:
    """The batches of the epochs, images and labels as one tensor."""
    loader = DataLoader(dataset, sampler=sampler, batch_size=batch_size, num_workers=num_workers)
    batches = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        batches += [torch.cat([batch["image"], batch["label"]], 1) for batch in loader]
    return batches


def alone(
    epochs=(1, 2), batch_size: int = 2, num_workers: int = 0, seed: int = 0, repeats: int = 1, **dataset
):
    made = make_dataset(seed, **dataset)
    return run_epochs(epochs, made, make_sampler(made, seed=seed, repeats=repeats), batch_size, num_workers)


def test_workers_and_cache_change_nothing():
    expected = alone()
    for batches in (alone(num_workers=2), alone(cache_rate=0.0), alone(cache_rate=0.5)):
        assert len(batches) == len(expected)
        for one, other in zip(batches, expected, strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_global_random_state_changes_nothing():
    expected = torch.cat(alone())
    torch.manual_seed(99)
    np.random.seed(99)
    assert torch.equal(torch.cat(alone()), expected)


@pytest.mark.parametrize("repeats", [1, 3])
def test_two_processes_with_half_the_batch_see_what_one_sees_step_by_step(repeats):
    expected = alone(batch_size=6, repeats=repeats)
    dataset = make_dataset()
    ranks = [
        run_epochs((1, 2), dataset, make_sampler(dataset, rank, 2, repeats=repeats), batch_size=3)
        for rank in (0, 1)
    ]
    assert len(ranks[0]) == len(ranks[1]) == len(expected) == 2 * repeats
    for first, second, whole in zip(*ranks, expected, strict=True):
        together = torch.stack([first, second], 1).flatten(0, 1)  # sample by sample, in turn
        assert torch.equal(together, whole)


def test_uneven_share_repeats_the_first_samples_in_the_last_step():
    indices = []
    for rank in (0, 1):
        sampler = make_sampler(range(5), rank, 2)
        sampler.set_epoch(1)
        indices.append(list(sampler))
    one = make_sampler(range(5))
    one.set_epoch(1)
    order = list(one)
    assert [i for pair in zip(*indices, strict=True) for i in pair] == [*order, order[0]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 50), st.integers(0, 5))
def test_every_case_comes_repeats_times_and_no_draw_comes_twice(cases, repeats, epoch, seed):
    sampler = make_sampler(range(cases), seed=seed, repeats=repeats)
    drawn = []
    for number in (epoch, epoch + 1):
        sampler.set_epoch(number)
        indices = list(sampler)
        assert len(indices) == len(sampler) == cases * repeats
        assert np.bincount([i % cases for i in indices], minlength=cases).tolist() == [repeats] * cases
        drawn += indices
    assert len(set(drawn)) == len(drawn)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 7), st.integers(1, 3), st.integers(0, 5))
def test_epochs_of_so_many_steps_are_the_rounds_cut_anew(cases, repeats, steps, batch_size, seed):
    """Steps of any number are those of the rounds in their order, without one left out or twice."""
    rounds, cut = [
        make_sampler(range(cases), seed=seed, repeats=repeats, **of_an_epoch)
        for of_an_epoch in ({}, {"steps": steps, "batch_size": batch_size})
    ]
    assert len(cut) == steps * batch_size
    drawn: dict[EpochSampler, list[int]] = {rounds: [], cut: []}
    for sampler, found in drawn.items():
        while len(found) < 40:
            sampler.set_epoch(len(found) // len(sampler))
            found += list(sampler)
    assert drawn[cut][:40] == drawn[rounds][:40]


def test_two_processes_share_steps_as_they_share_rounds():
    steps = {"steps": 3, "batch_size": 2}
    indices = []
    for rank in (0, 1):
        sampler = make_sampler(range(5), rank, 2, **steps)
        sampler.set_epoch(1)
        indices.append(list(sampler))
    alone = make_sampler(range(5), steps=3, batch_size=4)
    alone.set_epoch(1)
    assert [i for pair in zip(*indices, strict=True) for i in pair] == list(alone)


def test_order_differs_between_epochs_and_seeds():
    orders = set()
    for seed, epoch in ((0, 1), (0, 2), (5, 1)):
        sampler = make_sampler(range(20), seed=seed)
        sampler.set_epoch(epoch)
        orders.add(tuple(index % 20 for index in sampler))
    assert len(orders) == 3


def test_draws_differ_between_epochs_repeats_cases_and_seeds():
    dataset, other = make_dataset(0, cases=2), make_dataset(1, cases=2)
    noise = [dataset[index]["image"] - dataset[index]["label"] for index in range(8)]
    noise.append(other[0]["image"] - other[0]["label"])
    for i, one in enumerate(noise):
        for two in noise[:i]:
            assert not torch.allclose(one, two)
    assert torch.equal(dataset[3]["image"], dataset[3]["image"])
    assert [dataset[i]["label"].min().item() >= 100 for i in range(4)] == [False, True, False, True]


def test_resume_goes_on_as_if_it_had_not_stopped():
    whole = alone(epochs=(1, 2, 3, 4))
    assert torch.equal(torch.cat(alone(epochs=(3, 4))), torch.cat(whole[len(whole) // 2 :]))


def test_trainer_tells_the_sampler_its_epoch():
    """A MONAI trainer that starts after epoch 2 sees the samples of epoch 3."""
    seen: list[torch.Tensor] = []
    dataset = make_dataset()
    loader = DataLoader(dataset, sampler=make_sampler(dataset), batch_size=2)
    network = torch.nn.Conv2d(1, 1, 1)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.0),
        loss_function=torch.nn.MSELoss(),
        decollate=False,
    )

    @trainer.on(Events.STARTED)
    def resume(engine) -> None:
        engine.state.epoch, engine.state.iteration = 2, 6

    @trainer.on(Events.ITERATION_COMPLETED)
    def collect(engine) -> None:
        seen.append(torch.cat([engine.state.batch["image"], engine.state.batch["label"]], 1))

    trainer.run()
    assert torch.equal(torch.cat(seen), torch.cat(alone(epochs=(3,))))


class Volume(Transform):
    """A small volume with a label of three classes and something else."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        number = data["case"]
        if number < 0:
            raise InputError(f"{number} is below 0")
        generator = torch.Generator().manual_seed(number)
        return {
            "image": MetaTensor(torch.rand(1, 12, 11, 10, generator=generator)),
            "label": MetaTensor(torch.randint(3, (1, 12, 11, 10), generator=generator)),
            "weights": torch.ones(3),
            "process": os.getpid(),
        }


def listed(count: int) -> list[dict[str, Any]]:
    return [{"case": number} for number in range(count)]


def wipe(data: dict[str, Any]) -> dict[str, Any]:
    """What a later transform may do to what it is given."""
    for key in ("image", "label", "weights"):
        data[key] *= 0
    return data


PATCH = RandSpatialPatchd(
    ["image", "label"],
    ["bilinear", "nearest"],
    (6, 5, 4),
    foreground_prob=0.5,
    affine_prob=0.5,
    rotate_range=0.3,
    flip_axes=(0,),
    elastic_prob=0.3,
    elastic_std=1.0,
)


@pytest.mark.parametrize("patch_first", [True, False])
def test_samples_are_those_of_a_copy_of_each_case(patch_first: bool) -> None:
    known, noise = [Volume(), CountClassesd("label")], RandGaussianNoised("image", prob=0.5)
    random = Compose([PATCH, noise] if patch_first else [noise, PATCH])
    dataset = SeededCacheDataset(listed(3), Compose([*known, *random.transforms]), seed=3)
    wiped = SeededCacheDataset(listed(3), Compose([*known, *random.transforms, wipe]), seed=3)
    for index in range(12):
        random.set_random_state(
            seed=int(np.random.SeedSequence([3, index // 3, index % 3]).generate_state(1)[0])
        )
        expected, sample = random(deepcopy(Compose(known)({"case": index % 3}))), dataset[index]
        assert sample.keys() == expected.keys()
        assert torch.equal(sample["image"], expected["image"])
        assert torch.equal(sample["label"], expected["label"])
        assert wiped[index]["image"].abs().max() == 0
    for number in range(3):
        for key in ("image", "label", "weights"):
            assert torch.equal(wiped._cache[number].item[key], Volume()({"case": number})[key])


def test_cases_are_loaded_when_they_are_drawn_or_one_at_a_time() -> None:
    dataset = CachedCases(listed(4), Compose([Volume()]), cache_rate=0.75)
    dataset[1]
    second = dataset._cache[1]
    assert [item is None for item in dataset._cache] == [True, False, True]
    assert dataset.load_next()
    assert [item is None for item in dataset._cache] == [False, False, True]
    assert dataset.load_next()
    assert not dataset.load_next()
    assert dataset._cache[1] is second
    assert torch.equal(dataset[2]["image"], Volume()({"case": 2})["image"])
    assert dataset[3] is not dataset[3]


def test_other_processes_find_all_cases() -> None:
    dataset = SeededCacheDataset(listed(3), Compose([Volume(), PATCH]))
    batches = list(DataLoader(dataset, num_workers=1, multiprocessing_context="fork"))
    assert [int(batch["process"]) for batch in batches] == [os.getpid()] * 3
    copied = pickle.loads(pickle.dumps(SeededCacheDataset(listed(3), Compose([Volume(), PATCH]))))
    assert None not in copied._cache
    assert torch.equal(copied[4]["image"], dataset[4]["image"])


def test_a_case_that_cannot_be_loaded_ends_a_training_long_before_it_is_drawn() -> None:
    dataset, steps = CachedCases([*listed(2), {"case": -2}, {"case": 3}], Compose([Volume()])), []
    engine = Engine(lambda engine, batch: steps.append(batch))
    FillCaches([[0, 1], dataset]).attach(engine)
    with pytest.raises(CaseError, match="case -2: -2 is below 0"):
        engine.run(range(1000))
    assert steps == [0, 1, 2]
    with pytest.raises(CaseError, match="case -2: -2 is below 0"):
        dataset[2]
