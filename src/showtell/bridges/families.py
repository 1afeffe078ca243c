"""The families that `showtell.load` knows, one row each. A new family: one file, one row, one test."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """name: for people. classes: `_class_name` of model_index.json, or `architectures` of config.json.
    adapter: "module:attribute" inside this package; see docs/bridges.md for what the attribute may be. can:
        abilities (keys of
        `showtell.bridges.base.ABILITIES`). note: what the installed libraries cannot do, said below the table.
    """

    name: str
    classes: tuple[str, ...]
    adapter: str
    can: frozenset[str]
    note: str = ""


DENOISER = frozenset({"generate", "invert", "attend"})
VIDEO = frozenset({"animate", "attend"})
EDITOR = frozenset({"edit", "invert", "attend"})
BOTH_WAYS = frozenset({"generate", "caption", "answer", "attend"})

FAMILIES: tuple[Family, ...] = (
    Family(
        "showtell embedded",
        ("FlowLM",),
        "embedded:load_embedded",
        frozenset({"generate", "caption", "answer", "edit", "embed", "attend"}),
    ),
    Family("Stable Diffusion 1.x/2.x", ("StableDiffusionPipeline",), "stable_diffusion:StableDiffusion", DENOISER),
    Family("Stable Diffusion XL", ("StableDiffusionXLPipeline",), "sdxl:StableDiffusionXL", DENOISER),
    Family("Stable Diffusion 3/3.5", ("StableDiffusion3Pipeline",), "sd3:StableDiffusion3", DENOISER),
    Family("FLUX.1", ("FluxPipeline",), "flux:Flux", DENOISER),
    Family("PixArt", ("PixArtAlphaPipeline", "PixArtSigmaPipeline"), "pixart:PixArt", DENOISER),
    Family("Sana", ("SanaPipeline",), "sana:Sana", DENOISER),
    Family("Lumina-Image 2.0", ("Lumina2Pipeline",), "lumina2:Lumina2", DENOISER),
    Family("HunyuanDiT", ("HunyuanDiTPipeline",), "hunyuan_dit:HunyuanDiT", DENOISER),
    Family("Qwen-Image", ("QwenImagePipeline",), "qwen_image:QwenImage", DENOISER),
    Family("CogView4", ("CogView4Pipeline",), "cogview4:CogView4", DENOISER),
    Family("FLUX.1 Kontext", ("FluxKontextPipeline",), "flux:FluxKontext", DENOISER | {"edit"}),
    Family("Wan, text to video", ("WanPipeline",), "wan:Wan", VIDEO),
    Family("Wan, image to video", ("WanImageToVideoPipeline",), "wan:WanImageToVideo", VIDEO),
    Family("CogVideoX", ("CogVideoXPipeline",), "cogvideox:CogVideoX", VIDEO),
    Family("CogVideoX, image to video", ("CogVideoXImageToVideoPipeline",), "cogvideox:CogVideoXImageToVideo", VIDEO),
    Family("LTX-Video", ("LTXPipeline",), "ltx:LTXVideo", VIDEO),
    Family("LTX-Video, image to video", ("LTXImageToVideoPipeline",), "ltx:LTXImageToVideo", VIDEO),
    Family("AnimateDiff", ("AnimateDiffPipeline",), "animatediff:AnimateDiff", VIDEO),
    Family("Stable Video Diffusion", ("StableVideoDiffusionPipeline",), "stable_video:StableVideoDiffusion", VIDEO),
    Family("CLIP / SigLIP", ("CLIPModel", "SiglipModel"), "clip:load", frozenset({"embed"})),
    Family(
        "LLaVA, Qwen2-VL, BLIP-2",
        ("LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration", "Blip2ForConditionalGeneration"),
        "vlm:load",
        frozenset({"caption", "answer", "attend"}),
    ),
    Family(
        "InstructPix2Pix",
        ("StableDiffusionInstructPix2PixPipeline",),
        "instruct_pix2pix:InstructPix2Pix",
        EDITOR,
    ),
    Family(
        "InstructPix2Pix XL",
        ("StableDiffusionXLInstructPix2PixPipeline",),
        "instruct_pix2pix:InstructPix2PixXL",
        EDITOR,
    ),
    Family("Stable Diffusion inpainting", ("StableDiffusionInpaintPipeline",), "inpaint:Inpaint", EDITOR),
    Family("SDXL inpainting", ("StableDiffusionXLInpaintPipeline",), "inpaint:InpaintXL", EDITOR),
    Family("ControlNet", ("StableDiffusionControlNetPipeline",), "controlnet:ControlNet", DENOISER),
    Family("ControlNet XL", ("StableDiffusionXLControlNetPipeline",), "controlnet:ControlNetXL", DENOISER),
    Family("aMUSEd", ("AmusedPipeline",), "amused:load", frozenset({"generate", "attend"})),
    Family("Janus", ("JanusForConditionalGeneration",), "janus:load", BOTH_WAYS),
    Family("showtell image-text LM", ("ImageTextLM",), "image_text_lm:load", BOTH_WAYS),
    Family("showtell scale-wise", ("ScaleWise",), "scalewise:load", frozenset({"generate", "attend"})),
    Family("Emu3", ("Emu3ForConditionalGeneration",), "emu3:load", BOTH_WAYS),
    Family(
        "Chameleon",
        ("ChameleonForConditionalGeneration",),
        "chameleon:load",
        frozenset({"caption", "answer", "attend"}),
        note="the library reads its image tokens and has no decoder for them, so it makes no images",
    ),
)


def family_of(class_name: str) -> Family | None:
    """The family of a pipeline or model class."""
    return next((family for family in FAMILIES if class_name in family.classes), None)


def table() -> str:
    """The families and what they can do, as Markdown; docs/bridges.md carries it."""
    from .base import ABILITIES

    head = f"| family | classes | {' | '.join(ABILITIES)} |\n|---|---|{'---|' * len(ABILITIES)}"
    rows = [
        f"| {family.name} | {', '.join(f'`{name}`' for name in family.classes)} | "
        + " | ".join("yes" if ability in family.can else "" for ability in ABILITIES)
        + " |"
        for family in FAMILIES
    ]
    notes = [f"\n{family.name}: {family.note}." for family in FAMILIES if family.note]
    return "\n".join([head, *rows, *notes])


def offering(ability: str) -> list[str]:
    """Names of the families that offer `ability`."""
    return [family.name for family in FAMILIES if ability in family.can]
