"""The embedded bridge on random weights of its own class: every input it takes, every refusal, one loop for all."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from parsing import certain
from showtell import Technique
from showtell.bridges.embedded import EmbeddedBridge, kept, load_embedded
from showtell.data.mix import Codec
from showtell.data.signal import to_signal
from showtell.errors import ShowtellError
from showtell.nets.flow_lm import FlowLM, FlowLMConfig, Things
from showtell.train.recipes import packaged_codec
from showtell.world import Scene, SceneObject, draw
from showtell.world.changes import Change, changed, changes

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def codec() -> Codec:
    return packaged_codec()


@pytest.fixture(scope="module")
def bridge(codec: Codec) -> EmbeddedBridge:
    torch.manual_seed(0)
    return EmbeddedBridge(FlowLM(FlowLMConfig(vocab_size=len(codec.tokenizer), **SMALL)), codec, ["a", "red", "ring"])


@pytest.fixture(autouse=True)
def quiet() -> None:
    warnings.filterwarnings("ignore", message="words the model")


def arrays(images: list) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def test_codec_layouts(codec: Codec) -> None:
    row = codec.show("a red ring")
    assert row[0] == codec.special["<bos>"] and row[-1] == codec.special["<show>"]
    assert codec.text(row) == "a red ring"
    assert codec.show(None) == [codec.special[name] for name in ("<bos>", "<sep>", "<show>")]
    assert codec.edit("remove it")[1:] == codec.show("remove it")[1:]
    there, shall = [7, 8], [9]
    planned, split = codec.edit("remove it", shall, there), codec.split(codec.edit("remove it"))
    assert planned[:split] == codec.edit("remove it")[:split]
    assert planned[split:] == [codec.special["<show>"], 7, 8, codec.special["<sep>"], 9, codec.special["<show>"]]
    ids, valid = codec.pad([row, codec.show(None)])
    assert ids.shape == valid.shape == (2, len(row)) and valid.sum(1).tolist() == [len(row), 3]


def test_plan_says_what_is_where(codec: Codec) -> None:
    near = SceneObject("ring", "red", size="large", x=0.5, y=0.25, depth=0)
    far = SceneObject("arrow", "blue", texture="dotted", rotation=90, x=0.999, y=0.0, depth=1)
    said = codec.tokenizer.decode(codec.plan(Scene((near, far), background="sky")))
    assert said.split() == ["sky", "blue", "arrow", "dotted", "right<63><0>", "red", "ring", "large<32><16>"]
    assert codec.tokenizer.decode(codec.plan(Scene((near,)))).split() == ["red", "ring", "large<32><16>"]


def test_what_the_eye_sees_wrongly_is_found_by_drawing_it(bridge: EmbeddedBridge, monkeypatch) -> None:
    """Reading by rendering, and without; a picture that is no scene is left to its patches."""
    scene = Scene((SceneObject("ring", "red", x=0.25, y=0.25), SceneObject("star", "blue", x=0.75, y=0.75)))
    out = certain(scene, doubt=0.05)
    out["colour"][out["present"] > 0.5] = np.roll(out["colour"][out["present"] > 0.5], 1, axis=1)
    nothing = certain(scene) | {"present": np.full(len(out["present"]), 0.001)}
    monkeypatch.setattr(bridge.model.eye, "probabilities", lambda source: [out, nothing])
    source = to_signal(torch.from_numpy(draw([scene, scene])))
    seen, none = bridge.reader.parse(source)
    assert none is None and seen is not None and seen.matches(scene)
    monkeypatch.setattr(bridge.reader, "rendering", False)
    (seen, none) = bridge.reader.parse(source)
    assert none is None and seen is not None and not seen.matches(scene)


def test_a_caption_that_means_something_else_is_told_again(bridge: EmbeddedBridge, monkeypatch) -> None:
    """Read back, it has to say what was found; where no draft does, the first stays."""
    scene, other = (Scene((SceneObject(shape, "red"),)) for shape in ("ring", "star"))
    made = iter([["a red star", "a red star"], ["a blue ring", "a red cross"], ["a red ring", "a red cross"]])
    asked: list[tuple[int, int | None]] = []

    def tell(prompts, source, scenes, seed=None):
        asked.append((len(prompts), seed))
        return next(made, ["a red cross"] * len(prompts))

    monkeypatch.setattr(bridge.reader, "parse", lambda source: [scene, scene, other])
    monkeypatch.setattr(bridge.reader, "_tell", lambda *all: [*tell(*all), "a red star"][: len(all[0])])
    assert bridge.caption([Image.new("RGB", (64, 64))] * 3) == ["a red ring", "a red star", "a red star"]
    assert asked[:4] == [(3, None), (2, 0), (2, 1), (1, 2)] and len(asked) == 9


def test_what_the_eye_finds_is_what_is_told(bridge: EmbeddedBridge, monkeypatch) -> None:
    """An eye that finds a scene decides what the language model reads; without one it reads the picture's patches."""
    rows: list[tuple[list[int], str]] = []

    def tell(ids, valid, source, stop, length, choose=None):
        what = "things" if isinstance(source, Things) else "picture"
        if what == "things":
            assert source.there.tolist() == [[True] + [False] * 4]
            assert codec.tokenizer.decode(source.words[0, 0]).strip() == "red ring"
            assert source.places[0, 0].tolist() == [0.5, 0.25, 0.0]
        rows.extend((row[keep].tolist(), what) for row, keep in zip(ids, valid, strict=True))
        return [[] for _ in ids]

    scene, codec = Scene((SceneObject("ring", "red", x=0.5, y=0.25),), background="sky"), bridge.reader.codec
    monkeypatch.setattr(bridge.reader, "parse", lambda source: [scene, None])
    monkeypatch.setattr(bridge.model, "tell", tell)
    assert bridge.caption([Image.new("RGB", (64, 64))] * 2) == ["", ""]
    english = codec.caption("en")
    assert rows[0] == ([*codec.read(codec.words("sky")), *english], "things")
    assert rows[1] == ([*codec.read(()), *english], "picture")


def test_eyes_see_objects_where_the_language_model_expects_some(bridge: EmbeddedBridge, monkeypatch) -> None:
    source = torch.zeros(2, 3, 64, 64)
    with torch.no_grad():
        out = [o for o in bridge.model.eye.probabilities(source)]
    for one in out:
        one["present"][:] = 0.0
        one["present"][300] = 0.9  # a medium object in cell 44
    monkeypatch.setattr(bridge.model.eye, "probabilities", lambda images: out)
    monkeypatch.setattr(bridge.reader, "rendering", False)  # there is nothing on a grey picture
    end, show = bridge.reader.codec.special["<eos>"], bridge.reader.codec.special["<show>"]
    for expected in (end, show):
        logits = torch.zeros(2, 1, len(bridge.reader.codec.tokenizer))
        logits[..., expected] = 1.0
        monkeypatch.setattr(bridge.model, "logits", lambda hidden, logits=logits: logits)
        found = bridge.reader.parse(source)
        if expected == end:
            assert found == [None, None]
        else:
            assert [len(scene.objects) for scene in found] == [1, 1] and found[0].objects[0].size == "medium"
    out[0]["present"][300] = 0.4
    assert bridge.reader.parse(source)[0] is None


RING = SceneObject("ring", "red", size="large", x=0.25, y=0.25, depth=0)
STAR = SceneObject("star", "blue", x=0.75, y=0.75, depth=1)


def test_changes_are_written_and_read(codec: Codec) -> None:
    """Looks by name, objects by number with their place and rank; and what makes no sense is no change."""
    before = Scene((RING, STAR))
    after = Scene((replace(RING, colour="green"), SceneObject("oval", "pink", x=0.5, y=0.5, depth=2)), "sky")
    row = codec.change("do it", changes(before, after))
    said = codec.tokenizer.decode(row).split("<sep>")[1].split()
    assert said == ["background", "sky<0>", "green", "ring", "large<16><16><0><1>", "pink", "oval<32><32><1><show>"]
    made = changed(before, codec.changes(row))
    assert after.matches(made) and made.objects[0].colour == "green"
    gone = codec.change("remove the star", [Change(1)])
    assert codec.tokenizer.decode(gone).endswith("<1> nothing<show>") and codec.changes(gone) == [Change(1)]
    for nonsense in ([], codec.words("ring"), [codec.special["<3>"]], codec.words("background nowhere"),
                     [codec.special["<0>"], *codec.words("red"), *[codec.special["<9>"]] * 3]):  # fmt: skip
        assert codec.changes([*codec.change("do it")[:-1], *nonsense, 0]) == []


def test_an_edit_leaves_the_rest_of_the_picture_alone(bridge: EmbeddedBridge, monkeypatch) -> None:
    """Where the plan changes nothing, the latents that come out are the source's; where it does, they are drawn."""
    before = Scene((RING, STAR))
    after = Scene((replace(RING, colour="green"), STAR))
    monkeypatch.setattr(bridge.reader, "parse", lambda source: [before])
    monkeypatch.setattr(bridge.reader, "changed", lambda texts, scenes, seeds: [after])
    picture = draw([before])
    made = bridge.edit(picture, "make the ring green", num_inference_steps=3, output_type="latent")[0]
    source = bridge.model.latents_of(to_signal(torch.from_numpy(picture)))[0]
    stays = torch.from_numpy(kept(before, after, 16)) > 0
    assert stays[12, 12] and not stays[4, 4] and 0.4 < stays.float().mean() < 0.9
    assert torch.allclose(made[:, stays], source[:, stays], atol=1e-4)
    assert (made - source)[:, ~stays].abs().mean() > 0.05
    shown = bridge.edit(picture, "make the ring green", num_inference_steps=3, output_type="np")[0]
    assert np.abs(shown[40:, 40:] * 255 - picture[0, 40:, 40:]).max() < 1  # its own pixels, not the autoencoder's
    assert not kept(before, replace(before, style="sepia"), 16).any()
    assert kept(before, before, 16).all()


def test_text_cannot_smuggle_in_special_tokens(codec: Codec) -> None:
    assert not set(codec.words("a ring <eos> <show> <3>")) & set(codec.special.values())


def test_seed_decides_and_the_batch_does_not(bridge: EmbeddedBridge) -> None:
    prompts = ["a red ring", "a red ring left of a red ring"]
    both = bridge.generate(prompts, seed=[3, 4], num_inference_steps=3, output_type="np")
    again = bridge.generate(prompts, seed=[3, 4], num_inference_steps=3, output_type="np")
    alone = bridge.generate(prompts[1], seed=[4], num_inference_steps=3, output_type="np")
    other = bridge.generate(prompts[1], seed=[5], num_inference_steps=3, output_type="np")
    assert np.array_equal(both[0], again[0]) and both[0].shape == (64, 64, 3)
    assert np.abs(both[1] - alone[0]).max() < 1e-3 < np.abs(alone[0] - other[0]).max()


def test_one_step_lands_on_the_predicted_image(bridge: EmbeddedBridge) -> None:
    """From pure noise, one Euler step to the end is the clean image that the network predicts."""
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    made = bridge.generate(
        "a red ring", latents=noise, num_inference_steps=1, guidance_scale=1.0, output_type="latent", plan=False
    )
    ids, valid = bridge.reader.tensors([bridge.reader.codec.show("a red ring")])
    with torch.no_grad():
        model = bridge.model
        states = model(ids, valid)[1]
        expected = noise - model.draw(noise, torch.tensor([1.0]), states, valid, model.beside(ids, valid, states))
    assert torch.allclose(made[0], expected[0], atol=1e-4)


def test_plans_vary_with_the_seed_and_leave_the_noise_alone(bridge: EmbeddedBridge) -> None:
    row = bridge.reader.codec.show("a red ring")
    plans = bridge.reader.plan([row, row, row], [1, 2, 1])
    assert plans[0] == plans[2] != plans[1]
    assert all(plan[: len(row) - 1] == row[:-1] and plan[-1] == row[-1] for plan in plans)
    noise = torch.zeros(1, 4, 16, 16)
    options = {"latents": noise, "num_inference_steps": 1, "output_type": "latent"}
    planned, plain = (bridge.generate("a red ring", plan=plan, **options)[0] for plan in (True, False))
    assert not torch.allclose(planned, plain)


def test_the_plan_that_says_the_prompt_best_is_kept(bridge: EmbeddedBridge, monkeypatch) -> None:
    """Of a row's drafts the one with the highest agreement; agreement is the prompt's likelihood after the plan."""
    codec, show = bridge.reader.codec, bridge.reader.codec.special["<show>"]
    row = codec.show("a red ring")
    drafts = [[70 + k] for k in range(8)]
    monkeypatch.setattr(bridge.model, "tell", lambda *args: drafts)
    monkeypatch.setattr(bridge.reader, "_agreement", lambda rows: torch.tensor([0.0, 2, 1, 0, 5, 1, 1, 6]))
    assert bridge.reader.plan([row, row], [0, 1]) == [[*row[:-1], 71, show], [*row[:-1], 77, show]]
    monkeypatch.undo()
    two = [[*row[:-1], 70, show], [*codec.show("a ring")[:-1], 71, 72, show]]
    both = bridge.reader._agreement(two)
    for one, expected in zip(two, both, strict=True):  # padding counts for nothing
        assert torch.allclose(bridge.reader._agreement([one])[0], expected, atol=1e-4)
    told, wanted = codec.back(two[0])
    ids, valid = bridge.reader.tensors([told])
    with torch.no_grad():
        log = bridge.model.logits(bridge.model(ids, valid)[1]).log_softmax(-1)[0]
    by_hand = sum(float(log[i - 1, told[i]]) for i in range(len(told)) if wanted[i])
    assert abs(by_hand - float(both[0])) < 1e-3


def test_techniques_see_the_prompt_words(bridge: EmbeddedBridge) -> None:
    seen: list[torch.Tensor] = []

    class Look(Technique):
        def attention(self, run, site) -> None:
            if site.kind == "cross":
                seen.append(site.maps())

    plain = bridge.generate("a red ring", num_inference_steps=2, output_type="np")
    watched = bridge.generate("a red ring", num_inference_steps=2, using=[Look()], output_type="np")
    assert np.array_equal(plain[0], watched[0])
    assert len(seen) == 2 * 6 and seen[0].shape[:3] == (1, 3, 64)  # two steps; blocks; heads; cells
    assert len(bridge.words("a red ring")["ring"]) >= 1


def test_techniques_know_the_empty_prompt_of_a_planned_text(bridge: EmbeddedBridge) -> None:
    found: list[torch.Tensor] = []

    class Look(Technique):
        def latents(self, run, latents) -> None:
            found.append(run.text.empty)

    bridge.generate("a red ring", num_inference_steps=1, using=[Look()])
    assert found[0].shape == (1, 3, 32)


def test_edits_depend_on_the_picture_and_the_instruction(bridge: EmbeddedBridge) -> None:
    pictures = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")]
    one, two = arrays(bridge.edit(pictures, "make the ring red", num_inference_steps=2))
    other = arrays(bridge.edit(pictures[0], "remove the ring", num_inference_steps=2))[0]
    assert (one != two).any() and (one != other).any()


@pytest.mark.parametrize("image", [
    Image.new("RGBA", (5, 7), (255, 0, 0, 0)), Image.new("L", (300, 20), 9), Image.new("RGB", (1, 1)),
    Image.new("P", (64, 64)), np.zeros((10, 20, 3), np.uint8), np.ones((8, 8, 3), np.float32), torch.rand(3, 9, 9),
])  # fmt: skip
def test_pictures_of_any_size_and_kind(bridge: EmbeddedBridge, image) -> None:
    assert isinstance(bridge.caption(image)[0], str)
    assert bridge.embed(images=image).shape == (1, 128)


def test_transparent_means_white(bridge: EmbeddedBridge) -> None:
    clear, white = Image.new("RGBA", (64, 64), (255, 0, 0, 0)), Image.new("RGB", (64, 64), "white")
    assert torch.equal(bridge.embed(images=clear), bridge.embed(images=white))


def test_embeddings_are_unit_vectors(bridge: EmbeddedBridge) -> None:
    texts = bridge.embed(texts=["a red ring", "a ring"])
    assert texts.shape == (2, 128) and torch.allclose(texts.norm(dim=1), torch.ones(2), atol=1e-5)


def test_answers_pair_pictures_with_questions(bridge: EmbeddedBridge) -> None:
    picture = Image.new("RGB", (64, 64))
    assert len(bridge.answer(picture, ["a ring?", "red?", "a?"])) == 3
    assert len(bridge.answer([picture, picture], "a ring?")) == 2
    with pytest.raises(ShowtellError, match="2"):
        bridge.answer([picture] * 3, ["a ring?", "red?"])


def test_unknown_words_are_named(bridge: EmbeddedBridge) -> None:
    with pytest.warns(UserWarning, match="never seen: zebra, quagga"):
        bridge.generate("a red zebra ring quagga", num_inference_steps=1)


@pytest.mark.parametrize(("call", "says"), [
    (lambda b: b.generate(""), "empty prompt"),
    (lambda b: b.generate([]), "no prompts"),
    (lambda b: b.generate("word " * 10_000), "10000 words"),
    (lambda b: b.generate("a ring", height=128), "64x64"),
    (lambda b: b.generate("a ring", num_inference_steps=0), "num_inference_steps"),
    (lambda b: b.caption(Image.new("RGB", (9, 9)), language="tlh"), "unsupported language 'tlh'"),
    (lambda b: b.edit(Image.new("RGB", (9, 9)), " "), "empty instruction"),
    (lambda b: b.embed(), "one of the two"),
    (lambda b: b.animate("a ring"), "cannot animate"),
])  # fmt: skip
def test_refusals_are_one_clear_line(bridge: EmbeddedBridge, call, says: str) -> None:
    with pytest.raises(ShowtellError, match=says) as caught:
        call(bridge)
    assert "\n" not in str(caught.value)


def test_saved_bridge_loads_and_damaged_ones_are_refused(bridge: EmbeddedBridge, tmp_path) -> None:
    bridge.save(tmp_path)
    again = load_embedded(tmp_path)
    picture = Image.new("RGB", (64, 64), "green")
    assert torch.allclose(again.embed(images=picture), bridge.embed(images=picture), atol=1e-6)
    weights = tmp_path / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if name != "grounding.before.weight"}
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(ShowtellError, match=r"lacks grounding\.before\.weight"):  # and is not made up
        load_embedded(tmp_path)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ShowtellError, match=r"damaged|cannot load"):
        load_embedded(tmp_path)
    weights.rename(tmp_path / "pytorch_model.bin")  # pickled weights are never read
    with pytest.raises(ShowtellError):
        load_embedded(tmp_path)
