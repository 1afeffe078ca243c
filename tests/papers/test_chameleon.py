"""Chameleon: the recipe equals the library's own model, what it makes the model blind to, the signs, every host."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from examples import run_example
from hosts import hosts
from laboratory import Laboratory

import small_unified
import test_bridges_chameleon
import test_bridges_emu3
import test_bridges_janus
from showtell.errors import ShowtellError
from showtell.measure.stability import signs_of_divergence as signs
from showtell.nets.norms import HeadNorm, NormedAfter
from showtell.papers.unify import chameleon as module
from showtell.papers.unify.chameleon import chameleon_loss, stabilise, z_loss


def decoder(name: str) -> Any:
    """A language model to change."""
    if name == "image_text_lm":
        return small_unified.model().model
    own = test_bridges_janus.bridge() if name == "janus" else test_bridges_emu3.bridge()
    return copy.deepcopy(own.decoder.language_model)


def states(model: Any, seed: int = 0) -> torch.Tensor:
    width = model.get_input_embeddings().embedding_dim
    told = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(inputs_embeds=told, use_cache=False).last_hidden_state


def test_it_is_the_library_s_own_chameleon() -> None:
    """A Llama with the recipe and Chameleon's weights, against ChameleonModel with its norms after the blocks."""
    config = copy.deepcopy(test_bridges_chameleon.bridge().model.config)
    config.swin_norm = True
    torch.manual_seed(0)
    theirs = transformers.ChameleonModel(config).eval()
    for name, parameter in theirs.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "rms_norm_eps", "rope_parameters", "max_position_embeddings")  # fmt: skip
    shared = {name: getattr(config, name) for name in names if hasattr(config, name)}
    ours = stabilise(transformers.LlamaModel(transformers.LlamaConfig(**shared))).eval()
    found = {}
    for key, value in theirs.state_dict().items():
        if key.startswith(("vqmodel", "rotary")):
            continue
        if ".q_norm." in key or ".k_norm." in key:
            key = key.replace("q_norm", "q_proj").replace("k_norm", "k_proj").replace("self_attn", "self_attn.block")
        elif ".q_proj." in key or ".k_proj." in key:
            key = key.replace("_proj.", "_proj.projection.").replace("self_attn", "self_attn.block")
        elif "self_attn" in key:
            key = key.replace("self_attn", "self_attn.block")
        elif ".input_layernorm." in key:
            key = key.replace("input_layernorm", "self_attn.norm")
        elif ".post_attention_layernorm." in key:
            key = key.replace("post_attention_layernorm", "mlp.norm")
        elif ".mlp." in key:
            key = key.replace(".mlp.", ".mlp.block.")
        found[key] = value
    ours.load_state_dict(found)
    assert torch.allclose(states(ours), states(theirs), atol=1e-5)


@pytest.mark.parametrize("name", hosts("chameleon", "janus", "emu3", "image_text_lm"))
def test_what_the_recipe_makes_it_blind_to(name: str) -> None:
    """Larger queries and larger outputs of a block change a plain model, and the stable one not at all."""
    plain, stable = decoder(name), stabilise(decoder(name))
    assert not torch.allclose(states(plain), states(stable), atol=1e-3)
    for model in (plain, stable):
        before = states(model)
        layer = model.layers[0]
        attention = getattr(layer.self_attn, "block", layer.self_attn)
        query = getattr(attention.q_proj, "projection", attention.q_proj)
        down = getattr(layer.mlp, "block", layer.mlp).down_proj
        for weight, factor in ((query.weight, 4.0), (down.weight, 50.0)):
            weight.data *= factor
            same = torch.allclose(states(model), before, atol=2e-2)
            assert same == (model is stable)
            before = states(model)


def test_each_part_alone() -> None:
    [queries, *_] = stabilise(decoder("image_text_lm"), reorder=False).layers
    assert isinstance(queries.self_attn.q_proj, HeadNorm) and not isinstance(queries.mlp, NormedAfter)
    [order, *_] = stabilise(decoder("image_text_lm"), queries=False).layers
    assert isinstance(order.mlp, NormedAfter) and not isinstance(order.self_attn.block.q_proj, HeadNorm)
    same = stabilise(decoder("image_text_lm"), queries=False, reorder=False)
    assert torch.equal(states(same), states(decoder("image_text_lm")))


def test_a_head_s_norm_by_hand() -> None:
    """Two heads of two numbers: each becomes -1 and 1, then its own scales and shifts."""
    projection = torch.nn.Linear(4, 4, bias=False)
    projection.weight.data = torch.eye(4)
    norm = HeadNorm(projection, 2)
    norm.weight.data, norm.bias.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    found = norm(torch.tensor([[0.0, 6.0, 5.0, 1.0]]))
    assert torch.allclose(found, torch.tensor([[-1.0, 2.0, 4.0, -3.0]]), atol=1e-4)


def test_signs() -> None:
    """The bound is above every logit that occurs, and reached where queries and keys are as long as can be."""
    model = decoder("image_text_lm")
    told = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    found = signs(model, told)
    logits: list[torch.Tensor] = []
    layer = model.layers[0]
    with torch.no_grad():
        x = layer.input_layernorm(told)
        q, k = (part(x).unflatten(-1, (-1, 64)) for part in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        logits.append(torch.einsum("nqhd,nkhd->nhqk", q, k).abs() / 8)
    assert found["logit"] >= float(logits[0].max())
    model.layers[0].self_attn.q_proj.weight.data *= 1000
    model.layers[1].self_attn.q_proj.weight.data *= 0
    assert signs(model, told)["logit"] == pytest.approx(1000 * _bound(decoder("image_text_lm"), told), rel=1e-3)
    stable = stabilise(decoder("image_text_lm"))
    assert signs(stable, told)["logit"] == pytest.approx(8.0, rel=1e-2), "normalised heads have the length 8"
    model = decoder("image_text_lm")
    for one in model.layers:
        one.self_attn.o_proj.weight.data *= 0
        one.mlp.down_proj.weight.data *= 0
    assert signs(model, told)["norm"] == pytest.approx(float(told.norm(dim=-1).mean()), rel=1e-4)


def _bound(model: Any, told: torch.Tensor) -> float:
    """Of the first layer alone."""
    layer = model.layers[0]
    with torch.no_grad():
        x = layer.input_layernorm(told)
        q, k = (part(x).norm(dim=-1).max() for part in (layer.self_attn.q_proj, layer.self_attn.k_proj))
    return float(q * k / 8)


def test_bad_calls() -> None:
    with pytest.raises(ShowtellError, match="normalised already"):
        stabilise(stabilise(decoder("image_text_lm"), reorder=False))
    with pytest.raises(ShowtellError, match="no layers like Llama's"):
        stabilise(torch.nn.Linear(2, 2))


def test_the_loss_by_hand() -> None:
    """A model that knows nothing: the logarithm of the vocabulary for words and image tokens alike, and its square."""
    logits = torch.tensor([[math.log(1.0), math.log(3.0)], [0.0, 0.0]])
    assert float(z_loss(logits)) == pytest.approx((math.log(4.0) ** 2 + math.log(2.0) ** 2) / 2)
    model, scenes = small_unified.model(), module.WORLD.scenes(4, 3, objects=1)
    torch.nn.init.zeros_(model.lm_head.weight)
    own = module.WORLD.pool(scenes, module.documents(scenes), 4)(0, 0)
    batch = {key: torch.as_tensor(value) for key, value in own.items()}
    size = math.log(model.config.vocab_size)
    assert float(chameleon_loss(model, batch, None, 0.0)[0]) == pytest.approx(size, rel=1e-4)
    assert float(chameleon_loss(model, batch, None, 0.1)[0]) == pytest.approx(size + 0.1 * size**2, rel=1e-4)


def test_documents() -> None:
    """Words and the picture's own tokens, which stand where it is read too; everything but the first is predicted."""
    own, scenes = module.WORLD, module.WORLD.scenes(2, 3, objects=1)
    (_, first, shown), (_, _, asked) = module.documents(scenes)
    codes, words = (own.codes(scenes) + len(own.tokenizer)).tolist(), own.tokenizer.convert_ids_to_tokens
    assert words(first) == ["<bos>"] and shown[-16:] == codes[0] and asked[1:17] == codes[1]
    assert words(asked[0]) == "<boi>" and words(asked[17]) == "<eoi>" and words(asked[-1]) == "<end>"
    texts = module.captions(scenes, 20)
    assert all(len(given) + len(reply) == 20 and max(reply) < len(own.tokenizer) for _, given, reply in texts)


def test_experiment_runs_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SCENES": 8, "STEPS": 1, "BATCH": 4, "TIMES": (1, 4)}.items():
        monkeypatch.setattr(module, name, value)
    lab: Any = Laboratory(seeds=1)
    logit, norm, saved, loss = module.experiment(lab)
    assert logit.control == "no query norm" and logit.trained and norm.scores["llama"].shape == (1, 2)  # type: ignore[attr-defined]
    assert np.allclose(logit.scores["chameleon"], np.log(8), atol=0.1), "heads of 64 numbers, not yet rescaled"  # type: ignore[attr-defined]
    assert saved.scores["words alone"].shape == (1, 1)  # type: ignore[attr-defined]
    assert (loss.scores["llama"] > 1).all(), "after one step nothing is known"  # type: ignore[attr-defined]


def test_what_diverges_counts_with_its_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that breaks with weights that are no numbers is as far as can be."""

    def breaks(model: Any, *args: Any, **more: Any) -> None:
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.fill_(torch.nan)
        raise ShowtellError("the loss is not finite")

    for name, value in {"SCENES": 8, "BATCH": 4, "TIMES": (1, 4)}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "fit", breaks)
    lab: Any = Laboratory(seeds=1)
    monkeypatch.setattr(lab, "compare", lambda arms, *more, **named: arms)
    logit, norm, *_ = module.experiment(lab)
    assert logit["llama"](0).tolist() == pytest.approx([np.log(module.FAR)] * 2)
    assert (norm["llama"](0) > 10).all()


def test_example(monkeypatch: pytest.MonkeyPatch) -> None:
    own = test_bridges_emu3.bridge()
    bridge = type(own)(copy.deepcopy(own.decoder.model), own.decoder.processor)
    found = run_example(module.EXAMPLE, monkeypatch, {"Emu3": bridge})
    assert found["before"]["logit"] > 0 and found["after"]["norm"] != found["before"]["norm"]
