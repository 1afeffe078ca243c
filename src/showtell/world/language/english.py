"""English: captions, and the phrases that the parser understands."""

from __future__ import annotations

from typing import Any

from showtell.world.language.lexicon import Lexicon, backwards, links
from showtell.world.scene import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    LIGHTS,
    MOTIONS,
    SHAPES,
    STYLES,
    TURNABLE,
    Group,
    Motion,
    Scene,
    SceneObject,
)  # fmt: skip

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
ROTATIONS = {0: "upright", 90: "right-turned", 180: "upside-down", 270: "left-turned"}
MOTION_WORDS = {
    "grow": "growing",
    "shrink": "shrinking",
    "fade": "fading",
    "appear": "appearing",
    "bounce": "bouncing",
}
MOTION_PHRASES = {"translate": "moving {}", "rotate": "spinning {}", "recolour": "turning {}"}
RELATIONS = {
    "terse": {},
    "detailed": {"left of": "to the left of", "right of": "to the right of"},
    "paraphrase-1": {"left of": "to the left of", "right of": "to the right of", "above": "over", "below": "under",
                     "inside": "within", "between": "in between"},
    "paraphrase-2": {"left of": "on the left of", "right of": "on the right of", "above": "on top of",
                     "below": "beneath", "inside": "in", "in front of": "before"},
    "paraphrase-3": {"left of": "on the left side of", "right of": "on the right side of", "above": "higher than",
                     "below": "lower than"},
    "paraphrase-4": {"left of": "to the left of", "right of": "to the right of", "below": "underneath"},
}  # fmt: skip
_LIGHT = {"left": "from the left", "right": "from the right", "above": "from above", "below": "from below"}
_EXTRAS: dict[str, dict[str, str]] = {  # "none": what the detailed style says of a scene without a word
    "terse": {"background": "; {}", "style": "; {}", "light": "; lit {}", "word": "; word {}", "camera": "; {}"},
    "plain": {"background": " on a {} background", "style": ", in {} style", "light": ", lit {}",
              "word": ", with the word {}", "camera": ", camera {}"},
    "detailed": {"background": ", on a {} background", "style": ", in {} style", "light": ", lit {}",
                 "word": ", with the word {}", "none": ", with no word", "camera": ", with the camera {}"},
    "paraphrase-1": {"background": ". the background is {}", "style": ". the style is {}", "light": ". light comes {}",
                     "word": ". the word says {}", "camera": ". the camera is {}"},
    "paraphrase-2": {"background": " against a {} background", "style": ", {} style", "light": ", light {}",
                     "word": ", saying {}", "camera": ", {}"},
    "paraphrase-3": {"background": ", with a {} background", "style": ", drawn in {}", "light": ", lit {}",
                     "word": ", labelled {}", "camera": ", camera {}"},
    "paraphrase-4": {"background": ", {} background", "style": ", {} style", "light": ", light {}", "word": ", word {}",
                     "camera": ", camera {}"},
}  # fmt: skip
PANNING = {c: c.replace("pan", "panning").replace("zoom", "zooming") for c in CAMERAS}


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def described(thing: SceneObject, detailed: bool = False, count: int = 1) -> str:
    """Adjectives and noun, without article or number: "large striped blue star", "red circles moving left"."""
    said = []
    if detailed or thing.size != "medium":
        said.append(thing.size)
    if thing.motion and thing.motion.kind in MOTION_WORDS:
        said.append(MOTION_WORDS[thing.motion.kind])
    if detailed or thing.state != "whole":
        said.append(thing.state)
    if thing.rotation or (detailed and thing.shape in TURNABLE):
        said.append(ROTATIONS[thing.rotation])
    if detailed or thing.texture != "solid":
        said.append(thing.texture)
    said += [thing.colour, thing.shape if count == 1 else plural(thing.shape)]
    if thing.motion and thing.motion.kind in MOTION_PHRASES:
        said.append(MOTION_PHRASES[thing.motion.kind].format(thing.motion.to))
    return " ".join(said)


def _noun_phrase(group: Group, style: str) -> str:
    said = described(group[0], style == "detailed", len(group))
    if len(group) > 1:
        return f"{NUMBERS[len(group)]} {said}"
    return said if style == "terse" else article(said)


def _objects(groups: tuple[Group, ...] | list[Group], kinds: list[str], style: str) -> str:
    text, chained = _noun_phrase(groups[0], style), False
    for i, kind in enumerate(kinds):
        after = _noun_phrase(groups[i + 1], style)
        listed = not kind and i + 1 < len(kinds) and not kinds[i + 1] and style != "terse"
        if kind in ("", "and"):
            text += f"{',' if listed else ' and'} {after}"
            chained = False
            continue
        phrase = RELATIONS.get(style, {}).get(kind, kind)
        motion = groups[i][0].motion
        moving = motion is not None and motion.kind in MOTION_PHRASES
        if (chained or moving) and style != "terse":
            text += ", which is" if len(groups[i]) == 1 else ", which are"
        text += f" {phrase} {after}"
        chained = True
    return text


def _extras(scene: Scene, style: str) -> str:
    words, full = _EXTRAS[style], style == "detailed"
    text = ""
    if full or scene.background != "white":
        text += words["background"].format(scene.background)
    if full or scene.style != "flat":
        text += words["style"].format(scene.style)
    if scene.light != "even":
        text += words["light"].format(scene.light if style == "terse" else _LIGHT[scene.light])
    elif full:
        text += ", in even light"
    if scene.word:
        text += words["word"].format(scene.word)
    elif full:
        text += words["none"]
    if full or scene.camera != "still":
        text += words["camera"].format(scene.camera if style == "terse" else PANNING[scene.camera])
    return text


def caption(scene: Scene, style: str) -> str:
    """The caption in one of the styles of `showtell.world.language`."""
    turned = backwards(scene) if style == "paraphrase-2" else None
    groups, kinds = turned or (scene.groups, links(scene.groups, scene.relations))
    objects, extras = _objects(groups, kinds, style), _extras(scene, style)
    if style == "paraphrase-1":
        return f"there {'is' if len(groups[0]) == 1 else 'are'} {objects}{extras}"
    if style == "paraphrase-3":
        return f"a picture of {objects}{extras}"
    if style == "paraphrase-4" and extras:
        return f"{extras[2:]}: {objects}"
    return objects + extras


def _motions() -> list[tuple[Motion, list[str]]]:
    known: list[tuple[Motion, list[str]]] = [(Motion(kind), [word]) for kind, word in MOTION_WORDS.items()]
    for to in MOTIONS["translate"]:
        known.append(
            (
                Motion("translate", to),
                [f"moving {to}", f"moving to the {to}", f"going {to}", f"moving {to}wards"],
            )
        )
    for to in MOTIONS["rotate"]:
        known.append((Motion("rotate", to), [f"spinning {to}", f"rotating {to}", f"turning {to}"]))
    for to in MOTIONS["recolour"]:
        known.append((Motion("recolour", to), [f"turning {to}", f"becoming {to}"]))
    return known


def _lexicon() -> Lexicon:
    lexicon = Lexicon("en", {
        "gray": "grey", "color": "colour", "colors": "colours", "colored": "coloured", "watercolor": "watercolour",
        "labeled": "labelled", "an": "a", "counterclockwise": "anticlockwise", "center": "centre",
    })  # fmt: skip
    add = lexicon.add
    more: dict[str, list[str]] = {
        "circle": ["disc", "disk", "circular"], "diamond": ["rhombus"], "cross": ["plus"], "crescent": ["moon"],
        "drop": ["teardrop"], "ring": ["donut"], "oval": ["ellipse"], "flower": ["blossom"], "triangle": ["triangular"],
    }  # fmt: skip
    for shape in SHAPES:
        for name in (shape, *more.get(shape, ())):
            add("shape", shape, name, f"{name} shape", f"{name} shaped", f"{name} shaped thing")
            add("shapes", shape, plural(name))
    for colour in COLOURS:
        add("colour", colour, colour, f"{colour} coloured", f"{colour} colour")
    for size, names in {
        "small": "small little tiny",
        "medium": "medium medium-sized",
        "large": "large big huge",
    }.items():
        add("size", size, *names.split())
    for texture, names in {
        "solid": "solid plain filled", "striped": "striped stripy", "dotted": "dotted spotted",
        "checked": "checked checkered chequered",
    }.items():  # fmt: skip
        add("texture", texture, *names.split())
    for state, names in {
        "whole": "whole intact",
        "halved": "halved half",
        "cracked": "cracked broken",
    }.items():
        add("state", state, *names.split())
    add("rotation", 0, "upright")
    add("rotation", 90, "right-turned", "turned right", "turned to the right", "turned clockwise")
    add("rotation", 180, "upside-down", "upside down", "inverted")
    add("rotation", 270, "left-turned", "turned left", "turned to the left", "turned anticlockwise")
    for motion, phrases in _motions():
        add("motion", motion, *phrases)
    for number, name in enumerate("one two three four five six seven eight nine ten".split(), 1):
        add("count", number, name)
    add("article", 1, "a", "another")
    add("the", None, "the")
    for side in ("left", "right"):
        add("relation", f"{side} of", f"{side} of", f"to the {side} of", f"on the {side} of", f"at the {side} of",
            f"on the {side} side of", f"to {side} of", f"on {side} of", f"{side} from")  # fmt: skip
    add("relation", "above", "above", "over", "on top of", "higher than", "atop")
    add("relation", "below", "below", "under", "underneath", "beneath", "lower than")
    add("relation", "inside", "inside", "inside of", "within", "in")
    add("relation", "in front of", "in front of", "before")
    add("relation", "behind", "behind", "in back of")
    add("relation", "between", "between", "in between")
    add("and", None, "and", "&", "+", "plus a", "with a", "as well as")
    add("skip", None, "which is", "which are", "that is", "that are", "is", "are", "there is", "there are", "a picture of",
        "an image of", "a drawing of", "a photo of", "picture of", "image of", "drawing of", "a scene with", "a scene of")  # fmt: skip
    for b in BACKGROUNDS:
        add("background", b, f"{b} background", f"on a {b} background", f"on {b} background", f"against a {b} background",
            f"with a {b} background", f"the background is {b}", f"the background is a {b}", f"on a background of {b}",
            f"; {b}", f"on the {b}", f"background {b}", f"on a {b} backdrop")  # fmt: skip
        if b not in COLOURS:
            add("background", b, b, f"on {b}", f"on a {b}", f"against the {b}", f"in the {b}", f"at {b}")
    for s in STYLES:
        add("style", s, s, f"{s} style", f"in {s} style", f"in the {s} style", f"in a {s} style", f"in {s}",
            f"the style is {s}", f"drawn in {s}", f"drawn in the {s} style", f"drawn in {s} style", f"painted in {s}",
            f"in the style of {s}", f"as a {s}", f"as {s}", f"style {s}")  # fmt: skip
    for light in LIGHTS:
        where = _LIGHT.get(light, "evenly")
        add("light", light, f"lit {light}", f"lit {where}", f"light {where}", f"light comes {where}", f"{light} light",
            f"in {light} light", f"the light comes {where}", f"with light {where}")  # fmt: skip
    for camera in CAMERAS:
        ing = PANNING[camera]
        add("camera", camera, f"camera {ing}", f"the camera is {ing}", f"with the camera {ing}", f"camera {camera}", ing,
            f"the camera {ing}", camera, f"{camera} camera", f"with a {camera} camera", f"a {camera} camera")  # fmt: skip
    add("write", None, "word", "the word", "with the word", "with word", "with the text", "the text", "text", "saying",
        "that says", "says", "the word says", "it says", "labelled", "with a word", "reading")  # fmt: skip
    add("word", "", "with no word", "no word", "without a word", "without word")
    return lexicon


LEXICON: Any = _lexicon()
