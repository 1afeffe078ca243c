"""Chinese: captions with measure words, and the phrases that the parser understands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from showtell.world.language.captions import Wording, order, stated
from showtell.world.language.lexicon import Lexicon
from showtell.world.language.templates import learn
from showtell.world.scene import MOTIONS as KINDS
from showtell.world.scene import Motion, Scene

NUMBERS = {1: "一", 2: "两", 3: "三", 4: "四", 5: "五"}
SHAPES = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "diamond": "菱形", "pentagon": "五边形",
    "hexagon": "六边形", "star": "星星", "cross": "十字", "heart": "爱心", "crescent": "月牙",
    "arrow": "箭头",
    "drop": "水滴", "ring": "圆环", "frame": "方框", "oval": "椭圆", "flower": "花朵", "thing": "东西",
}  # fmt: skip
MEASURES = {"star": "颗", "heart": "颗", "arrow": "支", "drop": "滴", "flower": "朵", "crescent": "弯"}
COLOURS = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "cyan": "青色", "blue": "蓝色",
    "purple": "紫色", "pink": "粉色", "brown": "棕色", "black": "黑色", "white": "白色", "grey": "灰色",
}  # fmt: skip
SIZES = {"small": "小", "medium": "中号", "large": "大"}
TEXTURES = {"solid": "纯色", "striped": "条纹", "dotted": "波点", "checked": "格子"}
STATES = {"whole": "完整的", "halved": "切半的", "cracked": "裂开的"}
ROTATIONS = {0: "正立的", 90: "右转的", 180: "倒置的", 270: "左转的"}
MOTIONS = {
    "translate": "向{}移动", "rotate": "{}旋转", "grow": "变大", "shrink": "变小", "fade": "淡出",
    "appear": "淡入", "bounce": "弹跳", "recolour": "变成{}",
}  # fmt: skip
DIRECTIONS = {
    "left": "左",
    "right": "右",
    "up": "上",
    "down": "下",
    "clockwise": "顺时针",
    "anticlockwise": "逆时针",
}
BACKGROUNDS = {
    "white": "白色", "grey": "灰色", "cream": "米色", "sky": "天空", "meadow": "草地", "sand": "沙滩",
    "dusk": "黄昏", "black": "黑色",
}  # fmt: skip
STYLES = {
    "flat": "扁平", "outline": "线条", "mosaic": "马赛克", "watercolour": "水彩", "sepia": "怀旧",
    "night": "夜晚",
}  # fmt: skip
_LIGHT = {"even": "均匀", "left": "左侧", "right": "右侧", "above": "上方", "below": "下方"}
_CAMERAS = {
    "still": "静止", "pan left": "左移", "pan right": "右移", "pan up": "上移", "pan down": "下移",
    "zoom in": "推近", "zoom out": "拉远",
}  # fmt: skip

WORDING = Wording(
    relations={
        "": {"left of": "左边", "right of": "右边", "above": "上方", "below": "下方", "inside": "里面",
             "in front of": "前面", "behind": "后面", "between": "之间"},
        "paraphrase-1": {"left of": "左侧", "right of": "右侧", "above": "上面", "below": "下面",
                         "inside": "内部", "in front of": "前方", "behind": "后方", "between": "中间"},
        "paraphrase-3": {"left of": "左面", "right of": "右面", "above": "上边", "below": "下边",
                         "inside": "里边", "in front of": "前边", "behind": "后边"},
    },
    templates={
        "terse": {"background": "；{}", "style": "；{}", "light": "；{}光", "word": "；文字{}",
                  "camera": "；镜头{}"},
        "plain": {"background": "，{}背景", "style": "，{}风格", "light": "，{}光照", "word": "，写着{}",
                  "camera": "，镜头{}"},
        "detailed": {"background": "，{}背景", "style": "，{}风格", "light": "，{}光照", "word": "，写着{}",
                     "no word": "，没有文字", "camera": "，镜头{}"},
        "paraphrase-1": {"background": "。背景是{}", "style": "。风格是{}", "light": "。光照来自{}",
                         "word": "。文字是{}", "camera": "。镜头{}"},
        "paraphrase-2": {"background": "，在{}背景上", "style": "，以{}风格", "light": "，{}打光",
                         "word": "，带有文字{}",
                         "camera": "，镜头正在{}"},
        "paraphrase-3": {"background": "，背景为{}", "style": "，{}画风", "light": "，光从{}来",
                         "word": "，写有{}",
                         "camera": "，镜头{}"},
        "paraphrase-4": {"background": "，{}背景", "style": "，{}风格", "light": "，{}光照",
                         "word": "，文字{}",
                         "camera": "，镜头{}"},
    },
    names={"background": BACKGROUNDS, "style": STYLES, "light": _LIGHT, "camera": _CAMERAS},
    which=("，后者", "，后者"),
    join="和",
)  # fmt: skip
_AT = {"paraphrase-2": "位于", "paraphrase-3": "处于"}


QUESTIONS = {
    "background": ("背景是什么？",), "style": ("风格是什么？",), "word": ("写着什么？",),
    "light": ("光从哪里来？",),
    "camera": ("镜头怎么动？",), "existence": ("有{}吗？",),
    "count": ("有几个{}？", *(f"有几{measure}{{}}？" for measure in dict.fromkeys(MEASURES.values()))),
    "colour": ("{}是什么颜色？",), "shape": ("{}是什么形状？",), "size": ("{}是什么尺寸？",),
    "texture": ("{}是什么图案？",), "state": ("{}是什么状态？",), "motion": ("{}在做什么？",),
    "relation": ("{}是什么？",), "related": ("{}吗？",),
}  # fmt: skip
ANSWERS = {"yes": "是", "no": "否", "": "无", "even": "四周"}
INSTRUCTIONS = {
    "background": ("把背景换成{}",), "count": ("把{}的数量改成{}",),
    "restyle": ("改成{}",), "replace": ("把{}换成{}",),
    "change": ("把{}变成{}",), "move": ("把{}移到{}",), "add": ("添加{}", "在{}添加{}"),
    "remove": ("移除{}", "去掉{}"),
}  # fmt: skip
PLACES = {
    "top left": "左上角", "top": "顶部", "top right": "右上角", "left": "左侧位置", "centre": "中央",
    "right": "右侧位置", "bottom left": "左下角", "bottom": "底部", "bottom right": "右下角",
}  # fmt: skip


def noun(said: Mapping[str, Any], count: int = 1) -> str:
    """Attributes and noun: "裂开的蓝色条纹大星星", "红色圆形", "蓝色的东西"."""
    text = f"{moving(said['motion'])}的" if "motion" in said else ""
    for names, name in (
        (ROTATIONS, "rotation"),
        (STATES, "state"),
        (COLOURS, "colour"),
        (TEXTURES, "texture"),
    ):
        if name in said:
            text += names[said[name]]
    text += SIZES[said["size"]] if "size" in said else ""
    if "shape" in said:
        return text + SHAPES[said["shape"]]
    return f"{text}{'' if text.endswith('的') or not text else '的'}{SHAPES['thing']}"


def value(name: str, what: Any, shape: str = "thing", count: int = 1) -> str:
    """One attribute's value on its own, as an answer says it: "红色", "大号", "向左移动"."""
    if name == "motion":
        return moving(what)
    names: Mapping[Any, str] = _VALUES[name]
    return names[what].removesuffix("的")


def moving(motion: Motion) -> str:
    return MOTIONS[motion.kind].format(COLOURS.get(motion.to) or DIRECTIONS.get(motion.to, ""))


def a(said: Mapping[str, Any]) -> str:
    return number(1, said)


def the(said: Mapping[str, Any], count: int = 1) -> str:
    return noun(said)


def number(count: int, said: Mapping[str, Any]) -> str:
    """ "一个红色圆环", "三颗红色星星"."""
    return f"{NUMBERS[count]}{MEASURES.get(said.get('shape', 'thing'), '个')}{noun(said)}"


def styled(name: str) -> str:
    return f"{STYLES[name]}风格"


def located(kind: str, other: str, style: str = "") -> str:
    """Where something is: "蓝色星星的左边"."""
    return f"{other}的{WORDING.relation(kind, style)}"


def standing(thing: str, kind: str, other: str) -> str:
    """A thing and where it is: "红色圆环在蓝色星星的左边"."""
    return f"{thing}在{located(kind, other)}"


def _objects(things: list[str], kinds: list[str], style: str) -> str:
    """Things joined in Chinese order: "A在B的左边，后者在C的上方，还有D"."""
    text, chained = things[0], False
    of, at = "" if style == "terse" else "的", _AT.get(style, "在")
    for i, kind in enumerate(kinds):
        if kind == "and":
            continue
        if kind == "":
            simple = not chained and not any(kinds[: i + 1])
            listed = simple and i + 1 < len(kinds) and not kinds[i + 1]
            text += f"{'、' if listed else '和' if simple else '，还有'}{things[i + 1]}"
            chained = False
            continue
        where = WORDING.relation(kind, style)
        other = f"{things[1]}和{things[2]}" if kind == "between" else things[i + 1]
        text += f"{'，后者' if i else ''}{at}{other}{'' if kind == 'between' else of}{where}"
        chained = True
    return text


def caption(scene: Scene, style: str) -> str:
    """The caption in one of the styles of `showtell.world.language`."""
    groups, kinds = order(scene, style)
    said = [stated(g[0], style == "detailed") for g in groups]
    bare = style == "terse"
    things = [noun(s) if bare and len(g) == 1 else number(len(g), s) for g, s in zip(groups, said, strict=True)]
    extras = WORDING.extras(scene, style)
    if style == "paraphrase-3" and len(kinds) == 1 and kinds[0] not in ("", "between"):
        return f"{things[1]}{WORDING.relation(kinds[0], style)}的{things[0]}{extras}"
    objects = _objects(things, kinds, style)
    if style == "paraphrase-1":
        return f"图中有{objects}{extras}"
    if style == "paraphrase-4" and extras:
        return f"{extras[1:]}：{objects}"
    return objects + extras


_VALUES: dict[str, Mapping[Any, str]] = {
    "shape": SHAPES, "colour": COLOURS, "size": {**SIZES, "small": "小号", "large": "大号"},
    "texture": TEXTURES,
    "state": STATES, "rotation": ROTATIONS,
}  # fmt: skip
_SYNONYMS = {
    "圆形": "圆|圆圈|圆点形", "正方形": "方形|方块", "三角形": "三角", "菱形": "钻石形",
    "星星": "星形|五角星|星",
    "十字": "十字形|十字架", "爱心": "心形|心", "月牙": "弯月|月亮|新月", "箭头": "箭", "水滴": "水珠|水滴形",
    "圆环": "环|环形", "方框": "框|框架", "椭圆": "椭圆形", "花朵": "花|花形", "东西": "物体",
    "小": "小号|小的|小型", "中号": "中等|中等大小的|中号的", "大": "大号|大的|大型|巨大的",
    "纯色": "纯色的|实心|实心的", "条纹": "条纹的|有条纹的|带条纹的", "波点": "波点的|圆点|点状",
    "格子": "格子的|格纹|方格", "完整的": "完整", "切半的": "切半|一半的|对半切开的",
    "裂开的": "裂开|破裂的|破裂",
    "正立的": "正立", "右转的": "右转|向右转的", "左转的": "左转|向左转的",
    "倒置的": "倒置|颠倒的|倒立的|倒着的",
}  # fmt: skip


def _lexicon() -> Lexicon:
    lexicon = Lexicon("zh")
    add = lexicon.add
    for kind, names in (("size", SIZES), ("texture", TEXTURES), ("state", STATES), ("rotation", ROTATIONS)):
        for value, name in names.items():
            add(kind, value, f"{name}|{_SYNONYMS[name]}")
    for shape, name in SHAPES.items():
        known = f"{name}|{_SYNONYMS[name]}" if name in _SYNONYMS else name
        add("thing" if shape == "thing" else "shape", None if shape == "thing" else shape, known)
    for colour, name in COLOURS.items():
        add("colour", colour, f"{name}|{name}的|{name[0]}|{name[0]}的")
    add("colour", "pink", "粉红色|粉红")
    add("colour", "brown", "褐色|咖啡色")
    for kind, targets in KINDS.items():
        for to in targets:
            said = moving(Motion(kind, to))
            add("motion", Motion(kind, to), f"{said}的|{said}|正在{said}的")
    for count, numeral in enumerate("一两三四五六七八九", 1):
        for measure in sorted({"个", "只", *MEASURES.values()}):
            add("article" if count == 1 else "count", count, f"{numeral}{measure}")
    add("count", 2, "二个|俩")
    add("article", 1, "一")
    add("of", None, "的|个|只|颗|支|滴|朵|弯")
    for kind, usual in WORDING.relations[""].items():
        forms = {usual, *(more.get(kind, usual) for more in WORDING.relations.values())}
        add("relation", kind, "|".join(sorted(forms)))
    add("relation", "inside", "里|内|中|当中")
    add("relation", "above", "上|之上|顶上")
    add("relation", "below", "下|之下|底下")
    add("relation", "left of", "左")
    add("relation", "right of", "右")
    add("at", None, "在|位于|处于")
    add("and", None, "和|、|还有|与|以及|及|跟")
    add("skip", None, "后者|后者是|图中有|有|这是|一幅画|一张图|图中|画着")
    _add_scene(lexicon)
    for place, name in PLACES.items():
        add("place", place, name)
    learn(lexicon, *QUESTIONS.values(), *INSTRUCTIONS.values(), ANSWERS.values())
    return lexicon


def _add_scene(lexicon: Lexicon) -> None:
    add = lexicon.add
    for b, name in BACKGROUNDS.items():
        add(
            "background",
            b,
            f"{name}背景|在{name}背景上|背景是{name}|背景为{name}|{name}的背景|；{name}|在{name}背景下",
        )
        if name not in COLOURS.values():
            add("background", b, f"{name}|在{name}上")
    for s, name in STYLES.items():
        add("style", s, f"{name}|{name}风格|以{name}风格|风格是{name}|{name}画风|{name}风格的")
    add("style", "watercolour", "水彩画|水彩画风格")
    for light, name in _LIGHT.items():
        add("light", light, f"{name}光|{name}光照|光照来自{name}|{name}打光|光从{name}来|光线来自{name}")
    for camera, name in _CAMERAS.items():
        add("camera", camera, f"镜头{name}|镜头正在{name}|镜头向{name}")
    add("write", None, "写着|文字|带有文字|写有|文字是|写着文字")
    add("word", "", "没有文字|无文字")


LEXICON = _lexicon()
