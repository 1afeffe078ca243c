"""English: captions, noun phrases, and the phrases that the parser understands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from showtell.world.language.captions import Wording, order, stated
from showtell.world.language.lexicon import Lexicon
from showtell.world.language.templates import learn
from showtell.world.scene import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    LIGHTS,
    MOTIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    STATES,
    STYLES,
    TEXTURES,
    Motion,
    Scene,
)

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
ROTATIONS = {0: "upright", 90: "right-turned", 180: "upside-down", 270: "left-turned"}
MOTION_WORDS = {
    "grow": "growing", "shrink": "shrinking", "fade": "fading", "appear": "appearing", "bounce": "bouncing",
}  # fmt: skip
MOTION_PHRASES = {"translate": "moving {}", "rotate": "spinning {}", "recolour": "turning {}"}
PANNING = {c: c.replace("pan", "panning").replace("zoom", "zooming") for c in CAMERAS}
_LIGHT = {
    "even": "evenly",
    "left": "from the left",
    "right": "from the right",
    "above": "from above",
    "below": "from below",
}
_SIDES = {"left of": "to the left of", "right of": "to the right of"}

WORDING = Wording(
    relations={
        "": {kind: kind for kind in RELATIONS},
        "detailed": _SIDES,
        "paraphrase-1": {**_SIDES, "above": "over", "below": "under", "inside": "within",
                         "between": "in between"},
        "paraphrase-2": {"left of": "on the left of", "right of": "on the right of", "above": "on top of",
                         "below": "beneath", "inside": "in", "in front of": "before"},
        "paraphrase-3": {"left of": "on the left side of", "right of": "on the right side of",
                         "above": "higher than", "below": "lower than"},
        "paraphrase-4": {**_SIDES, "below": "underneath"},
    },
    templates={
        "terse": {"background": "; {}", "style": "; {}", "light": "; lit {}", "word": "; word {}",
                  "camera": "; {}"},
        "plain": {"background": " on a {} background", "style": ", in {} style", "light": ", lit {}",
                  "word": ", with the word {}", "camera": ", camera {}"},
        "detailed": {"background": ", on a {} background", "style": ", in {} style", "light": ", lit {}",
                     "word": ", with the word {}", "no word": ", with no word",
                     "camera": ", with the camera {}"},
        "paraphrase-1": {"background": ". the background is {}", "style": ". the style is {}",
                         "light": ". light comes {}", "word": ". the word says {}",
                         "camera": ". the camera is {}"},
        "paraphrase-2": {"background": " against a {} background", "style": ", {} style",
                         "light": ", light {}",
                         "word": ", saying {}", "camera": ", {}"},
        "paraphrase-3": {"background": ", with a {} background", "style": ", drawn in {} style",
                         "light": ", lit {}",
                         "word": ", labelled {}", "camera": ", camera {}"},
        "paraphrase-4": {"background": ", {} background", "style": ", {} style", "light": ", light {}",
                         "word": ", word {}", "camera": ", camera {}"},
    },
    names={
        "background": {b: b for b in BACKGROUNDS}, "style": {s: s for s in STYLES}, "light": _LIGHT,
        "light terse": {light: light for light in LIGHTS}, "camera": PANNING,
        "camera terse": {camera: camera for camera in CAMERAS},
    },
    which=(", which is", ", which are"),
    join=" and",
)  # fmt: skip


QUESTIONS = {  # kind -> what is asked; the first that fits a question is meant
    "background": ("what is the background?",), "style": ("what is the style?",),
    "word": ("what is the word?",),
    "light": ("where does the light come from?",), "camera": ("what does the camera do?",),
    "existence": ("is there {}?",), "count": ("how many {} are there?",), "colour": ("what colour is {}?",),
    "shape": ("what shape is {}?",), "size": ("what size is {}?",),
    "texture": ("what texture does {} have?",),
    "state": ("what state is {} in?",), "motion": ("what is {} doing?",), "relation": ("what is {}?",),
    "related": ("is {}?",),
}  # fmt: skip
ANSWERS = {"yes": "yes", "no": "no", "": "none", "even": "everywhere"}
INSTRUCTIONS = {  # what is done -> how it is said, usual form first
    "background": ("change the background to {}",), "count": ("change the number of {} to {}",),
    "restyle": ("turn it into {}", "make it {}"), "replace": ("replace {} with {}",),
    "change": ("make {}", "turn {}", "paint {}"), "move": ("move {}",), "add": ("add {}",),
    "remove": ("remove {}", "delete {}"),
}  # fmt: skip
PLACES = {
    "top left": "to the top left", "top": "to the top", "top right": "to the top right",
    "left": "to the left",
    "centre": "to the centre", "right": "to the right", "bottom left": "to the bottom left",
    "bottom": "to the bottom", "bottom right": "to the bottom right",
}  # fmt: skip


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def noun(said: Mapping[str, Any], count: int = 1) -> str:
    """Adjectives and noun for some attributes: "large blue star", "circles moving left", "blue thing"."""
    motion = said.get("motion")
    words = [said.get("size"), MOTION_WORDS.get(motion.kind) if motion else None, said.get("state")]
    words += [
        ROTATIONS[said["rotation"]] if "rotation" in said else None,
        said.get("texture"),
        said.get("colour"),
    ]
    shape = said.get("shape", "thing")
    words.append(shape if count == 1 else plural(shape))
    if motion and motion.to:
        words.append(MOTION_PHRASES[motion.kind].format(motion.to))
    return " ".join(filter(None, words))


def value(name: str, what: Any, shape: str = "thing", count: int = 1) -> str:
    """One attribute's value on its own, as an answer or an instruction says it: "red", "moving left"."""
    if name == "motion":
        return MOTION_WORDS.get(what.kind) or MOTION_PHRASES[what.kind].format(what.to)
    return ROTATIONS[what] if name == "rotation" else str(what)


def a(said: Mapping[str, Any]) -> str:
    return indefinite(noun(said))


ARTICLES = ("a", "an", "the")


def article(words: str) -> str:
    """ "a" or "an", by the first letter of the words that follow."""
    return "an" if words[:1].lower() in {*"aeiou"} else "a"


def indefinite(words: str) -> str:
    """Words with their article: "an orange ring"."""
    return f"{article(words)} {words}"


def without_article(words: str) -> str:
    """Words without an article before them: "orange ring" of "an orange ring"; a lone article stays."""
    first, _, rest = words.partition(" ")
    return rest if rest and first.lower() in ARTICLES else words


def the(said: Mapping[str, Any], count: int = 1) -> str:
    return f"the {noun(said, count)}"


def number(count: int, said: Mapping[str, Any]) -> str:
    """ "a red ring", "three red rings"."""
    return a(said) if count == 1 else f"{NUMBERS[count]} {noun(said, count)}"


def styled(name: str) -> str:
    return f"{name} style"


def located(kind: str, other: str, style: str = "") -> str:
    """Where something is: "left of the blue star"."""
    return f"{WORDING.relation(kind, style)} {other}"


def standing(thing: str, kind: str, other: str) -> str:
    """A thing and where it is: "the red ring left of the blue star"."""
    return f"{thing} {kind} {other}"


def caption(scene: Scene, style: str) -> str:
    """The caption in one of the styles of `showtell.world.language`."""
    groups, kinds = order(scene, style)
    said = [stated(g[0], style == "detailed") for g in groups]
    bare = style == "terse"
    things = [noun(s) if bare and len(g) == 1 else number(len(g), s) for g, s in zip(groups, said, strict=True)]
    objects, extras = WORDING.chain(things, groups, kinds, style), WORDING.extras(scene, style)
    if style == "paraphrase-1":
        return f"there {'is' if len(groups[0]) == 1 else 'are'} {objects}{extras}"
    if style == "paraphrase-3":
        return f"a picture of {objects}{extras}"
    if style == "paraphrase-4" and extras:
        return f"{extras[2:]}: {objects}"
    return objects + extras


_SYNONYMS = {  # of shapes, sizes, textures, states and rotations
    "circle": "disc|disk|circular", "diamond": "rhombus", "cross": "plus", "crescent": "moon",
    "drop": "teardrop",
    "ring": "donut", "oval": "ellipse", "flower": "blossom", "triangle": "triangular",
    "small": "little|tiny", "medium": "medium-sized|medium sized", "large": "big|huge",
    "solid": "plain|filled", "striped": "stripy", "dotted": "spotted", "checked": "checkered|chequered",
    "whole": "intact", "halved": "half", "cracked": "broken",
    "right-turned": "turned right|turned to the right|turned clockwise",
    "upside-down": "upside down|inverted",
    "left-turned": "turned left|turned to the left|turned anticlockwise",
}  # fmt: skip


def _lexicon() -> Lexicon:
    lexicon = Lexicon("en", {
        "gray": "grey", "color": "colour", "colored": "coloured", "watercolor": "watercolour",
        "labeled": "labelled",
        "an": "a", "counterclockwise": "anticlockwise", "center": "centre",
    })  # fmt: skip
    add = lexicon.add
    _add_attributes(lexicon)
    _add_scene(lexicon)
    for count, name in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine"), 1):
        add("count", count, name)
    add("article", 1, "a|another")
    add("the", None, "the")
    for side in ("left", "right"):
        where = f"to the {side} of|on the {side} of|at the {side} of|on the {side} side of"
        add("relation", f"{side} of", f"{side} of|{where}|to {side} of|on {side} of|{side} from")
    add("relation", "above", "above|over|on top of|higher than|atop")
    add("relation", "below", "below|under|underneath|beneath|lower than")
    add("relation", "inside", "inside|inside of|within|in")
    add("relation", "in front of", "in front of|before")
    add("relation", "behind", "behind|in back of")
    add("relation", "between", "between|in between")
    add("and", None, "and|&|+|plus a|with a|as well as")
    add("skip", None, "which is|which are|that is|that are|is|are|there is|there are|a scene with|a scene of")
    for picture in ("picture", "image", "drawing", "photo", "painting"):
        add("skip", None, f"{picture} of|a {picture} of|an {picture} of")
    for place, name in PLACES.items():
        add("place", place, f"{name}|{name} corner|{name} side" if place not in ("top", "centre") else name)
    add("place", "centre", "to the middle")
    learn(lexicon, *QUESTIONS.values(), *INSTRUCTIONS.values(), ANSWERS.values())
    return lexicon


def _add_attributes(lexicon: Lexicon) -> None:
    def add(kind: str, value: Any, name: str) -> None:
        lexicon.add(kind, value, f"{name}|{_SYNONYMS[name]}" if name in _SYNONYMS else name)

    for shape in SHAPES:
        for name in (shape, *_SYNONYMS.get(shape, shape).split("|")):
            lexicon.add("shape", shape, f"{name}|{name} shape|{name} shaped|{name} shaped thing")
            if not name.endswith("ular"):  # circular
                lexicon.add("shapes", shape, plural(name))
    lexicon.add("thing", None, "thing|object")
    lexicon.add("things", None, "things|objects")
    for colour in COLOURS:
        lexicon.add("colour", colour, f"{colour}|{colour} coloured|{colour} colour")
        lexicon.add("motion", Motion("recolour", colour), f"turning {colour}|becoming {colour}")
    for kind, values in (("size", SIZES), ("texture", TEXTURES), ("state", STATES)):
        for value in values:
            add(kind, value, value)
    for degrees, name in ROTATIONS.items():
        add("rotation", degrees, name)
    for kind, name in MOTION_WORDS.items():
        add("motion", Motion(kind), name)
    for to in MOTIONS["translate"]:
        lexicon.add("motion", Motion("translate", to), f"moving {to}|moving to the {to}|going {to}|moving {to}wards")
    for to in MOTIONS["rotate"]:
        lexicon.add("motion", Motion("rotate", to), f"spinning {to}|rotating {to}|turning {to}")


def _add_scene(lexicon: Lexicon) -> None:
    add = lexicon.add
    for b in BACKGROUNDS:
        add(
            "background",
            b,
            f"{b} background|on a {b} background|on {b} background|against a {b} background|; {b}",
        )
        add(
            "background",
            b,
            f"with a {b} background|the background is {b}|the background is a {b}|background {b}",
        )
        add("background", b, f"on a background of {b}|on the {b}|on a {b} backdrop")
        if b not in COLOURS:
            add("background", b, f"{b}|on {b}|on a {b}|against the {b}|in the {b}|at {b}")
    for s in STYLES:
        add(
            "style",
            s,
            f"{s}|{s} style|in {s} style|in the {s} style|in a {s} style|in {s}|the style is {s}|as {s}",
        )
        add(
            "style",
            s,
            f"drawn in {s}|drawn in the {s} style|drawn in {s} style|painted in {s}|style {s}|as a {s}",
        )
    for light, where in _LIGHT.items():
        add("light", light, f"lit {light}|lit {where}|light {where}|light comes {where}|{light} light")
        add("light", light, f"in {light} light|the light comes {where}|with light {where}")
    for camera, ing in PANNING.items():
        add("camera", camera, f"{ing}|camera {ing}|the camera {ing}|the camera is {ing}|with the camera {ing}")
        add(
            "camera",
            camera,
            f"{camera}|camera {camera}|{camera} camera|with a {camera} camera|a {camera} camera",
        )
    add(
        "write",
        None,
        "word|the word|a word|with the word|with a word|with word|with the text|the text|text|saying",
    )
    add("write", None, "that says|says|the word says|it says|labelled|reading")
    add("word", "", "with no word|no word|without a word|without word")


LEXICON = _lexicon()
