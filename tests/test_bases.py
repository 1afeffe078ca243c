"""The bases: each recipe trains two steps and leaves a folder that `showtell.load` reads and that does its work."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

import showtell
import tiny
from showtell.bridges.vlm import TEMPLATES
from showtell.data.signal import to_signal
from showtell.errors import ShowtellError
from showtell.measure.vqa import vqa_score
from showtell.pictures import to_pil
from showtell.train import recipes
from showtell.train.bases import codes, pool, seeing, text
from showtell.train.bases.attention import attend, plain_attention
from showtell.world import Scene, SceneObject, draw
from showtell.world.scene import COLOURS, SHAPES, TEXTURES


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A small random autoencoder in place of the packaged one, and a pool of a few scenes."""
    root = tmp_path_factory.mktemp("bases")
    vae(0).save_pretrained(root / "weights" / "vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOWTELL_WEIGHTS", str(root / "weights"))
        patch.setenv("SHOWTELL_CACHE", str(root / "cache"))
        patch.setenv("SHOWTELL_POOL", "12")
        yield root


def vae(seed):
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4, sample_size=64, scaling_factor=0.5,
        shift_factor=0.1,
    ).eval()  # fmt: skip


def trained(home, name):
    """The folder of that base after two steps, made once."""
    folder = home / "weights" / name
    if not folder.exists():
        recipes.run(name, out=folder, steps=2, batch=3, progress=False)
    return folder


def test_saving_is_silent_and_for_everybody_to_read(tmp_path, capfd):
    from showtell.train.bases.saving import save_pipeline

    pipeline = tiny.make("sd3")
    capfd.readouterr()
    save_pipeline(pipeline, tmp_path)
    assert "float32" not in "".join(capfd.readouterr())
    assert pipeline.transformer.dtype == pipeline.vae.dtype == pipeline.text_encoder_3.dtype == torch.bfloat16
    modes = {path.stat().st_mode for path in tmp_path.glob("*/*.safetensors")}
    assert modes == {(tmp_path / "model_index.json").stat().st_mode}


@pytest.mark.parametrize("name", ["unet", "mmdit", "dit"])
def test_diffusion_bases_are_pipelines_that_read_their_prompts(home, name):
    folder = trained(home, name)
    bridge = showtell.load(folder)
    prompts = ["a red circle left of a blue square", "a green star"]
    made = bridge.generate(prompts, num_inference_steps=2, output_type="np")
    assert [image.shape for image in made] == [(64, 64, 3)] * 2
    words = bridge.words(prompts[0])
    assert len(words["circle"]) == 1
    card = json.loads((folder / "card.json").read_text())
    assert card["samples"] == 6 and 5e5 < card["parameters"] < 5e6
    for weights in folder.rglob("*.safetensors"):
        from safetensors.torch import load_file

        assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.bfloat16}


def test_the_editor_begins_as_the_unet_and_edits(home):
    unet = showtell.load(trained(home, "unet")).pipeline.unet
    begun = recipes.RECIPES["editor"].model().pipeline.unet
    weight = begun.conv_in.weight
    assert torch.equal(weight[:, :4], unet.conv_in.weight) and not weight[:, 4:].any()
    bridge = showtell.load(trained(home, "editor"))
    images = draw(pool.pool_scenes(np.random.default_rng(1), 2))
    made = bridge.edit(images, ["make the circle red", "remove the star"], num_inference_steps=2)
    assert [image.size for image in made] == [(64, 64)] * 2
    batch = recipes.RECIPES["editor"].data("scenes")(np.random.default_rng(0), 200)
    blind, blank = ~batch["shown"].any(axis=(1, 2, 3)), batch["real"].sum(axis=1) == 2
    assert 2 < blind.sum() < 40 and 2 < blank.sum() < 40 and (blind & blank).any()


def test_the_vlm_reads_with_the_prompts_that_it_was_trained_on(home):
    bridge = showtell.load(trained(home, "vlm"))
    scenes = pool.pool_scenes(np.random.default_rng(1), 2)
    texts = bridge.caption(draw(scenes), max_new_tokens=4)
    assert len(texts) == 2 and all(isinstance(one, str) for one in texts)
    assert len(bridge.answer(draw(scenes[:1]), ["what is the word?", "how many circles are there?"])) == 2
    chances = vqa_score(bridge, to_pil(draw(scenes)), [scene.caption() for scene in scenes])
    assert chances.shape == (2,) and (chances > 0).all() and (chances < 1).all()
    # The rows of training are what the processor makes of the same words.
    processor = bridge.teller.processor
    batch = recipes.RECIPES["vlm"].data("scenes")(np.random.default_rng(0), 8)
    for ids, wanted in zip(batch["ids"], batch["wanted"], strict=True):
        first = np.argmax(wanted)
        prompt = ids[:first]
        request = processor.decode([i for i in prompt if i != bridge.model.config.image_token_id])
        request = request.removeprefix("USER: ").removesuffix(" ASSISTANT:").strip()
        inputs = bridge.teller._inputs(
            to_pil(batch["image"][:1]), [bridge.teller._prompt(request, TEMPLATES["llava"][1])]
        )
        assert inputs["input_ids"][0].tolist() == prompt.tolist()
        pixels = to_signal(torch.from_numpy(batch["image"][:1]))
        torch.testing.assert_close(inputs["pixel_values"], pixels, rtol=0, atol=1e-5)
        replies = processor.decode(ids[wanted]).split("<|endoftext|>")
        assert replies.pop() == "" and len(replies) == seeing.TURNS and all(replies)
        rest = processor.decode(ids[first:]).split("<|endoftext|>")
        for turn, reply in zip(rest[1 : seeing.TURNS], replies[1:], strict=True):  # as chat templates put them
            assert turn.startswith("USER: ") and turn.endswith(f" ASSISTANT:{reply}")


def test_the_vq_model_is_the_autoencoder_with_a_codebook(home):
    base = pool.packaged_vae()
    model = codes.vq_of(base, torch.randn(64, 4))
    pixels = to_signal(torch.from_numpy(draw(pool.pool_scenes(np.random.default_rng(1), 2))))
    with torch.no_grad():
        latents = base.encode(pixels).latent_dist.mode()
        torch.testing.assert_close(model.encode(pixels).latents, latents, rtol=1e-4, atol=1e-4)
        tokens = codes.nearest(codes.flat(latents), model.quantize.embedding.weight)
        book = model.quantize.embedding.weight[tokens].view(2, 16, 16, 4).permute(0, 3, 1, 2)
        shown = model.decode(tokens, force_not_quantize=True, shape=(2, 16, 16, 4)).sample
        torch.testing.assert_close(shown, base.decode(book).sample, rtol=1e-4, atol=1e-4)
        expected = model.quantize(latents)[2][2].flatten()  # diffusers' own nearest code
    assert torch.equal(tokens, expected)
    trained(home, "vq")
    assert codes.read_codes()[0].shape == (12, 256)


def test_k_means_fits_its_vectors_and_leaves_no_code_unused():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2000, 2, generator=generator) + 5 * torch.randint(2, (2000, 1), generator=generator)

    def error(rounds):
        book = codes.k_means(vectors, 16, rounds=rounds, seed=1)
        index = codes.nearest(vectors, book)
        assert rounds == 0 or len(index.unique()) == 16
        return (vectors - book[index]).square().mean()

    assert error(12) < 0.7 * error(0)
    # Nearest by the whole distance matrix.
    book = vectors[:5]
    assert torch.equal(codes.nearest(vectors, book), torch.cdist(vectors, book).argmin(dim=1))


def test_scales_add_up_to_the_latents():
    latents = torch.randn(40, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    books = codes.fit_scales(latents, 64)
    found = codes.to_scales(latents, books)
    errors = [(codes.from_scales(found[:k], books) - latents).square().mean() for k in range(1, 6)]
    assert all(a >= b for a, b in itertools.pairwise(errors)) and errors[-1] < 0.5 * latents.var()


@pytest.mark.parametrize("name", ["ar", "masked", "scalewise"])
def test_token_bases_read_their_prompts(home, name):
    trained(home, "vq")
    bridge = showtell.load(trained(home, name))
    prompts = ["a red circle left of a blue square", "a green star"]
    steps = {"num_inference_steps": 2} if name == "masked" else {}
    made = bridge.generate(prompts, output_type="np", **steps)
    assert [image.shape for image in made] == [(64, 64, 3)] * 2 and not np.array_equal(*made)
    alone = bridge.generate(prompts[:1], output_type="np", **steps)
    np.testing.assert_allclose(alone[0], made[0], atol=1e-4)
    assert len(bridge.words(prompts[0])["circle"]) == 1


def test_the_masked_base_decodes_as_its_pipeline_expects(home):
    """In [0, 1], which is all that aMUSEd's pipeline keeps; the codebook's own base decodes in [-1, 1]."""
    trained(home, "vq")
    pipeline, vq = showtell.load(trained(home, "masked")).decoder.pipeline, codes.packaged_vq()
    tokens = torch.arange(256)[None] % 30
    expected = (codes.from_codes(vq, tokens) + 1) / 2
    assert torch.allclose(codes.from_codes(pipeline.vqvae.float(), tokens), expected, atol=0.03)


@pytest.mark.parametrize("name", ["ar", "scalewise"])
def test_attention_of_the_token_bases_is_seen(home, name):
    trained(home, "vq")
    bridge = showtell.load(trained(home, name))
    seen = {}

    class Look(showtell.Technique):
        def attention(self, run, site):
            seen.setdefault(run.step, []).append(
                site.text_probs.shape if hasattr(site, "text_probs") else site.place.grid
            )

    class Identity(showtell.Technique):
        def attention(self, run, site):
            site.probs = site.probs

    plain = bridge.generate("a red circle", output_type="latent", seed=1)
    looked = bridge.generate("a red circle", output_type="latent", seed=1, using=[Look()])
    assert torch.equal(plain[0], looked[0])
    assert len(seen) == (256 if name == "ar" else 5) and all(seen.values())


def test_the_autoregressive_base_reads_with_the_prompts_that_it_was_trained_on(home):
    trained(home, "vq")
    bridge = showtell.load(trained(home, "ar"))
    images = draw(pool.pool_scenes(np.random.default_rng(1), 2))
    assert len(bridge.caption(images, max_new_tokens=3)) == len(bridge.answer(images, "what?", max_new_tokens=3)) == 2
    assert ((chance := vqa_score(bridge, to_pil(images), "a red circle")) > 0).all() and (chance < 1).all()
    batch = recipes.RECIPES["ar"].data("scenes")(np.random.default_rng(0), 6)
    assert (batch["shown"].sum(axis=1) == 256).all()
    tokenizer, model = bridge.teller.processor.tokenizer, bridge.teller.model
    for ids, wanted, shown in list(zip(batch["ids"], batch["wanted"], batch["shown"], strict=True))[-2:]:
        first = np.argmax(wanted)
        prompt = ids[:first]
        after = prompt[np.flatnonzero(shown)[-1] + 2 :]
        request = tokenizer.decode(after).replace("<sep>", "").strip()
        inputs = bridge.teller._inputs(to_pil(images[:1]), [bridge.teller._prompt(request, "{image}{}<sep>")])
        theirs = inputs["input_ids"][0].numpy()
        assert len(theirs) == len(prompt)
        same = theirs != model.config.image_token_id
        assert (theirs[same] == prompt[same]).all() and same.sum() == len(prompt) - 256
    for ids, shown in list(zip(batch["ids"], batch["shown"], strict=True))[:4]:
        prompt = tokenizer.decode(ids[: np.argmax(shown)]).removeprefix("<bos>").removesuffix("<boi>").strip()
        expected, _ = bridge.decoder.ids([prompt], (16, 16))
        assert [*expected[0].tolist(), bridge.decoder.opening((16, 16))] == ids[: np.argmax(shown)].tolist()


def test_scales_decoded_one_by_one_equal_the_whole_pass(home):
    """With a cache and padded prompts the logits of each scale are those of training."""
    trained(home, "vq")
    model = showtell.load(trained(home, "scalewise")).decoder.model
    ids, real = text.ids_of(text.clip_tokenizer(), ["a red circle left of a blue square", "a star"])
    ids, real = torch.from_numpy(ids).long(), torch.from_numpy(real)
    tokens = [torch.randint(model.config.codes, (2, side * side)) for side in model.config.scales]
    with torch.no_grad():
        whole = model(ids, real, tokens)
        cache = model.read(model.backbone.embed_tokens(ids))
        for scale in range(5):
            before = model.latents(tokens[:scale]) if scale else None
            torch.testing.assert_close(model.next(scale, before, cache, real), whole[scale], rtol=1e-3, atol=1e-4)


def test_clip_embeds_images_and_texts(home):
    bridge = showtell.load(trained(home, "clip"))
    images = draw(pool.pool_scenes(np.random.default_rng(1), 2))
    assert bridge.embed(images).shape == bridge.embed(texts=["a red circle", "a star"]).shape == (2, 64)
    batch = recipes.RECIPES["clip"].data("scenes")(np.random.default_rng(0), 8)
    assert batch["image"].shape == (8, 64, 64, 3) and batch["ids"].shape == (8, text.LENGTH)


@pytest.mark.parametrize("name", ["unet", "mmdit", "dit"])
def test_training_sees_what_the_bridge_computes(home, name):
    """The prediction that is trained is the one that sampling asks for: same text, same timestep, same latents."""
    torch.manual_seed(0)
    model = recipes.RECIPES[name].model().eval()
    with torch.no_grad():
        for weight in model.parameters():  # final layers begin at zero
            if weight.ndim > 1 and not weight.any():
                weight.normal_(0, 0.1)
    bridge, prompts = showtell.load(model.pipeline), ["a red circle left of a blue square", "a green star"]
    seen = {}

    class Look(showtell.Technique):
        def prediction(self, run, guided, conditional, unconditional):
            seen.setdefault("at", (run.latents.clone(), run.timestep.clone(), conditional.clone()))

    bridge.generate(prompts, using=[Look()], num_inference_steps=2, output_type="latent")
    latents, timestep, predicted = seen["at"]
    tokenizer = model.pipeline.tokenizer
    ids, real = text.ids_of(tokenizer, prompts)
    batch = {"ids": torch.from_numpy(ids).long(), "real": torch.from_numpy(real)}
    with torch.no_grad():
        again, shown = model(latents, timestep.expand(2), batch)
    torch.testing.assert_close(again, predicted, rtol=1e-3, atol=1e-4)
    assert [one.shape for one in shown] == [(2, 64, values) for values in pool.CELLS.values()]


def test_the_pool_is_made_once_and_goes_on_where_it_was_interrupted(home, monkeypatch):
    monkeypatch.setattr(pool, "SHARD", 4)
    shards = pool.make_pool(vae(1), rows=10)
    assert [shard.name.split("-")[1] for shard in shards] == ["4", "4", "2"]
    first, captions = pool.read_pool(vae(1), rows=10)
    assert first.shape == (10, 1, 4, 16, 16) and len(captions) == 10 and len(captions[0]) == len(pool.WORDINGS)
    stamp = shards[0].with_suffix(".json").stat().st_mtime_ns
    shards[1].with_suffix(".json").unlink()  # as if killed there
    again, _ = pool.read_pool(vae(1), rows=10)
    assert np.array_equal(first, again) and shards[0].with_suffix(".json").stat().st_mtime_ns == stamp
    other, _ = pool.read_pool(vae(2), rows=10)
    assert not np.array_equal(first, other)


def test_cells_say_what_the_pool_s_pictures_show(home, monkeypatch):
    monkeypatch.setattr(pool, "SHARD", 4)
    _, captions = pool.read_pool(vae(1), rows=6)
    found = pool.read_cells(6)
    for cells, (plain, *_) in zip(found, captions, strict=True):
        scene = Scene.parse(plain)
        assert {SHAPES[i - 1] for i in cells[..., 0].flatten() if i} == {thing.shape for thing in scene.objects}
    far = SceneObject("ring", "red", "large", x=0.25, y=0.75, depth=1)
    [cells] = pool.cells([Scene((far, SceneObject("star", "blue", "small", x=0.3, y=0.7)))])
    assert (cells[:4] == 0).all() and (cells[:, 4:] == 0).all()
    assert cells[5, 2, 0] == SHAPES.index("star") + 1 and cells[7, 1, 0] == SHAPES.index("ring") + 1
    assert cells[5, 2, 1] == COLOURS.index("blue") + 1
    assert list(pool.read_counts(6)) == [len(Scene.parse(plain).objects) for plain, *_ in captions]
    _, captions = pool.read_pool(vae(1), "textured", rows=6)
    found, scenes = pool.read_cells(6, "textured"), [Scene.parse(plain) for plain, *_ in captions]
    assert list(pool.read_counts(6, "textured")) == [len(scene.objects) for scene in scenes]
    for cells, scene in zip(found, scenes, strict=True):
        assert {TEXTURES[i - 1] for i in cells[..., 2].flatten() if i} == {thing.texture for thing in scene.objects}
    after = pool.read_cells(3, "edits")
    assert after.shape == (3, 8, 8, 4) and after.any()


def test_a_standardised_autoencoder_needs_no_scale_and_no_shift():
    """Its latents have mean 0 and variance 1 in every channel, and decode to the same pictures."""
    plain, moved = vae(3), pool.standardised(vae(3))
    assert moved.config.scaling_factor == 1 and moved.config.shift_factor == 0
    images = draw(pool.pool_scenes(np.random.default_rng(0), 300))
    latents = torch.cat([pool.encode(moved, part) for part in np.array_split(images, 3)])
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    pixels = torch.from_numpy(images[:2]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        one, other = plain.encode(pixels).latent_dist, moved.encode(pixels).latent_dist
        noise = torch.randn(one.mean.shape)
        torch.testing.assert_close(
            moved.decode(other.mean + other.std * noise).sample, plain.decode(one.mean + one.std * noise).sample,
            rtol=1e-3, atol=1e-4,
        )  # fmt: skip


def test_every_word_of_the_world_is_one_token():
    clip, t5 = text.clip_tokenizer(), text.t5_tokenizer()
    assert text.joined(["in", "rain"]) == [("i", "n</w>"), ("r", "a"), ("ra", "in</w>")]  # and "in" stays as it was
    words = [word for word in text.vocabulary() if word.isalpha()]
    assert {"circle", "circles", "watercolour", "hello", "moving"} <= set(words)
    assert all(len(clip(word)["input_ids"]) == 3 for word in words)
    assert all(len(t5(word)["input_ids"]) == 2 for word in words)
    assert t5.unk_token_id not in t5("a left-turned arrow, with the word STOP; zyxwv")["input_ids"]


def test_prompts_that_are_too_long_give_way_to_terse_ones():
    tokenizer = text.clip_tokenizer()
    long, terse = " ".join(["red"] * 40), "red square"
    prompts = text.Prompts(tokenizer, [[long, terse, long]], drop=0.0)
    rows = prompts(np.random.default_rng(0), np.zeros(20, int))
    assert {tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows["ids"]} == {terse}
    empty = text.Prompts(tokenizer, [[long, terse, long]], drop=1.0)(np.random.default_rng(0), np.zeros(2, int))
    assert empty["real"].sum() == 4  # the two tokens that open and close


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": "bool"}, {"attn_mask": "float"}])
def test_plain_attention_equals_the_fused_one(options):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    if "attn_mask" in options:
        mask = torch.rand(2, 1, 5, 5) > 0.3
        mask[..., 0] = True
        options = {"attn_mask": mask if options["attn_mask"] == "bool" else torch.randn(2, 1, 5, 5)}
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(attend(q, k, v, **options), expected)
    with plain_attention():
        torch.testing.assert_close(torch.nn.functional.scaled_dot_product_attention(q, k, v, **options), expected)


def test_the_page_shows_what_is_there_and_keeps_what_was_measured(home, tmp_path):
    from showtell import files
    from showtell.measure import bases

    for name in ("vq", "unet", "clip"):
        trained(home, name)
    out = tmp_path / "bases.md"
    bases.page(out, ["clip", "vq"], n=2)
    bases.page(out, ["vae"], n=2)
    text = out.read_text()
    kept = json.loads((tmp_path / "bases" / "figures.json").read_text())
    assert list(kept) == ["clip", "vq", "vae"] and kept["vq"]["figures"]["error"] > 0
    assert all(f"| `{name}` |" in text for name in kept) and "retrieval" in text and "2 cases of each kind" in text
    scores = {f"{task}{kind}": 0.5 for task in bases.PROMPTS for kind in ("", ", complete")}
    files.write(tmp_path / "bases" / "figures.json", json.dumps(
        {"unet": {"n": 2, "seed": 0, "figures": scores | {"pairs, complete": 0.75, "seconds": 0.1}}}
    ))  # fmt: skip
    bases.page(out, ["vae"], n=2)
    [row] = [line for line in out.read_text().splitlines() if line.startswith("| `unet` | 0.50 / ")]
    assert row.startswith("| `unet` | 0.50 / 0.75 | 0.50 / 0.50 |")
    sheet = bases.grid("unet", 0)
    assert sheet.size[0] >= 8 * 64 and bases.grid("clip") is None
    with pytest.raises(ShowtellError, match="unknown base 'unett'"):
        bases.figures("unett")
    assert {"unet", "vq", "clip", "vae"} <= set(bases.present()) and "video" not in bases.present()
