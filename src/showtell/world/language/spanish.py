"""Spanish: captions, noun phrases that agree in gender and number, and the parser's phrases."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from showtell.world.language.captions import Wording, order, stated
from showtell.world.language.lexicon import Lexicon
from showtell.world.language.templates import learn
from showtell.world.scene import MOTIONS as KINDS
from showtell.world.scene import ROTATIONS, SIZES, STATES, TEXTURES, Motion, Scene

NUMBERS = {1: "un", 2: "dos", 3: "tres", 4: "cuatro", 5: "cinco"}
SHAPES = {
    "circle": "círculo", "square": "cuadrado", "triangle": "triángulo", "diamond": "rombo",
    "pentagon": "pentágono",
    "hexagon": "hexágono", "star": "estrella", "cross": "cruz", "heart": "corazón", "crescent": "medialuna",
    "arrow": "flecha", "drop": "gota", "ring": "anillo", "frame": "marco", "oval": "óvalo", "flower": "flor",
    "thing": "cosa",
}  # fmt: skip
FEMININE = frozenset({"star", "cross", "crescent", "arrow", "drop", "flower", "thing"})
ADJECTIVES: dict[str | int, str] = {  # masculine singular; those in -o agree in gender, all agree in number
    "red": "rojo", "orange": "naranja", "yellow": "amarillo", "green": "verde", "cyan": "turquesa",
    "blue": "azul",
    "purple": "morado", "pink": "rosa", "brown": "marrón", "black": "negro", "white": "blanco",
    "grey": "gris",
    "small": "pequeño", "medium": "mediano", "large": "grande",
    "solid": "liso", "striped": "rayado", "dotted": "punteado", "checked": "cuadriculado",
    "whole": "entero", "halved": "partido", "cracked": "agrietado",
    0: "erguido", 90: "girado a la derecha", 180: "invertido", 270: "girado a la izquierda",
}  # fmt: skip
MOTIONS = {  # the verb for one, the verb for many, what follows it
    "translate": ("mueve", "mueven"), "rotate": ("gira", "giran"), "grow": ("crece", "crecen"),
    "shrink": ("encoge", "encogen"), "fade": ("desvanece", "desvanecen"), "appear": ("aparece", "aparecen"),
    "bounce": ("rebota", "rebotan"), "recolour": ("vuelve", "vuelven"),
}  # fmt: skip
REFLEXIVE = frozenset({"translate", "shrink", "fade", "recolour"})
DIRECTIONS = {
    "left": "hacia la izquierda", "right": "hacia la derecha", "up": "hacia arriba", "down": "hacia abajo",
    "clockwise": "en sentido horario", "anticlockwise": "en sentido antihorario",
}  # fmt: skip
BACKGROUNDS = {
    "white": "blanco", "grey": "gris", "cream": "crema", "sky": "cielo", "meadow": "pradera", "sand": "arena",
    "dusk": "atardecer", "black": "negro",
}  # fmt: skip
STYLES = {
    "flat": "plano", "outline": "contorno", "mosaic": "mosaico", "watercolour": "acuarela", "sepia": "sepia",
    "night": "nocturno",
}  # fmt: skip
_LIGHT = {
    "even": "uniforme", "left": "desde la izquierda", "right": "desde la derecha", "above": "desde arriba",
    "below": "desde abajo",
}  # fmt: skip
_CAMERAS = {
    "still": "fija", "pan left": "hacia la izquierda", "pan right": "hacia la derecha",
    "pan up": "hacia arriba",
    "pan down": "hacia abajo", "zoom in": "acercándose", "zoom out": "alejándose",
}  # fmt: skip

WORDING = Wording(
    relations={
        "": {"left of": "a la izquierda de", "right of": "a la derecha de", "above": "encima de",
             "below": "debajo de", "inside": "dentro de", "in front of": "delante de", "behind": "detrás de",
             "between": "entre"},
        "paraphrase-1": {"above": "por encima de", "below": "por debajo de", "inside": "en el interior de"},
        "paraphrase-2": {"left of": "al lado izquierdo de", "right of": "al lado derecho de",
                         "above": "sobre",
                         "below": "bajo", "in front of": "ante", "behind": "tras"},
        "paraphrase-3": {"left of": "a mano izquierda de", "right of": "a mano derecha de",
                         "above": "más arriba que", "below": "más abajo que"},
    },
    templates={
        "terse": {"background": "; {}", "style": "; {}", "light": "; luz {}", "word": "; palabra {}",
                  "camera": "; cámara {}"},
        "plain": {"background": " sobre fondo {}", "style": ", en estilo {}", "light": ", con luz {}",
                  "word": ", con la palabra {}", "camera": ", cámara {}"},
        "detailed": {"background": ", sobre fondo {}", "style": ", en estilo {}", "light": ", con luz {}",
                     "word": ", con la palabra {}", "no word": ", sin palabra",
                     "camera": ", con la cámara {}"},
        "paraphrase-1": {"background": ". el fondo es {}", "style": ". el estilo es {}",
                         "light": ". la luz viene {}",
                         "word": ". la palabra es {}", "camera": ". la cámara va {}"},
        "paraphrase-2": {"background": " contra un fondo {}", "style": ", estilo {}", "light": ", luz {}",
                         "word": ", dice {}", "camera": ", con cámara {}"},
        "paraphrase-3": {"background": ", con fondo {}", "style": ", dibujado en estilo {}",
                         "light": ", con luz {}",
                         "word": ", con el texto {}", "camera": ", con la cámara {}"},
        "paraphrase-4": {"background": ", fondo {}", "style": ", estilo {}", "light": ", luz {}",
                         "word": ", palabra {}", "camera": ", cámara {}"},
    },
    names={
        "background": {b: n if n in ADJECTIVES.values() else f"de {n}" for b, n in BACKGROUNDS.items()},
        "background terse": BACKGROUNDS,
        "style": STYLES, "light": _LIGHT, "camera": _CAMERAS,
    },
    which=(", que está", ", que están"),
    join=" y",
)  # fmt: skip


QUESTIONS = {
    "background": ("¿cuál es el fondo?",), "style": ("¿cuál es el estilo?",),
    "word": ("¿cuál es la palabra?",),
    "light": ("¿de dónde viene la luz?",), "camera": ("¿qué hace la cámara?",),
    "count": ("¿cuántos {} hay?", "¿cuántas {} hay?"), "colour": ("¿de qué color es {}?",),
    "shape": ("¿qué forma tiene {}?",), "size": ("¿de qué tamaño es {}?",),
    "texture": ("¿qué textura tiene {}?",),
    "state": ("¿en qué estado está {}?",), "motion": ("¿qué hace {}?",), "relation": ("¿qué hay {}?",),
    "existence": ("¿hay {}?",), "related": ("¿está {}?",),
}  # fmt: skip
ANSWERS = {"yes": "sí", "no": "no", "": "ninguna", "even": "todas partes"}
INSTRUCTIONS = {
    "background": ("cambia el fondo a {}",), "count": ("cambia el número de {} a {}",),
    "restyle": ("conviértelo a {}",), "replace": ("cambia {} por {}",),
    "change": ("haz que {} sea {}", "haz que {} sean {}"), "move": ("mueve {}",), "add": ("añade {}",),
    "remove": ("quita {}", "elimina {}"),
}  # fmt: skip
PLACES = {
    "top left": "arriba a la izquierda", "top": "arriba", "top right": "arriba a la derecha",
    "left": "a la izquierda",
    "centre": "al centro", "right": "a la derecha", "bottom left": "abajo a la izquierda", "bottom": "abajo",
    "bottom right": "abajo a la derecha",
}  # fmt: skip


def plural(word: str) -> str:
    """The plural of a noun or adjective: círculos, azules, cruces, corazones."""
    if word[-1] in "aeioué":
        return word + "s"
    return (word[:-1] + "c" if word.endswith("z") else word.replace("ón", "on")) + "es"


def adjective(name: str | int, feminine: bool, many: bool) -> str:
    """The adjective for an attribute's value, in agreement: roja, rojos, azules, giradas a la derecha."""
    head, *rest = ADJECTIVES[name].split(" ")
    if feminine and head.endswith("o"):
        head = head[:-1] + "a"
    return " ".join([plural(head) if many else head, *rest])


def _moving(motion: Motion, feminine: bool, many: bool) -> str:
    verb = ("se " if motion.kind in REFLEXIVE else "") + MOTIONS[motion.kind][many]
    if motion.kind == "recolour":
        return f"{verb} {adjective(motion.to, feminine, many)}"
    return f"{verb} {DIRECTIONS[motion.to]}" if motion.to else verb


def noun(said: Mapping[str, Any], count: int = 1) -> str:
    """Noun and adjectives for some attributes: "estrella azul grande", "círculos rojos", "cosa azul"."""
    shape = said.get("shape", "thing")
    feminine, many = shape in FEMININE, count != 1
    words = [plural(SHAPES[shape]) if many else SHAPES[shape]]
    for name in ("colour", "size", "texture", "state", "rotation"):
        if name in said:
            words.append(adjective(said[name], feminine, many))
    if "motion" in said:
        words.append(f"que {_moving(said['motion'], feminine, many)}")
    return " ".join(words)


def value(name: str, what: Any, shape: str = "thing", count: int = 1) -> str:
    """One attribute's value on its own, in agreement with the thing: "roja", "rayados", "se mueve abajo"."""
    feminine, many = shape in FEMININE, count != 1
    if name == "motion":
        return _moving(what, feminine, many)
    return SHAPES[what] if name == "shape" else adjective(what, feminine, many)


def a(said: Mapping[str, Any]) -> str:
    return f"{'una' if said.get('shape', 'thing') in FEMININE else 'un'} {noun(said)}"


def the(said: Mapping[str, Any], count: int = 1) -> str:
    feminine = said.get("shape", "thing") in FEMININE
    article = ("la" if feminine else "el") if count == 1 else ("las" if feminine else "los")
    return f"{article} {noun(said, count)}"


def number(count: int, said: Mapping[str, Any]) -> str:
    """ "un anillo rojo", "tres anillos rojos"."""
    return a(said) if count == 1 else f"{NUMBERS[count]} {noun(said, count)}"


def styled(name: str) -> str:
    return f"estilo {STYLES[name]}"


def located(kind: str, other: str, style: str = "") -> str:
    """Where something is: "a la izquierda del anillo rojo"."""
    return f"{WORDING.relation(kind, style)} {other}".replace(" de el ", " del ")


def standing(thing: str, kind: str, other: str) -> str:
    """A thing and where it is: "la estrella azul a la izquierda del anillo rojo"."""
    return f"{thing} {located(kind, other)}"


def caption(scene: Scene, style: str) -> str:
    """The caption in one of the styles of `showtell.world.language`."""
    groups, kinds = order(scene, style)
    said = [stated(g[0], style == "detailed") for g in groups]
    bare = style == "terse"
    things = [noun(s) if bare and len(g) == 1 else number(len(g), s) for g, s in zip(groups, said, strict=True)]
    objects, extras = WORDING.chain(things, groups, kinds, style), WORDING.extras(scene, style)
    if style == "paraphrase-1":
        return f"hay {objects}{extras}"
    if style == "paraphrase-3":
        return f"una imagen de {objects}{extras}"
    if style == "paraphrase-4" and extras:
        return f"{extras[2:]}: {objects}"
    return objects + extras


_SYNONYMS = {
    "rombo": "diamante", "gota": "lágrima", "anillo": "aro", "óvalo": "elipse", "medialuna": "luna",
    "círculo": "disco",
}  # fmt: skip
_MORE_ADJECTIVES: dict[str, str | int] = {
    "morado": "purple", "violeta": "purple", "cian": "cyan", "celeste": "cyan", "café": "brown",
    "roto": "cracked",
    "enorme": "large", "sólido": "solid",
}  # fmt: skip


_KINDS: dict[str, tuple[str | int, ...]] = {
    "size": SIZES, "texture": TEXTURES, "state": STATES, "rotation": ROTATIONS,
}  # fmt: skip


def _lexicon() -> Lexicon:
    lexicon = Lexicon("es", {"del": "de el", "al": "a el"})
    add = lexicon.add
    _add_attributes(lexicon)
    _add_motions(lexicon)
    _add_scene(lexicon)
    for count, name in enumerate(("un|una|uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"), 1):
        add("article" if count == 1 else "count", count, name)
    add("the", None, "el|la|los|las")
    for side, masculine in (("izquierda", "izquierdo"), ("derecha", "derecho")):
        kind = "left of" if side == "izquierda" else "right of"
        where = f"a la {side} de|en la {side} de|a {side} de|a el lado {masculine} de|a mano {side} de"
        add("relation", kind, where)
        for placed in ("situado", "situada", "situados", "situadas"):
            add("relation", kind, f"{placed} a la {side} de")
    add("relation", "above", "encima de|por encima de|arriba de|sobre|más arriba que|más arriba de")
    add("relation", "below", "debajo de|por debajo de|abajo de|bajo|más abajo que|más abajo de")
    add("relation", "inside", "dentro de|en el interior de|en")
    add("relation", "in front of", "delante de|enfrente de|frente a|ante")
    add("relation", "behind", "detrás de|tras|atrás de")
    add("relation", "between", "entre")
    add("and", None, "y|e|&|+|con un|con una|junto a|además de")
    add("skip", None, "que está|que están|está|están|hay|que es|es|son|se encuentra|se encuentran")
    add("skip", None, "una imagen de|imagen de|un dibujo de|dibujo de|una foto de|foto de")
    for place, name in PLACES.items():
        add("place", place, name)
    learn(lexicon, *QUESTIONS.values(), *INSTRUCTIONS.values(), ANSWERS.values())
    _accept_without_accents(lexicon)
    return lexicon


def _add_attributes(lexicon: Lexicon) -> None:
    for shape, name in SHAPES.items():
        kind, value = ("thing", None) if shape == "thing" else ("shape", shape)
        for word in (name, *_SYNONYMS.get(name, name).split("|")):
            lexicon.add(kind, value, word)
            lexicon.add(f"{kind}s", value, plural(word))
    kinds: dict[str | int, str] = {adj: attribute for attribute, adjs in _KINDS.items() for adj in adjs}
    for adj in ADJECTIVES:
        kind = kinds.get(adj, "colour")
        for feminine in (False, True):
            lexicon.add(kind, adj, f"{adjective(adj, feminine, False)}|{adjective(adj, feminine, True)}")
    for word, adj in _MORE_ADJECTIVES.items():
        bent = word[:-1] + "a" if word.endswith("o") else word
        lexicon.add(kinds.get(adj, "colour"), adj, f"{word}|{bent}|{plural(word)}|{plural(bent)}")
    lexicon.add("texture", "striped", "a rayas|de rayas")
    lexicon.add("texture", "dotted", "a puntos|de puntos|con puntos|de lunares|con lunares")
    lexicon.add("texture", "checked", "a cuadros|de cuadros")
    lexicon.add("rotation", 180, "boca abajo|a el revés")
    lexicon.add("state", "halved", "partido por la mitad|partida por la mitad")
    lexicon.add("colour", "orange", "anaranjado|anaranjada|anaranjados|anaranjadas")


def _add_motions(lexicon: Lexicon) -> None:
    for kind, targets in KINDS.items():
        for to in targets:
            for many in (False, True):
                for feminine in (False, True):
                    said = _moving(Motion(kind, to), feminine, many)
                    lexicon.add("motion", Motion(kind, to), f"que {said}|{said}")


def _add_scene(lexicon: Lexicon) -> None:
    add = lexicon.add
    for b, name in BACKGROUNDS.items():
        for said in (name, f"de {name}", f"de color {name}"):
            add("background", b, f"fondo {said}|el fondo es {said}|con fondo {said}|con un fondo {said}")
            add("background", b, f"sobre fondo {said}|sobre un fondo {said}|contra un fondo {said}")
        add("background", b, f"; {name}")
        if name not in ADJECTIVES.values():
            add(
                "background",
                b,
                f"{name}|sobre la {name}|sobre el {name}|en la {name}|en el {name}|a el {name}",
            )
    for s, name in STYLES.items():
        add(
            "style",
            s,
            f"{name}|estilo {name}|en estilo {name}|en el estilo {name}|de estilo {name}|en {name}",
        )
        add("style", s, f"el estilo es {name}|dibujado en estilo {name}|dibujado en {name}|pintado en {name}")
    for light, name in _LIGHT.items():
        add("light", light, f"luz {name}|con luz {name}|la luz viene {name}|la luz es {name}|iluminado {name}")
        if light != "even":
            add("light", light, f"luz {name.removeprefix('desde la ').removeprefix('desde ')}")
    for camera, name in _CAMERAS.items():
        add("camera", camera, f"cámara {name}|la cámara {name}|con la cámara {name}|con cámara {name}")
        add("camera", camera, f"la cámara va {name}|la cámara está {name}|la cámara se mueve {name}")
    add(
        "write",
        None,
        "palabra|la palabra|con la palabra|la palabra es|que dice|dice|con el texto|el texto|texto",
    )
    add("word", "", "sin palabra|sin palabras|sin texto")


def _accept_without_accents(lexicon: Lexicon) -> None:
    """Lets "circulo" be read as "círculo", where that is not a word of its own."""
    bare = {"".join(c for c in unicodedata.normalize("NFD", w) if c != "\u0301"): w for w in lexicon.vocabulary}
    lexicon.spellings = {
        **{b: w for b, w in bare.items() if b not in lexicon.vocabulary},
        **lexicon.spellings,
    }


LEXICON = _lexicon()
