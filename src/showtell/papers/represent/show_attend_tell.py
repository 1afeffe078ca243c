"""Show, Attend and Tell: Neural Image Caption Generation with Visual Attention.
Xu, Ba, Kiros, Cho, Courville, Salakhutdinov, Zemel, Bengio, 2015, arXiv 1502.03044

An LSTM writes a caption word by word and looks, before each word, at the places of a feature map that matter for it:
at all of them, weighed ("soft"), or at one, drawn ("hard"). Where it looked explains why it said what it said.

Faithful: the attention, gate and deep output of section 3.1, the first state from the mean of all places, the doubly
stochastic term, the bound's gradient for "hard" with a moving baseline, an entropy term and the mean instead of a draw
half of the time, beam search, maps enlarged and smoothed. Any encoder with a grid of features will do.
Ours: one draw a caption; weights of the terms of "hard"; no dropout or early stopping, as no picture is seen twice.
Scaled down: two things and how they lie, 8x8 places of the judge's frozen convolutions in the place of VGG's 14x14;
what is measured are captions and maps, which the judge never reads. A caption of nine words cannot cover 64 places:
at the paper's weight of 1 the doubly stochastic term keeps attention off the things named (validation), so the arm
"soft" has 0.01, and 1 and 0 are shown beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell.data.signal import signal
from showtell.errors import ShowtellError
from showtell.measure.captions import caption_f1
from showtell.measure.experiment import Comparison, Lab
from showtell.measure.judge import load_judge
from showtell.measure.prompts import PLAIN, SIDES
from showtell.steer.maps import smoothed
from showtell.train.batches import Batch, Pool
from showtell.train.policy import answer, tokens, word_tokenizer
from showtell.train.trainer import fit
from showtell.world import Scene, draw, sample
from showtell.world.draw import masks

EXAMPLE = """
import showtell
from showtell.measure.heatmaps import word_sheet
from showtell.papers.represent.show_attend_tell import Teller, place_features

bridge = showtell.load("openai/clip-vit-base-patch32")
[image] = showtell.load("stable-diffusion-v1-5/stable-diffusion-v1-5").generate("a red ring", seed=0)
teller = Teller(lambda images: place_features(bridge, images), ["a red ring", "a blue star"])
teller.learn([image] * 2, ["a red ring", "a blue star"], steps=2, batch_size=2)
[caption] = teller.tell([image], beams=3)
[maps] = teller.maps([image], [caption], size=64)                 # a map for every word, and for the end
sheet = word_sheet(image, list(zip(caption.split(), maps)))
"""

HOW = ("soft", "hard", "mean")


def place_features(bridge: Any, images: Any) -> Tensor:
    """A feature per place, (n, places, d), from the vision tower of a CLIP, SigLIP, LLaVA or BLIP-2 bridge.

    Raises ShowtellError for a bridge without such a tower.
    """
    model = bridge.model
    inner = getattr(model, "model", model)
    tower = getattr(inner, "vision_tower", None) or getattr(inner, "vision_model", None)
    if tower is None:
        raise ShowtellError(f"{bridge.name} has no vision tower over one grid; take CLIP, SigLIP, LLaVA or BLIP-2.")
    pixels = bridge.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = tower(pixel_values=pixels.to(model.device, model.dtype)).last_hidden_state.float()
    places = int(found.shape[1] ** 0.5) ** 2
    return found[:, found.shape[1] - places :]  # without the class token, where there is one


class Captioner(nn.Module):
    """The LSTM with attention over places (n, places, channels). how: one of `HOW`; "mean" looks at all alike."""

    def __init__(self, channels: int, words: int, how: str = "soft", width: int = 128, inner: int = 64) -> None:
        super().__init__()
        if how not in HOW:
            raise ShowtellError(f"how={how!r}: use one of {', '.join(HOW)}.")
        self.how = how
        self.embed = nn.Embedding(words, width)
        self.first = nn.ModuleList([nn.Sequential(nn.Linear(channels, width), nn.Tanh()) for _ in range(2)])
        self.of_place, self.of_state = nn.Linear(channels, inner), nn.Linear(width, inner, bias=False)
        self.score, self.gate = nn.Linear(inner, 1, bias=False), nn.Linear(width, 1)
        self.cell = nn.LSTMCell(width + channels, width)
        self.from_state, self.from_seen = nn.Linear(width, width), nn.Linear(channels, width, bias=False)
        self.out = nn.Linear(width, words)
        self.baseline: Tensor
        self.register_buffer("baseline", torch.zeros(()))

    def start(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """(hidden state, memory), (n, width) each."""
        mean = places.mean(dim=1)
        return self.first[0](mean), self.first[1](mean)

    def attention(self, places: Tensor, hidden: Tensor) -> Tensor:
        """How much each place matters now, (n, places), summing to one."""
        if self.how == "mean":
            return places.new_full(places.shape[:2], 1 / places.shape[1])
        return self.score(torch.tanh(self.of_place(places) + self.of_state(hidden)[:, None]))[..., 0].softmax(dim=-1)

    def step(
        self, places: Tensor, word: Tensor, state: tuple[Tensor, Tensor], weights: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(logits (n, words) of the next word, the state after) of a word (n,) and where it looks, (n, places)."""
        seen = self.gate(state[0]).sigmoid() * (weights[:, None] @ places)[:, 0]
        told = self.embed(word)
        state = self.cell(torch.cat([told, seen], dim=-1), state)
        return self.out(told + self.from_state(state[0]) + self.from_seen(seen)), state

    def forward(
        self, places: Tensor, ids: Tensor, pick: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (n, length - 1, words) of what follows each of ids (n, length); attention (n, length - 1, places).

        pick: attention -> where to look instead, per word; "hard" otherwise takes the likeliest place.
        """
        state, logits, looked = self.start(places), [], []
        for word in ids[:, :-1].T:
            weights = self.attention(places, state[0])
            looked.append(weights)
            made, state = self.step(places, word, state, pick(weights) if pick else self.look(weights))
            logits.append(made)
        return torch.stack(logits, dim=1), torch.stack(looked, dim=1)

    def look(self, weights: Tensor) -> Tensor:
        return F.one_hot(weights.argmax(dim=-1), weights.shape[-1]).float() if self.how == "hard" else weights


def coverage(weights: Tensor, said: Tensor) -> Tensor:
    """The doubly stochastic term, (n,): over a caption every place should be looked at once in all (equation 14).

    weights (n, length, places); said (n, length): True where a word is.
    """
    return (1 - (weights * said[..., None]).sum(dim=1)).square().sum(dim=-1)


def captioning_loss(
    model: Captioner, batch: Batch, generator: torch.Generator | None, regularity: float = 1.0, reward: float = 0.05,
    entropy: float = 0.01,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Minus the log-likelihood of captions; for "hard" with the gradient of equation 11. batch: places, ids, said.

    regularity: weight of `coverage`. reward, entropy: lambda_r and lambda_e of equation 11.
    """
    places, ids, said = batch["places"], batch["ids"], batch["said"]
    drawn: list[Tensor] = []
    mean = torch.rand(len(ids), 1, generator=generator, device=ids.device) < 0.5

    def pick(weights: Tensor) -> Tensor:
        drawn.append(torch.multinomial(weights.detach(), 1, generator=generator))
        one = F.one_hot(drawn[-1][:, 0], weights.shape[-1]).to(weights)
        return torch.where(mean, weights, one)

    logits, looked = model(places, ids, pick if model.how == "hard" else None)
    each = -F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(said.shape)
    likelihood = (each * said).sum(dim=1)
    loss = -likelihood.mean()
    if model.how == "hard":
        chances = looked.gather(2, torch.stack(drawn, dim=1))[..., 0].clamp(min=1e-9).log()
        path = (chances * said * ~mean).sum(dim=1)
        spread = (torch.special.entr(looked).sum(dim=-1) * said).sum(dim=1)
        advantage = likelihood.detach() - model.baseline
        loss = loss - (reward * advantage * path + entropy * spread).mean()
        if model.training:
            model.baseline.mul_(0.9).add_(0.1 * likelihood.detach().mean())
    elif model.how == "soft":
        loss = loss + regularity * coverage(looked, said).mean()
    return loss, {"nll": -likelihood.detach().mean()}


class Teller:
    """Captions with maps. annotate: images -> (n, places, d) of a square grid. texts: whose words it may say."""

    def __init__(
        self, annotate: Callable[[Any], Tensor], texts: Sequence[str], how: str = "soft", seed: int = 0, **sizes: int
    ) -> None:  # fmt: skip
        self.annotate, self.tokenizer = annotate, word_tokenizer(texts)
        self.how, self.seed, self.sizes = how, seed, sizes
        self.model: Captioner | None = None

    def made(self, channels: int) -> Captioner:
        """The network, made on first use."""
        if self.model is None:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                self.model = Captioner(channels, len(self.tokenizer), self.how, **self.sizes)
        return self.model

    def ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids (n, length) between two ends, said (n, length - 1): True up to the last end)."""
        end = self.tokenizer.eos_token_id
        rows = [torch.tensor([end, *tokens(self.tokenizer, text), end]) for text in texts]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=end)
        lengths = torch.tensor([len(row) - 1 for row in rows])
        return ids, torch.arange(ids.shape[1] - 1) < lengths[:, None]

    def learn(
        self, images: Any, texts: Sequence[str], steps: int, batch_size: int = 32, lr: float = 4e-3,
        loss: Any = captioning_loss, **more: Any,
    ) -> None:  # fmt: skip
        """Trains it on captions. loss: `captioning_loss`, perhaps with other weights. more: as for `train.fit`."""
        places = images if isinstance(images, Tensor) else self.annotate(images)
        ids, said = self.ids(texts)
        pool = Pool({"places": places.numpy(), "ids": ids.numpy(), "said": said.numpy()}, batch_size)
        call = {"ema": None, "precision": "no", "progress": False, "seed": self.seed, **more}
        fit(self.made(places.shape[-1]), loss, pool, steps=steps, lr=lr, **call)

    @torch.no_grad()
    def tell(self, images: Any, beams: int = 1, longest: int = 48) -> list[str]:
        """Captions by beam search; of finished beams the one with the highest likelihood per word."""
        return [self._best(row, beams, longest) for row in self.annotate(images)]

    def _best(self, row: Tensor, beams: int, longest: int) -> str:
        model, end = self.made(row.shape[-1]).eval(), self.tokenizer.eos_token_id
        ids, total = torch.full((1, 1), end), torch.zeros(1)
        state, finished = model.start(row[None]), []
        for length in range(1, longest + 1):
            places = row.expand(len(ids), -1, -1)
            weights = model.look(model.attention(places, state[0]))
            logits, state = model.step(places, ids[:, -1], state, weights)
            totals, picks = (total[:, None] + logits.log_softmax(dim=-1)).flatten().topk(beams)
            parent, word = picks // logits.shape[1], picks % logits.shape[1]
            ids = torch.cat([ids[parent], word[:, None]], dim=1)
            over = (word == end) | (length == longest)
            finished += [(float(t) / length, one[1:]) for t, one in zip(totals[over], ids[over], strict=True)]
            if len(finished) >= beams:
                break
            ids, total, state = ids[~over], totals[~over], (state[0][parent][~over], state[1][parent][~over])
        return answer(self.tokenizer, max(finished, key=lambda one: one[0])[1])

    @torch.no_grad()
    def looked(self, images: Any, texts: Sequence[str]) -> list[Tensor]:
        """Where it looks for each word of these captions and for the end: (words + 1, side, side), summing to one."""
        places, (ids, said) = self.annotate(images), self.ids(texts)
        side = int(places.shape[1] ** 0.5)
        _, found = self.made(places.shape[-1]).eval()(places, ids)
        return [one[here].view(-1, side, side) for one, here in zip(found, said, strict=True)]

    def maps(self, images: Any, texts: Sequence[str], size: int = 64) -> list[Tensor]:
        """The same as pictures, (words + 1, size, size): enlarged and smoothed by a Gaussian (section 5.4)."""
        found = []
        for one in self.looked(images, texts):
            large = F.interpolate(one[None], size=(size, size), mode="bilinear", align_corners=False)
            found.append(smoothed(large, sigma=size / 2 / one.shape[-1], size=size // one.shape[-1] // 2 * 2 + 1)[0])
        return found


SCENES, STEPS, REGULARITY = 4000, 500, 0.01


def experiment(lab: Lab) -> list[Comparison]:
    @torch.no_grad()
    def annotate(scenes: Sequence[Scene]) -> Tensor:
        """Of the judge's last convolution, 8x8 places."""
        parts = [load_judge().model.trunk(signal(list(draw(scenes[i : i + 100])))) for i in range(0, len(scenes), 100)]
        return F.avg_pool2d(torch.cat(parts), 2).flatten(2).mT.contiguous()

    @cache
    def seen() -> tuple[Tensor, list[str]]:
        scenes = sample(SCENES, 0, "train", objects=2, distinct=("shape", "colour"), relation=SIDES, **PLAIN)
        return annotate(scenes), [scene.canonical().caption() for scene in scenes]

    @cache
    def teller(how: str, regularity: float, seed: int) -> Teller:
        made = Teller(annotate, seen()[1], how, seed)

        def make(seed: int) -> Any:
            made.learn(*seen(), STEPS, loss=partial(captioning_loss, regularity=regularity))
            return made.model

        state = lab.trained(f"{how} {regularity}", make, seed, shared=True)
        made.made(seen()[0].shape[-1]).load_state_dict(state)
        return made

    def blind(seed: int) -> Teller:
        """The one with soft attention, made to look at all places alike."""
        full = teller("soft", REGULARITY, seed)
        made = Teller(annotate, seen()[1], "mean")
        made.made(seen()[0].shape[-1]).load_state_dict(full.made(0).state_dict())
        return made

    pairs = lab.prompts("pairs").scenes

    def told(arm: Callable[[int], Teller], seed: int) -> np.ndarray:
        return caption_f1(arm(seed).tell(pairs), pairs)

    def pointed(arm: Callable[[int], Teller], seed: int) -> np.ndarray:
        """Attention for the nouns of two things within their masks, the mean of both."""
        made, texts = arm(seed), [scene.canonical().caption() for scene in pairs]
        return np.array(
            [_inside(made, m, s, t) for m, s, t in zip(made.looked(pairs, texts), pairs, texts, strict=True)]
        )

    def area(seed: int) -> np.ndarray:
        return np.array([masks(scene).mean() for scene in pairs])

    arms: dict[str, Callable[[int], Teller]] = {
        "soft": partial(teller, "soft", REGULARITY),
        "hard": partial(teller, "hard", 0.0),
        "mean": partial(teller, "mean", 0.0),
        "even at test": blind,
        "no coverage": partial(teller, "soft", 0.0),
        "coverage of 1": partial(teller, "soft", 1.0),
    }
    points: dict[str, Callable[[int], np.ndarray]] = {"soft": partial(pointed, arms["soft"]), "area": area}
    points |= {name: partial(pointed, arms[name]) for name in ("hard", "even at test", "coverage of 1")}
    return [
        lab.compare(
            {name: partial(told, arm) for name, arm in arms.items()},
            expect="soft > mean, hard > mean", control="even at test", name="caption F1",
        ),
        lab.compare(points, expect="soft >= 3 * area", control="even at test", name="pointing"),
    ]  # fmt: skip


def _inside(teller: Teller, maps: Tensor, scene: Scene, text: str) -> float:
    """Mean over the objects of the attention for their noun that lies within their mask."""
    found = []
    for thing, mask in zip(scene.objects, masks(scene), strict=True):
        share = F.adaptive_avg_pool2d(torch.from_numpy(np.asarray(mask, np.float32))[None], maps.shape[-1])[0]
        before = text[: text.index(thing.shape)]
        found.append(float((maps[len(tokens(teller.tokenizer, before))] * share).sum()))
    return float(np.mean(found))
