"""PyTorch modules of Transformers, torchvision and timm, one of each family, with random weights.

Needs torch, and the package of the models asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from planish.profile import TensorSpec


@dataclass(frozen=True)
class Case:
    """A model: how it is made, its inputs (dimensions that are names change), and what integers
    are below.
    """

    name: str
    make: Callable[[], Any]
    inputs: dict[str, TensorSpec]
    below: int = 100
    recorded: bool = False
    """Whether only PyTorch's older exporter can export it, which records one run."""
    optimized: bool = True
    """Whether PyTorch's exporter may simplify the file, which damages some."""
    detections: bool = False
    """Whether rows of all outputs belong together, in an order that rounding decides."""


def image(size: int) -> dict[str, TensorSpec]:
    return {"x": TensorSpec(("N", 3, size, size))}


class Only(torch.nn.Module):
    """A Transformers model called with named inputs, giving one of its outputs."""

    def __init__(self, model: Any, output: str, **fixed: Any) -> None:
        super().__init__()
        self.model, self.output, self.fixed = model, output, fixed

    def forward(self, **inputs: Any) -> Any:
        return getattr(self.model(**inputs, **self.fixed), self.output)


class Detector(torch.nn.Module):
    """A detector of torchvision, given one image, or a stack of them, instead of a list.

    Masks and heat maps of keypoints are given as the network gives them, not drawn into the image.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if type(model).__name__ == "SSD" and "classification_head" in name:
                    parameter.mul_(0.01)  # or all probabilities would be 0 or 1
        if type(model).__name__ in ("MaskRCNN", "KeypointRCNN"):
            model.transform.postprocess = lambda found, *sizes: found
        if type(model).__name__ == "KeypointRCNN":
            heads = importlib.import_module("torchvision.models.detection.roi_heads")
            heads.keypointrcnn_inference = lambda maps, boxes: ([maps], [maps.amax((2, 3))])

    def forward(self, image: Any) -> Any:
        images = [image] if image.ndim == 3 else list(image)
        return tuple(self.model(images)[0].values())


class Step(torch.nn.Module):
    """One step of GPT-2 with its past as plain tensors."""

    def __init__(self, model: Any, layers: int) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(self, ids: Any, past: Any) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache()
        for i in range(self.layers):
            cache.update(past[2 * i], past[2 * i + 1], i)
        return self.model(input_ids=ids, past_key_values=cache, use_cache=False).logits


def transformers_cases() -> Iterator[Case]:
    t = importlib.import_module("transformers")
    text = {name: TensorSpec(("N", "length"), "int64") for name in ("input_ids", "attention_mask")}
    small: dict[str, Any] = dict(num_hidden_layers=2, vocab_size=1000)
    yield Case(
        "transformers BERT",
        lambda: Only(t.BertModel(t.BertConfig(**small)), "last_hidden_state"),
        {**text, "token_type_ids": text["input_ids"]},
        below=2,
    )
    yield Case(
        "transformers DistilBERT",
        lambda: Only(t.DistilBertModel(t.DistilBertConfig(n_layers=2)), "last_hidden_state"),
        text,
        below=2,
    )
    yield Case(
        "transformers RoBERTa",
        lambda: Only(t.RobertaModel(t.RobertaConfig(**small)), "last_hidden_state"),
        text,
        below=2,
    )
    yield Case(
        "transformers ViT",
        lambda: Only(t.ViTModel(t.ViTConfig(num_hidden_layers=2)), "last_hidden_state"),
        {"pixel_values": TensorSpec(("N", 3, 224, 224))},
    )
    yield Case(
        "transformers GPT-2, one step",
        lambda: Step(t.GPT2LMHeadModel(t.GPT2Config(n_layer=2, vocab_size=1000)), 2),
        {
            "ids": TensorSpec(("N", 1), "int64"),
            "past": TensorSpec((4, "N", 12, "past_length", 64)),
        },
    )
    yield Case(
        "transformers T5 encoder",
        lambda: Only(
            t.T5EncoderModel(t.T5Config(num_layers=2, vocab_size=1000)), "last_hidden_state"
        ),
        text,
        below=2,
    )
    yield Case(
        "transformers Whisper encoder",
        lambda: Only(
            t.WhisperModel(t.WhisperConfig(encoder_layers=2, decoder_layers=1)).encoder,
            "last_hidden_state",
        ),
        {"input_features": TensorSpec(("N", 80, 3000))},
    )
    yield Case(
        "transformers CLIP vision",
        lambda: Only(t.CLIPVisionModel(t.CLIPVisionConfig(num_hidden_layers=2)), "pooler_output"),
        {"pixel_values": TensorSpec(("N", 3, 224, 224))},
    )
    yield Case(
        "transformers CLIP text",
        lambda: Only(
            t.CLIPTextModel(
                t.CLIPTextConfig(num_hidden_layers=2, vocab_size=1000, eos_token_id=99)
            ),
            "last_hidden_state",
        ),
        {"input_ids": TensorSpec(("N", 16), "int64")},
    )
    yield Case(
        "transformers Llama, prompt",
        lambda: Only(
            t.LlamaForCausalLM(
                t.LlamaConfig(
                    num_hidden_layers=2,
                    vocab_size=1000,
                    hidden_size=256,
                    intermediate_size=512,
                    num_attention_heads=8,
                    num_key_value_heads=2,
                )
            ),
            "logits",
            use_cache=False,
        ),
        {"input_ids": TensorSpec(("N", "length"), "int64")},
    )
    yield Case(
        "transformers wav2vec 2.0",
        lambda: Only(t.Wav2Vec2Model(t.Wav2Vec2Config(num_hidden_layers=2)), "last_hidden_state"),
        {"input_values": TensorSpec(("N", 16000))},
    )
    yield Case(
        "transformers SegFormer",
        lambda: Only(t.SegformerModel(t.SegformerConfig()), "last_hidden_state"),
        {"pixel_values": TensorSpec(("N", 3, 128, 128))},
    )


TORCHVISION = {
    "alexnet": 224, "vgg11_bn": 64, "resnet18": 64, "resnext50_32x4d": 64, "wide_resnet50_2": 64,
    "squeezenet1_1": 96, "densenet121": 64, "googlenet": 96, "inception_v3": 139,
    "shufflenet_v2_x1_0": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "mnasnet1_0": 64,
    "efficientnet_b0": 64, "efficientnet_v2_s": 64, "regnet_y_400mf": 64, "regnet_x_400mf": 64,
    "convnext_tiny": 64, "vit_b_16": 224, "swin_t": 224, "swin_v2_t": 256, "maxvit_t": 224,
}  # fmt: skip
SEGMENTATION = {
    "fcn_resnet50": 64,
    "deeplabv3_mobilenet_v3_large": 64,
    "lraspp_mobilenet_v3_large": 64,
}
DETECTION = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": dict(min_size=128, max_size=160),
    "fasterrcnn_resnet50_fpn_v2": dict(min_size=128, max_size=160),
    "fcos_resnet50_fpn": dict(min_size=128, max_size=160),
    "retinanet_resnet50_fpn_v2": dict(min_size=128, max_size=160),
    "ssd300_vgg16": {},
    "ssdlite320_mobilenet_v3_large": {},
    "maskrcnn_resnet50_fpn": dict(min_size=128, max_size=160),
    "keypointrcnn_resnet50_fpn": dict(min_size=128, max_size=160, num_classes=2),
}
VIDEO = {
    "r3d_18": 32,
    "mc3_18": 32,
    "r2plus1d_18": 32,
    "s3d": 224,
    "mvit_v1_b": 224,
    "swin3d_t": 64,
}
TIMM = {
    "resnet50d": 64, "resnetv2_50": 64, "seresnet50": 64, "ecaresnet50t": 64,
    "res2net50_26w_4s": 64,
    "tf_efficientnet_b0": 64, "tf_efficientnetv2_b0": 64, "mobilenetv3_small_100": 64,
    "mobilenetv4_conv_small": 64, "mobilenetv4_hybrid_medium": 64, "mobileone_s0": 64,
    "ghostnet_100": 64, "repvgg_a0": 64, "regnety_002": 64, "hrnet_w18_small": 64, "dla34": 64,
    "darknet53": 64, "cspresnet50": 64, "vovnet39a": 64, "rexnet_100": 64, "dpn68": 64,
    "xception41": 64, "nf_resnet50": 64, "dm_nfnet_f0": 64, "convnextv2_atto": 64,
    "convmixer_768_32": 64, "mixer_s32_224": 224, "resmlp_12_224": 224, "gmlp_ti16_224": 224,
    "deit_tiny_patch16_224": 224, "vit_tiny_patch16_224": 224, "beit_base_patch16_224": 224,
    "eva02_tiny_patch14_224": 224, "cait_xxs24_224": 224, "xcit_nano_12_p16_224": 224,
    "swin_tiny_patch4_window7_224": 224, "swinv2_cr_tiny_ns_224": 224, "pvt_v2_b0": 64,
    "poolformer_s12": 64, "caformer_s18": 224, "coatnet_nano_rw_224": 224,
    "maxvit_nano_rw_256": 256, "edgenext_xx_small": 64, "fastvit_t8": 64, "levit_128s": 224,
    "efficientformer_l1": 224, "mobilevit_xxs": 64, "mobilevitv2_050": 64, "tiny_vit_5m_224": 224,
    "twins_pcpvt_small": 224, "visformer_tiny": 224, "volo_d1_224": 224, "crossvit_tiny_240": 240,
    "inception_next_atto": 64, "focalnet_tiny_srf": 64, "davit_tiny": 64, "hgnetv2_b0": 64,
    "repghostnet_050": 64, "starnet_s1": 64, "rdnet_tiny": 64,
    "halonet_h1": 256, "coat_tiny": 224, "convit_tiny": 224, "cpubone_nano": 64, "csatv2": 512,
    "cspnext_tiny": 64, "densenet121": 64, "efficientformerv2_s0": 224, "efficientvim_m1": 224,
    "efficientvit_b0": 64, "efficientvit_m0": 224, "fasternet_t0": 64, "gcvit_xxtiny": 224,
    "hardcorenas_b": 64, "hiera_tiny_224": 224, "sam2_hiera_tiny": 224, "iformer_t": 224,
    "inception_resnet_v2": 139, "inception_v3": 139, "inception_v4": 139, "lcnetv2_small": 64,
    "lowformer_b0": 64, "mambaout_femto": 64, "mobilenetv5_base": 256, "mvitv2_tiny": 224,
    "naflexvit_base_patch16_gap": 384, "nasnetalarge": 107, "jx_nest_tiny": 224,
    "nextvit_small": 64, "pit_ti_224": 224, "pnasnet5large": 107, "qwen3_vit_88m": 256,
    "gemma4_vit_167m": 256, "repvit_m1": 64, "resnest14d": 64, "selecsls42": 64,
    "legacy_seresnet18": 64, "sequencer2d_s": 224, "shvit_s1": 64, "skresnet18": 64,
    "swiftformer_xs": 224, "swinv2_tiny_window8_256": 256, "tnt_s_patch16_224": 224,
    "tresnet_m": 64, "vgg11": 64, "vit_tiny_r_s16_p8_224": 224,
    "vit_srelpos_small_patch16_224": 224, "samvit_base_patch16_224": 224,
    "vitamin_small_224": 224, "legacy_xception": 64, "deepseek_vit_412m": 224,
}  # fmt: skip
DAMAGED = {"gemma4_vit_167m"}
"""Files from which PyTorch's exporter takes constants that nodes still name."""


def torchvision_cases() -> Iterator[Case]:
    models = importlib.import_module("torchvision").models
    for name, size in TORCHVISION.items():
        options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        if name == "inception_v3":
            options["aux_logits"] = False  # only there in training, for images of 299
        yield Case(
            f"torchvision {name}",
            lambda name=name, options=options: getattr(models, name)(weights=None, **options),
            image(size),
        )
    for name, size in SEGMENTATION.items():
        make = getattr(models.segmentation, name)
        yield Case(
            f"torchvision {name}",
            lambda make=make: make(weights=None, weights_backbone=None),
            {"input": TensorSpec(("N", 3, size, size))} if "lraspp" in name else image(size),
        )
    for name, options in DETECTION.items():
        make = getattr(models.detection, name)
        options = dict(weights=None, weights_backbone=None, num_classes=5) | options
        yield Case(
            f"torchvision {name}",
            lambda make=make, options=options: Detector(make(**options)),
            {"image": TensorSpec((3, 128, 160))},
            recorded=True,
            detections=True,
        )
    for name, size in VIDEO.items():
        yield Case(
            f"torchvision {name}",
            lambda name=name: getattr(models.video, name)(weights=None),
            {"x": TensorSpec(("N", 3, 16, size, size))},
        )


def timm_cases() -> Iterator[Case]:
    timm = importlib.import_module("timm")
    for name, size in TIMM.items():
        yield Case(
            f"timm {name}",
            lambda name=name: timm.create_model(name, pretrained=False, exportable=True),
            image(size),
            optimized=name not in DAMAGED,
        )


FAMILIES = {
    "transformers": transformers_cases,
    "torchvision": torchvision_cases,
    "timm": timm_cases,
}
