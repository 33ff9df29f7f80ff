"""Samples out of noise: what is drawn, by which noise, in which steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from scripts.compute import diffusion
from scripts.compute.diffusion import NoisyLabels, SampledSegmentation, in_steps, label_map
from scripts.compute.inferers import SlidingWindowSlabInferer
from scripts.errors import Fault, InputError
from scripts.labels import IGNORE_LABEL
from scripts.networks.diffusion import DiffusionUNet


class Pointwise(DiffusionUNet):
    """Answers at each voxel by image, label map and noise level there; notes what it gets."""

    def __init__(self, noise_steps: int = 100) -> None:
        super().__init__(2, 1, 2, [4, 4], noise_steps=noise_steps)
        self.seen: list[tuple[Tensor, int]] = []

    def forward(self, x: Tensor, timesteps: Tensor | None = None, context: None = None) -> Tensor:  # type: ignore[override]
        """Logits, (B, 2, *spatial)."""
        self.seen.append((x, 0 if timesteps is None else int(timesteps)))
        share = 0.0 if timesteps is None else float(timesteps) / 100
        return 2 * x[:, :2] * (1 - share) + torch.cat([-x[:, 2:], x[:, 2:]], 1)


class Known(Pointwise):
    """Sees one label map in whatever noise."""

    def forward(self, x: Tensor, timesteps: Tensor | None = None, context: None = None) -> Tensor:  # type: ignore[override]
        """Logits, (B, 2, *spatial), of the sign of the image."""
        super().forward(x, timesteps)
        return 1e6 * torch.cat([-x[:, 2:], x[:, 2:]], 1)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def test_label_maps_are_one_class_or_none() -> None:
    found = label_map(torch.tensor([[[[0, 2], [1, IGNORE_LABEL]]]]), 3)
    assert found[0, :, 0, 0].tolist() == [1, -1, -1]
    assert found[0, :, 0, 1].tolist() == [-1, -1, 1]
    assert found[0, :, 1, 0].tolist() == [-1, 1, -1]
    assert found[0, :, 1, 1].tolist() == [0, 0, 0]


def test_a_step_sees_the_labels_under_the_noise_of_its_place() -> None:
    network = DiffusionUNet(2, 1, 2, [4, 8], noise_steps=50)
    image, label = images(3, 1, 4, 4), (images(3, 1, 4, 4) > 0).float()
    torch.manual_seed(5)
    x, target, args, kwargs = NoisyLabels(network)({"image": MetaTensor(image), "label": label})
    torch.manual_seed(5)
    steps = torch.randint(50, (3,))
    noise = torch.randn(3, 2, 4, 4)
    assert torch.equal(kwargs["timesteps"], steps)
    assert args == ()
    assert torch.equal(target, label)
    assert torch.equal(x[:, 2:], image)
    for sample, step in enumerate(steps.tolist()):
        # Nichol and Dhariwal, 2021, equation 17, in MONAI's counting
        angle = [(t / 50 + 0.008) / 1.008 * torch.pi / 2 for t in (step + 1, 0)]
        kept = (torch.cos(torch.tensor(angle)) ** 2).tolist()
        share = max(kept[0] / kept[1], 0.0)
        clean = label_map(label[sample : sample + 1], 2)[0]
        expected = share**0.5 * clean + (1 - share) ** 0.5 * noise[sample]
        assert torch.allclose(x[sample, :2], expected, atol=5e-3)  # the last share is cut off
    loss = nn.functional.cross_entropy(network(x, **kwargs), label[:, 0].long())
    loss.backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("steps", [1, 4, 7, 100])
def test_steps_end_where_nothing_is_left_of_the_noise(steps: int) -> None:
    """A network that knows the answer is given it under less and less of one noise, and gives it back."""
    network, image = Known(), images(1, 1, 6, 6)
    found = SampledSegmentation(SimpleInferer(), samples=1, steps=steps, seed=3)(image, network)
    truth = torch.cat([-image, image], 1).sign()
    assert torch.allclose(found.softmax(1), (truth + 1) / 2, atol=1e-6)
    noise = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(3))
    assert len(network.seen) == steps
    places = [place for _, place in network.seen]
    assert places[0] >= 99 - 100 % steps
    assert torch.equal(network.seen[0][0][:, :2], noise)
    share = network.scheduler.alphas_cumprod[places[0]]
    noise = (noise - share**0.5 * truth) / (1 - share) ** 0.5  # what of it is not the answer
    for x, place in network.seen[1:]:
        share = network.scheduler.alphas_cumprod[place]
        expected = share**0.5 * truth + (1 - share) ** 0.5 * noise
        assert torch.allclose(x[:, :2], expected, atol=1e-4), place
    assert places == sorted(places, reverse=True)


def test_windows_see_one_noise_and_one_label_map() -> None:
    network, image = Pointwise(), images(1, 1, 20, 14)
    whole, tiled, batched = (
        SampledSegmentation(inferer, samples=2, steps=3)(image, network)
        for inferer in (
            SimpleInferer(),
            SlidingWindowSlabInferer([8, 8], overlap=0.5, mode="gaussian"),
            SlidingWindowSlabInferer([6, 10], sw_batch_size=3, runtime="auto"),
        )
    )
    assert float(whole.std()) > 0.1
    assert torch.allclose(tiled, whole, atol=1e-5)
    assert torch.allclose(batched, whole, atol=1e-5)


def test_an_image_has_one_answer_whatever_is_beside_it() -> None:
    network, pair = Pointwise(), images(2, 1, 8, 8)
    sampled = SampledSegmentation(SimpleInferer(), samples=3, steps=2, seed=1)
    torch.manual_seed(0)
    both = sampled(MetaTensor(pair, meta={"case": ["a", "b"]}), network)
    turned, alone = sampled(pair.flip(0), network), sampled(pair[1:], network)
    assert isinstance(both, MetaTensor)
    assert torch.equal(both.as_tensor(), turned.flip(0))
    assert torch.equal(both.as_tensor()[1:], alone)
    other = SampledSegmentation(SimpleInferer(), samples=3, steps=2, seed=2)(pair[1:], network)
    assert not torch.allclose(other, alone)


def test_samples_differ_and_their_probabilities_are_averaged() -> None:
    network, image = Pointwise(), images(1, 1, 8, 8)
    means = [
        SampledSegmentation(SimpleInferer(), samples=count, steps=4)(image, network).softmax(1)
        for count in (1, 2, 3)
    ]
    second, third = 2 * means[1] - means[0], 3 * means[2] - 2 * means[1]
    for sample in (second, third):
        assert float(sample.min()) + 1e-5 >= 0
        assert float((sample - means[0]).abs().max()) > 0.1
    assert torch.allclose(means[2].sum(1), torch.ones(1, 8, 8))


def test_the_image_alone_is_what_noise_in_its_middle_says() -> None:
    network, image = DiffusionUNet(3, 2, 3, [4, 8]).eval(), images(2, 2, 8, 8, 8)
    with torch.no_grad():
        empty = torch.cat([torch.zeros(2, 3, 8, 8, 8), image], 1)
        assert torch.allclose(network(image), network(empty, torch.tensor([999, 999])), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DiffusionUNet(2, 1, 2, [4, 8], noise_steps=0), "noise_steps is 0: use 1 or more"),
        (lambda: SampledSegmentation(SimpleInferer(), samples=0), "samples is 0: use 1 or more"),
        (lambda: SampledSegmentation(SimpleInferer(), steps=-1), "steps is -1: use 1 or more"),
        (lambda: in_steps(Pointwise(5).scheduler, 6), "sampling_steps is 6, and noise_steps 5: take no more"),
        (lambda: NoisyLabels(nn.Conv2d(1, 1, 1)), "the network is a Conv2d, which takes no noise away: use "),
        (
            lambda: SampledSegmentation(SlidingWindowSlabInferer(8, runtime="openvino")),
            "runtime is 'openvino', and a diffusion network, .*: use 'torch' or 'auto'",
        ),
        (
            lambda: torch.export.export(DiffusionUNet(2, 1, 2, [4, 8]), (images(1, 1, 4, 4),), strict=False),
            "a diffusion network is not exported, .*: use runtime torch, and weights",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


def test_label_maps_that_do_not_fit_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, image = Pointwise(), images(1, 1, 64, 64)
    inferer = SlidingWindowSlabInferer([8, 8], memory_gb=100)
    SampledSegmentation(inferer, samples=1, steps=1)(image, network)
    count = len(network.seen)
    monkeypatch.setattr(diffusion, "resident_bytes", lambda: 99.9999e9)
    with pytest.raises(Fault, match=r"B while a sample is .* memory_gb is 100, .*allow 100\.01 or more"):
        SampledSegmentation(inferer, samples=1000)(image, network)
    assert len(network.seen) == count
