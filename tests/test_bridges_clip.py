"""CLIP and SigLIP: vectors equal to the libraries' own, in one space, cut words named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import showtell
import tiny
from showtell.bridges.clip import ClipBridge
from showtell.errors import ShowtellError, UnsupportedError

TEXTS = ["a red ring", "a big dog on the table", "the blue star"]
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip


def make(name: str) -> tuple[Any, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = tiny.clip_tokenizer() if name == "clip" else tiny.t5_tokenizer()
        text = {
            "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 16,
        }  # fmt: skip
        size = {"height": 16, "width": 16}
        if name == "clip":
            text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
            images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
            return transformers.CLIPModel(config).eval(), transformers.CLIPProcessor(images, tokenizer)
        config = transformers.SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=VISION)
        images = transformers.SiglipImageProcessor(size=size)
        return transformers.SiglipModel(config).eval(), transformers.SiglipProcessor(images, tokenizer)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / request.param
    ClipBridge(*make(request.param)).save(path)
    return path


def pixels(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)


def test_equal_to_the_library(folder: Path) -> None:
    bridge: Any = showtell.load(folder)
    assert bridge.can == {"embed"} and bridge.name.lower() == folder.name
    model, processor = make(folder.name)
    padding = True if folder.name == "clip" else "max_length"
    inputs = processor(text=TEXTS, images=list(pixels()), padding=padding, max_length=16, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs)
    texts, images = bridge.embed(texts=TEXTS), bridge.embed(pixels())
    assert (texts - expected.text_embeds).abs().max() < 1e-5
    assert (images - expected.image_embeds).abs().max() < 1e-5
    assert torch.allclose(texts.norm(dim=-1), torch.ones(3)) and texts.shape[1] == images.shape[1]
    assert (texts[0] - texts[1]).norm() > 1e-3 and (images[0] - images[1]).norm() > 1e-3


def test_a_vector_does_not_depend_on_its_batch(folder: Path) -> None:
    bridge: Any = showtell.load(folder)
    together = bridge.embed(texts=TEXTS)
    assert (bridge.embed(texts=TEXTS[2]) - together[2:]).abs().max() < 1e-5
    assert (bridge.embed(texts=TEXTS, batch_size=1) - together).abs().max() < 1e-5
    assert (bridge.embed(pixels(), batch_size=2) - bridge.embed(pixels())).abs().max() < 1e-5


def test_lengths_and_depths(folder: Path) -> None:
    bridge: Any = showtell.load(folder)
    found = bridge.embed(texts=TEXTS, unit=False)
    assert (found.norm(dim=-1) - 1).abs().min() > 1e-3
    assert torch.allclose(torch.nn.functional.normalize(found, dim=-1), bridge.embed(texts=TEXTS), atol=1e-6)
    one, two = bridge.depths(pixels(), 2)
    [last] = bridge.depths(pixels(), 1)
    assert one.shape == two.shape == (3, 5 if folder.name == "clip" else 4, 16)
    assert torch.equal(last, two) and not torch.allclose(one, two, atol=1e-3)
    for count in (0, 3):
        with pytest.raises(ShowtellError, match="ask for 1 to 2"):
            bridge.depths(pixels(), count)


def test_pixels_with_gradients(folder: Path) -> None:
    """The same vectors as of pictures that need no resizing; a step up the slope brings an image nearer to a text."""
    bridge: Any = showtell.load(folder)
    side = bridge.model.config.vision_config.image_size
    shown = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    values = (torch.from_numpy(shown).permute(0, 3, 1, 2) / 255).requires_grad_()
    found, text = bridge.embed_pixels(values), bridge.embed(texts=TEXTS[0])
    assert (found - bridge.embed(shown)).abs().max() < 1e-4
    [slope] = torch.autograd.grad((found @ text.T).sum(), values)
    moved = values.detach() + 1e-3 * slope / slope.abs().max()
    assert (bridge.embed_pixels(moved) @ text.T).sum() > (found @ text.T).sum()
    assert bridge.embed_pixels(torch.rand(1, 3, 50, 40)).shape == (1, found.shape[1])


def test_words_and_what_is_cut(folder: Path) -> None:
    bridge: Any = showtell.load(folder)
    words = bridge.words("a red hundred ring")
    assert len(words["red"]) == 1 and len(words["hundred"]) > 1 and max(words["red"]) < min(words["hundred"])
    long = " ".join(["a dog"] * 8 + ["cat"])
    with pytest.warns(UserWarning, match="longer than the 16 tokens this model reads; cut off: '.*cat'"):
        bridge.embed(texts=long)


def test_dtype(folder: Path) -> None:
    bridge: Any = showtell.load(folder, dtype="bfloat16")
    assert bridge.model.dtype == torch.bfloat16
    vectors = bridge.embed(pixels())
    assert vectors.dtype == torch.float32 and torch.isfinite(vectors).all()
    assert (vectors - showtell.load(folder).embed(pixels())).abs().max() < 0.05


def test_bad_calls(folder: Path, tmp_path: Path) -> None:
    bridge: Any = showtell.load(folder)
    for bad in ({}, {"images": pixels(), "texts": TEXTS}):
        with pytest.raises(ShowtellError, match="one of the two"):
            bridge.embed(**bad)
    for texts in ([], [3]):
        with pytest.raises(ShowtellError, match="texts must be a string"):
            bridge.embed(texts=texts)
    with pytest.raises(ShowtellError, match="no images given"):
        bridge.embed([])
    with pytest.raises(ShowtellError, match="does not take layer"):
        bridge.embed(texts="a", layer=3)
    with pytest.raises(UnsupportedError, match=r"cannot generate .*Bridges that can: .*Stable Diffusion"):
        bridge.generate("a")
    assert showtell.load(bridge.model).name == bridge.name, "it knows where its processor lies"
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ShowtellError, match="no safetensors weights"):
        showtell.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ShowtellError, match="cannot load"):
        showtell.load(tmp_path)
