"""AttnDreamBooth: the regulariser by hand and its effect, what each stage trains, every host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hosts import UNET, hosts, keywords
from test_popalign import fresh
from test_spin_diffusion import run_small
from worlds import WorldLab, bright

from showtell.errors import ShowtellError
from showtell.measure.concepts import ConceptPrompts
from showtell.papers.personalize import attndreambooth as module
from showtell.papers.personalize.attndreambooth import STAGES, Alike, Stage, attndreambooth
from showtell.steer.tokens import NewWord
from showtell.train.noising import Noising
from unet_variants import pictures


def test_the_regulariser_by_hand() -> None:
    one, other = torch.tensor([[0.1, 0.3]]), torch.tensor([[0.5, 0.5]])  # means 0.2 and 0.5, variances 0.01 and 0
    assert float(Alike("a", "b", 2.0, 5.0).difference(one, other)) == pytest.approx(2 * 0.09 + 5 * 0.0001)
    assert float(Alike("a", "b", 2.0, 5.0).difference(one, one.flip(1))) == 0, "the maps need not be the same"


def test_defaults_are_the_released_ones() -> None:
    assert [(s.part, s.steps, s.lr, s.mean, s.variance) for s in STAGES] == [
        ("word", 60, 1e-3, 0.1, 0.0), ("attention", 100, 2e-5, 2.0, 5.0), ("unet", 500, 2e-6, 2.0, 5.0),
    ]  # fmt: skip


@pytest.mark.parametrize("name", hosts("attndreambooth", *UNET))
@pytest.mark.parametrize(
    ("part", "trained"),
    [
        ("word", set()),
        ("attention", {"attn2"}),
        ("unet", {"attn1", "attn2", "conv_in"}),
        ("word and unet", {"conv_in"}),
    ],
)
def test_what_each_stage_trains(name: str, part: str, trained: set[str]) -> None:
    bridge, options = fresh(name)
    before = {key: value.clone() for key, value in bridge.adapter.denoiser.state_dict().items()}
    encoder = bridge.pipeline.text_encoder
    known = {key: value.clone() for key, value in encoder.state_dict().items()}
    begun = encoder.get_input_embeddings().weight.detach().clone()
    new = attndreambooth(bridge, pictures(2), "qux", "cat", [Stage(part, 2, 1e-3, 1.0, 1.0)], **options)
    changed = [
        key for key, value in bridge.adapter.denoiser.state_dict().items() if not torch.equal(value, before[key])
    ]
    parts = {part for key in changed for part in key.split(".")}
    assert trained <= parts and bool(changed) == bool(trained)
    if part == "attention":
        assert all("attn2" in key for key in changed)
    vector = encoder.get_input_embeddings().weight[new.ids[0]]
    cat = bridge.pipeline.tokenizer("cat", add_special_tokens=False)["input_ids"]
    assert torch.allclose(vector, begun[cat].mean(0), atol=1e-6) == ("word" not in part)
    rest = {key: value for key, value in encoder.state_dict().items() if "token_embedding" not in key}
    assert all(torch.equal(value, known[key]) for key, value in rest.items())
    assert torch.equal(encoder.get_input_embeddings().weight[: len(begun) - 1], begun[: len(begun) - 1])
    image = bridge.generate("a qux cat", **{**keywords(name), "seed": 1})[0]
    assert torch.isfinite(image).all()


@pytest.mark.parametrize("part", ["word", "attention"])
def test_it_brings_the_words_attention_together(part: str) -> None:
    bridge, options = fresh("sd")
    prompt = "a photo of a qux cat"
    shown = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    new = NewWord(bridge, "qux", "table")
    noising = Noising(bridge, **options)

    def apart() -> float:
        alike, at = Alike("qux", "cat", 1.0, 1.0), noising.at(shown, shown.flip(0), torch.tensor([500, 300]))
        with torch.no_grad(), new.reading():
            text = noising.text([prompt] * 2, trained=True)
            noising.predict(at, text, [alike], noising.run([prompt] * 2, [alike]))
        assert len(alike.found) % 2 == 0 and len(alike.found) > 2, "of every layer and sample"
        return float(torch.stack(alike.found).mean())

    new.keep()
    start = apart()
    data = module.paired(shown, 2)
    module.train(noising, new, prompt, "cat", data, Stage(part, 12, 3e-3, 1e4, 1e4))
    assert apart() < 0.7 * start


def test_a_stage_builds_on_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    bridge, options = fresh("sd")
    seen: list[Any] = []
    train = module.train

    def watched(noising: Any, new: Any, prompt: str, *more: Any) -> None:
        seen.append((prompt, [vector.detach().clone() for vector in new.vectors], more[2].part))
        train(noising, new, prompt, *more)

    monkeypatch.setattr(module, "train", watched)
    stages = [Stage("word", 2, 1e-2), Stage("attention", 1, 1e-3), Stage("unet", 1, 1e-3)]
    attndreambooth(bridge, pictures(2), "qux", "cat", stages, **options)
    assert [one[2] for one in seen] == ["word", "attention", "unet"] and seen[0][0] == "a photo of a qux cat"
    assert not torch.equal(seen[0][1][0], seen[1][1][0]) and torch.equal(seen[1][1][0], seen[2][1][0])
    with pytest.raises(ShowtellError, match="word and unet"):
        attndreambooth(bridge, pictures(2), "quux", "cat", [Stage("everything", 1, 1e-3)], **options)


def test_the_experiment_and_the_example_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, small in {"WORD": (1, 1e-3), "ATTENTION": (1, 1e-3), "UNET": (1, 1e-3), "SAMPLING": 1}.items():
        monkeypatch.setattr(module, name, small)
    monkeypatch.setattr(ConceptPrompts, "both", lambda self, images, judge="first": bright(images))
    lab = WorldLab(seeds=1)
    lab.n = 8
    found = module.experiment(lab)
    assert next(iter(found.scores)) == "attndreambooth" and found.control == "first stage alone"  # type: ignore[attr-defined]
    run_small(module.EXAMPLE, monkeypatch)
