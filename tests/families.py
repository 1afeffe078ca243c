"""A tiny checkpoint of every class that bridges/families.py lists: random weights, the libraries' own classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bridge_family
import test_bridges_amused
import test_bridges_animatediff
import test_bridges_chameleon
import test_bridges_clip
import test_bridges_cogvideox
import test_bridges_cogview4
import test_bridges_controlnet
import test_bridges_emu3
import test_bridges_flux_kontext
import test_bridges_hunyuan_dit
import test_bridges_inpaint
import test_bridges_instruct_pix2pix
import test_bridges_janus
import test_bridges_ltx
import test_bridges_lumina2
import test_bridges_qwen_image
import test_bridges_sana
import test_bridges_stable_video
import test_bridges_vlm
import test_bridges_wan
import tiny

# Class name -> what makes its pipeline.
PIPELINES: dict[str, Callable[[], Any]] = {
    "StableDiffusionPipeline": tiny.sd,
    "StableDiffusionXLPipeline": tiny.sdxl,
    "StableDiffusion3Pipeline": tiny.sd3,
    "FluxPipeline": tiny.flux,
    "PixArtAlphaPipeline": tiny.pixart,
    "PixArtSigmaPipeline": lambda: tiny.pixart(sigma=True),
    "SanaPipeline": test_bridges_sana.pipeline,
    "Lumina2Pipeline": test_bridges_lumina2.pipeline,
    "HunyuanDiTPipeline": test_bridges_hunyuan_dit.pipeline,
    "QwenImagePipeline": test_bridges_qwen_image.pipeline,
    "CogView4Pipeline": test_bridges_cogview4.pipeline,
    "FluxKontextPipeline": test_bridges_flux_kontext.pipeline,
    "WanPipeline": test_bridges_wan.text_to_video,
    "WanImageToVideoPipeline": test_bridges_wan.image_to_video,
    "CogVideoXPipeline": test_bridges_cogvideox.pipeline,
    "CogVideoXImageToVideoPipeline": test_bridges_cogvideox.image_to_video,
    "LTXPipeline": test_bridges_ltx.pipeline,
    "LTXImageToVideoPipeline": test_bridges_ltx.image_to_video,
    "AnimateDiffPipeline": test_bridges_animatediff.pipeline,
    "StableVideoDiffusionPipeline": test_bridges_stable_video.pipeline,
    "StableDiffusionInstructPix2PixPipeline": test_bridges_instruct_pix2pix.pipeline,
    "StableDiffusionXLInstructPix2PixPipeline": test_bridges_instruct_pix2pix.pipeline_xl,
    "StableDiffusionInpaintPipeline": test_bridges_inpaint.pipeline,
    "StableDiffusionXLInpaintPipeline": test_bridges_inpaint.pipeline_xl,
    "StableDiffusionControlNetPipeline": test_bridges_controlnet.pipeline,
    "StableDiffusionXLControlNetPipeline": test_bridges_controlnet.pipeline_xl,
    "AmusedPipeline": test_bridges_amused.pipeline,
}


def _held(bridge: Any) -> tuple[Any, Any]:
    return bridge.teller.model, bridge.teller.processor


# Class name -> what makes a transformers model and its processor.
MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "CLIPModel": lambda: test_bridges_clip.make("clip"),
    "SiglipModel": lambda: test_bridges_clip.make("siglip"),
    "LlavaForConditionalGeneration": test_bridges_vlm.llava,
    "Qwen2VLForConditionalGeneration": test_bridges_vlm.qwen2_vl,
    "Blip2ForConditionalGeneration": lambda: test_bridges_vlm.blip2(False),
    "JanusForConditionalGeneration": lambda: _held(test_bridges_janus.bridge()),
    "Emu3ForConditionalGeneration": lambda: _held(test_bridges_emu3.bridge()),
    "ChameleonForConditionalGeneration": lambda: _held(test_bridges_chameleon.bridge()),
}
# Made by this package, with tests of their own (test_embedded.py, test_bases.py).
EMBEDDED = {"FlowLM", "ImageTextLM", "ScaleWise"}


def pipeline(name: str) -> Any:
    """The pipeline of a class; tests only read it."""
    return bridge_family.shared(PIPELINES[name])
