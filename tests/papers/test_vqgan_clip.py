"""VQGAN-CLIP: cutouts, distances and clamping by hand; images come nearer to their prompts; masks; CLIP and SigLIP."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from hosts import hosts
from worlds import WorldLab, bright

import showtell
from showtell.bridges.clip import ClipBridge
from showtell.measure.prompts import PromptSet
from showtell.papers.edit import vqgan_clip as module
from showtell.papers.edit.vqgan_clip import optimised, pleasing, vqgan_clip
from showtell.pictures import to_pil
from showtell.steer.cutouts import Inside, cutouts, distance
from test_bridges_clip import make as make_clip
from unet_variants import pictures

PROMPTS: list[Any] = ["a red ring", "a dog on the table"]


def tokenizer() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.VQModel(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, num_vq_embeddings=32,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4, sample_size=32,
        ).eval().requires_grad_(False)  # fmt: skip


def bridge(name: str = "clip") -> Any:
    return ClipBridge(*make_clip(name))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_clamping_lets_values_come_back() -> None:
    values = torch.tensor([-0.5, 0.5, 1.5, -0.5, 1.5], requires_grad=True)
    slope = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])  # descent goes against it
    found = Inside.apply(values)
    assert found.tolist() == [0, 0.5, 1, 0, 1]
    [passed] = torch.autograd.grad(found, values, slope)
    assert passed.tolist() == [0, 1, 1, -1, 0], "down from 1.5 and up from -0.5, not further out"


def test_distance_by_hand() -> None:
    def unit(degrees: float) -> torch.Tensor:
        return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])

    assert float(distance(unit(10), unit(70))) == pytest.approx(math.radians(60) ** 2 / 2, rel=1e-4)
    assert float(distance(unit(10), unit(10))) == pytest.approx(0, abs=1e-6)


def test_cutouts_are_views_of_the_image() -> None:
    pixels = torch.zeros(2, 3, 16, 16)
    pixels[1] = 0.5
    views = cutouts(pixels, 20, seeded(), noise=0.0)
    assert views.shape == (40, 3, 16, 16)
    assert torch.allclose(views[:20], torch.zeros(())) and torch.allclose(views[20:], torch.tensor(0.5), atol=1e-5)
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    views = cutouts(ramp, 60, seeded(), noise=0.0)
    spans = views.amax((1, 2, 3)) - views.amin((1, 2, 3))
    assert 0.3 < float(spans.min()) < 0.75 < float(spans.max()), "from half the side to all of it"
    rising = views.mean((1, 2))[:, -1] > views.mean((1, 2))[:, 0]
    assert 0.2 < float(rising.float().mean()) < 0.8, "every second is flipped"
    assert torch.equal(cutouts(ramp, 3, seeded(), augmented=False), ramp.repeat(3, 1, 1, 1))
    noisy = cutouts(pixels[:1], 30, seeded(), noise=0.1)
    assert 0 < float(noisy.std(dim=(1, 2, 3)).max()) < 0.12


@pytest.mark.parametrize("name", hosts("vqgan_clip", "clip", "siglip"))
def test_images_come_nearer_to_their_prompts(name: str) -> None:
    clip, vq = bridge(name), tokenizer()
    loss = pleasing(clip, PROMPTS)

    def score(pixels: torch.Tensor) -> torch.Tensor:
        return loss(cutouts(pixels, 16, seeded(9)), 16)

    start = vqgan_clip(vq, clip, PROMPTS, steps=0, count=4)
    found = vqgan_clip(vq, clip, PROMPTS, steps=25, count=4)
    assert found.shape == (2, 3, 32, 32) and 0 <= float(found.min()) <= float(found.max()) <= 1
    assert (score(found) < score(start)).all()
    assert torch.equal(found, vqgan_clip(vq, clip, PROMPTS, steps=25, count=4))


def test_views_that_are_all_alike_are_looked_at_once() -> None:
    vq, clip = tokenizer(), bridge("clip")
    seen: list[int] = []
    embed = clip.embed_pixels
    clip.embed_pixels = lambda views: (seen.append(len(views)), embed(views))[1]  # type: ignore[method-assign]
    for augmented in (True, False):
        vqgan_clip(vq, clip, PROMPTS, steps=1, count=4, augmented=augmented)
    assert seen == [4 * len(PROMPTS), len(PROMPTS)]


def test_what_is_decoded_is_codes() -> None:
    """Latents stay within the codebook's values, and the image is the decoding of nearest codes."""
    vq, kept = tokenizer(), []
    decode = vq.decode
    vq.decode = lambda z: (kept.append(z.detach().clone()), decode(z))[1]
    found = vqgan_clip(vq, bridge(), PROMPTS, steps=8, count=2, lr=1.0)
    book = vq.quantize.embedding.weight
    low, high = (bound.view(1, -1, 1, 1) for bound in (book.min(0).values, book.max(0).values))
    assert len(kept) == 9 and all((low <= z).all() and (z <= high).all() for z in kept)
    codes = vq.quantize(kept[-1])[0]
    assert (torch.cdist(codes.permute(0, 2, 3, 1).reshape(-1, 4), book).amin(1) < 1e-4).all()
    expected = (vq.decoder(vq.post_quant_conv(codes)) + 1) / 2
    assert torch.allclose(expected.clamp(0, 1), found, atol=1e-4)
    assert not torch.equal(kept[0], kept[-1]), "gradients pass through the choice of codes"


def test_weights_and_pictures_as_prompts() -> None:
    clip = bridge()
    views = torch.rand(4, 3, 16, 16, generator=seeded())
    [like, unlike, both] = (
        pleasing(clip, [[("a dog", w)]])(views, 4) if isinstance(w, float) else pleasing(clip, [w])(views, 4)
        for w in (1.0, -1.0, [("a dog", 1.0), ("a red ring", 0.5)])
    )
    assert float(like) == pytest.approx(-float(unlike)) and float(like) > 0
    assert float(both) == pytest.approx(float(like) + 0.5 * float(pleasing(clip, ["a red ring"])(views, 4)), rel=1e-5)
    shown = pictures(1, (16, 16))
    own = torch.from_numpy(__import__("numpy").array(shown[0])).permute(2, 0, 1)[None] / 255
    near = float(pleasing(clip, [[(shown[0], 1.0)]])(own.repeat(4, 1, 1, 1), 4))
    assert near == pytest.approx(0, abs=1e-4)


def test_editing_begins_with_the_picture_and_keeps_what_is_masked() -> None:
    vq, clip, shown = tokenizer(), bridge(), pictures(2)
    still = vqgan_clip(vq, clip, PROMPTS, shown, steps=0)
    kept: list[torch.Tensor] = []
    decode = vq.decode
    vq.decode = lambda z: (kept.append(z.detach().clone()), decode(z))[1]
    vqgan_clip(vq, clip, PROMPTS, shown, steps=5, count=2, mask=(0.0, 0.0, 0.5, 1.0))
    assert torch.equal(kept[0][..., 8:], kept[-1][..., 8:]) and not torch.equal(kept[0][..., :8], kept[-1][..., :8])
    far, near = (vqgan_clip(vq, clip, PROMPTS, shown, steps=20, count=2, pull=pull) for pull in (0.0, 100.0))
    assert (near - still).square().mean() < (far - still).square().mean()
    [image, _] = to_pil(still)
    assert image.size == (32, 32)


def test_pixels_without_a_tokenizer() -> None:
    start = torch.rand(2, 3, 16, 16, generator=seeded())
    loss = pleasing(bridge(), PROMPTS)
    found = optimised(start, lambda x: x, loss, 20, 4)
    assert (loss(found, 1) < loss(start, 1)).all()


def test_the_experiment_and_the_example_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(module, "COUNT", 2)
    monkeypatch.setattr(PromptSet, "true_facts", lambda self, images, judge="first": bright(images))
    vq = tokenizer()
    vq.register_to_config(sample_size=64)
    fidelity, score = module.experiment(WorldLab(seeds=1, bases={"vq": vq, "clip": bridge()}))
    assert next(iter(fidelity.scores)) == "vqgan_clip" and score.name == "CLIP score"  # type: ignore[attr-defined]
    monkeypatch.setattr(diffusers.VQModel, "from_pretrained", lambda *args, **more: tokenizer())
    monkeypatch.setitem(showtell.__dict__, "load", lambda name: bridge())
    source = module.EXAMPLE.replace("steps=300, size=256", "steps=2, size=32").replace("steps=100", "steps=2")
    space: dict[str, Any] = {}
    exec(source, space)
    assert space["image"].size == (32, 32) and len(space["images"]) == 2
