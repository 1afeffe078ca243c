"""Tiny language models that read and write pictures, and what each of them must show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import showtell
from bridge_family import ONE, PAIR, THREE
from showtell.bridges.base import Technique
from showtell.errors import ShowtellError
from test_bridges_attention import IDENTITIES, At


def text_config(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, **more,
    }  # fmt: skip


def strong(model: Any) -> Any:
    """Random models of the usual scale write the same whatever they are told."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data *= 20 if "self_attn" in name else 5
    return model.eval()


def pixels(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)


class TellTests:
    """Inherit, with `bridge`, and `asked`: a question as the library's processor takes it."""

    bridge: Any

    def asked(self, question: str) -> str:
        raise NotImplementedError

    def told(self, image: np.ndarray, question: str) -> str:
        """The library's answer, one sample at a time."""
        processor, model = self.bridge.teller.processor, self.bridge.teller.model
        inputs = processor(images=[image], text=[self.asked(question)], return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=6)
        return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()

    def test_answers_and_captions_are_the_library_s_own(self) -> None:
        questions = ["a red ring", "the big dog on the table"]
        expected = [self.told(*pair) for pair in zip(pixels(), questions, strict=True)]
        assert self.bridge.answer(pixels(), questions, max_new_tokens=6) == expected
        described = [self.told(image, "Describe this image in one sentence.") for image in pixels()]
        assert self.bridge.caption(pixels(), max_new_tokens=6) == described

    def test_techniques_steer_the_text(self) -> None:
        class Write(Technique):
            def tokens(self, run: Any, tokens: torch.Tensor) -> torch.Tensor:
                return torch.full_like(tokens, wanted[run.step])

        tokenizer = self.bridge.teller.processor.tokenizer
        wanted = tokenizer(" red ring", add_special_tokens=False)["input_ids"][-2:]
        said = self.bridge.answer(pixels(), "cat", max_new_tokens=2, using=[Write()])
        assert said == [tokenizer.decode(wanted).strip()] * 2

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        self.bridge.save(tmp_path)
        again: Any = showtell.load(tmp_path)
        assert again.name == self.bridge.name and again.can == self.bridge.can
        expected = self.bridge.answer(pixels(1), "cat", max_new_tokens=4)
        assert again.answer(pixels(1), "cat", max_new_tokens=4) == expected


class ShowTests(TellTests):
    """Also `size` (height, width) and `theirs`: the library's picture tokens for prompts."""

    size: dict[str, int] = {}
    vocabulary: int
    layers = 2

    def theirs(self, prompts: list[str], **more: Any) -> torch.Tensor:
        raise NotImplementedError

    def ours(self, prompts: Any, **more: Any) -> torch.Tensor:
        """All tokens in the order of decoding."""
        kept: list[torch.Tensor] = []

        class Keep(Technique):
            def finish(self, run: Any, outputs: list[Any]) -> None:
                kept.append(run.tokens)

        using = [*more.pop("using", ()), Keep()]
        call = {"do_sample": False, "output_type": "latent", **self.size, **more}
        self.bridge.generate(prompts, using=using, **call)
        return torch.cat(kept)

    @pytest.mark.parametrize("prompts", [ONE, THREE], ids=["batch1", "batch3"])
    def test_tokens_are_the_library_s_own(self, prompts: list[str]) -> None:
        expected = self.theirs(prompts)
        assert torch.equal(self.ours(prompts), expected)
        assert len(expected.unique()) > 2

    def test_sampled_tokens_are_the_library_s_own(self) -> None:
        more = {"do_sample": True, "temperature": 1.5, "top_k": 5}
        with torch.random.fork_rng():
            torch.manual_seed(5)
            expected = self.theirs(THREE, **more)
        got = self.ours(THREE, generator=torch.Generator().manual_seed(5), **more)
        assert torch.equal(got, expected)
        assert not torch.equal(got, self.ours(THREE))

    def test_prompt_and_guidance_matter(self) -> None:
        base = self.ours(ONE)
        assert not torch.equal(self.ours(["a dog on the table"]), base)
        assert not torch.equal(self.ours(ONE, guidance_scale=9.0), base)

    def test_sample_is_independent_of_its_batch(self) -> None:
        call = {"do_sample": True, "seed": 3}
        together = self.ours(THREE, **call)
        assert torch.equal(self.ours(THREE, batch_size=2, **call), together)
        assert torch.equal(self.ours(THREE[:1], **call), together[:1])

    def test_hooks(self) -> None:
        class Only(Technique):
            def logits(self, run: Any, logits: torch.Tensor) -> torch.Tensor:
                assert logits.shape == (2, size) == run.conditional.shape == run.unconditional.shape
                seen.append(run.step)
                return logits

            def tokens(self, run: Any, tokens: torch.Tensor) -> torch.Tensor:
                assert tokens.shape == (2,)
                return torch.where(torch.tensor(run.step == 1), wanted, tokens)

        size, seen = self.vocabulary, list[int]()
        plain = self.ours(PAIR)
        wanted = next(token for token in plain.flatten() if token not in plain[:, 1])
        changed = self.ours(PAIR, using=[Only()])
        assert seen == list(range(plain.shape[1]))
        assert torch.equal(changed[:, 0], plain[:, 0]) and (changed[:, 1] == wanted).all()
        assert not torch.equal(changed[:, 2:], plain[:, 2:]), "what follows is decoded from what was put in"

    def test_maps_are_probabilities(self) -> None:
        def check(run: Any, site: Any) -> None:
            whole = site.probabilities("text", "image")
            assert site.maps().shape[2] == 1 == whole.shape[2] and site.kind == "joint"
            assert torch.equal(site.maps(), whole[..., site.text])
            assert (whole.sum(-1) - 1).abs().max() < 1e-5
            output = site.probabilities() @ site.value.repeat_interleave(
                site.query.shape[1] // site.value.shape[1], dim=1
            )
            assert (output - site.output).abs().max() < 1e-4
            # The shorter prompt's padding is not attended to.
            short = len(list(run.text.mask[1].nonzero()))
            assert site.maps()[1, ..., short:].abs().max() == 0 and short < run.text.tokens.shape[1]
            seen.append((run.step, site.depth))

        seen: list[tuple[int, int]] = []
        tokens = self.ours(PAIR, using=[At(check)])
        assert seen == [(step, layer) for step in range(tokens.shape[1]) for layer in range(self.layers)]

    def test_identity_edits_change_nothing(self) -> None:
        plain = self.ours(PAIR)
        for name, identity in IDENTITIES.items():
            assert torch.equal(self.ours(PAIR, using=[At(lambda run, site, act=identity: act(site))]), plain), name

    def test_masking_a_word_removes_it_from_the_softmax(self) -> None:
        def check(run: Any, site: Any) -> None:
            logits = site.logits("text", "image")
            keep = torch.ones(logits.shape[-1], dtype=torch.bool)
            keep[positions] = False
            site.mask(keep[site.text])
            now = site.probabilities("text", "image")
            assert now[..., ~keep].abs().max() == 0
            assert (now[..., keep] - logits[..., keep].softmax(-1)).abs().max() < 1e-6
            seen.append(1)

        seen: list[int] = []
        positions = list(self.bridge.words(PAIR[0])["ring"])
        masked = self.ours(PAIR, using=[At(check)])
        assert seen and masked.shape == self.ours(PAIR).shape

    def test_words(self) -> None:
        before, after = (self.bridge.encode(f"a red ring above the {word}").tokens[0] for word in ("dog", "cat"))
        change = (before - after).abs().amax(-1)
        words = self.bridge.words("a red ring above the dog")
        assert change.nonzero().flatten().tolist() == list(words["dog"])
        assert max(words["red"]) < min(words["ring"])

    def test_conditioning_hook(self) -> None:
        class Other(Technique):
            def conditioning(self, run: Any, text: Any) -> Any:
                return run.encode("a dog on the table")

        got = self.ours(ONE, using=[Other()], guidance_scale=1.0)
        assert torch.equal(got, self.ours(["a dog on the table"], guidance_scale=1.0))

    def test_bad_calls(self) -> None:
        with pytest.raises(ShowtellError, match="one step per image token"):
            self.bridge.generate("a", num_inference_steps=4)
        with pytest.raises(ShowtellError, match=r"height=|multiples of"):
            self.bridge.generate("a", height=21, width=16)
        with pytest.raises(ShowtellError, match="does not take steps"):
            self.bridge.generate("a", steps=3)
