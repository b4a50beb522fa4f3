"""Networks of torchvision and timm, made small, with drawn weights in which each part counts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vgg import make_layers as vgg_layers

from heatproof import plugins

CLASSES = 5


@dataclass(frozen=True)
class Network:
    """A network as `explain --model` names it.

    Args:
        family: for the table.
        arch: dotted path, or `timm:NAME`.
        side: of the picture in pixels.
        layer: for class activation maps.
        layout: of the layer's output: "NCHW", "NHWC", or "tokens:P" with P tokens before the patches.
        arguments: of the constructor, to make it small.
    """

    family: str
    arch: str
    side: int
    layer: str
    layout: str = "NCHW"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.arch.removeprefix("torchvision.models.")

    def build(self) -> nn.Module:
        """The network without Heatproof, with weights under which every part changes the logits."""
        torch.manual_seed(0)
        if self.arch.startswith("timm:"):
            model = timm.create_model(self.arch.removeprefix("timm:"), num_classes=CLASSES, **self.arguments)
        else:
            builder = plugins.resolve(self.arch)
            model = builder(num_classes=CLASSES, **self.arguments)
        return calibrated(model.eval(), self.side)


def calibrated(model: nn.Module, side: int) -> nn.Module:
    """Gives parameters that a library starts at 0 (heads, scales of layers) values, and batch norms the statistics of a batch."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                spread = parameter[0].numel() ** -0.5
                if parameter.std() < 0.5 * spread:
                    parameter.copy_(torch.randn_like(parameter) * spread)
            elif parameter.ndim < 2:
                scale = 0.0 if name.endswith("bias") or parameter.abs().max() > 1e-3 else 0.5
                parameter.add_(scale + 0.1 * torch.randn_like(parameter))
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        kept = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train().momentum = 1.0
        if norms:
            # Flat colours and fine noise, as in the picture that is explained: no ReLU is dead there.
            model(0.4 * torch.randn(8, 3, 1, 1) + 0.1 * torch.randn(8, 3, side, side))
        for norm, momentum in zip(norms, kept, strict=True):
            norm.eval().momentum = momentum
            # Channels that hardly vary in this batch would be blown up.
            norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()))
    return model


def saved(model: nn.Module, network: Network, path: Path) -> Path:
    """Leaves the weights and what train-cls writes beside them."""
    torch.save(model.state_dict(), path)
    content = {
        "origin": {"model": {"arch": network.arch, "constructor_args": dict(network.arguments)}},
        "normalization": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "class_names": [f"class {number}" for number in range(CLASSES)],
    }
    path.with_suffix(".json").write_text(json.dumps(content))
    return path


def alexnet(num_classes: int) -> nn.Module:
    """torchvision's, with small linear layers."""
    with torch.device("meta"):
        model = models.alexnet(num_classes=num_classes)
    model.features.to_empty(device="cpu").apply(
        lambda module: isinstance(module, nn.Conv2d) and module.reset_parameters()
    )
    model.classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(256 * 36, 16), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(16, num_classes)
    )
    return model


def vgg(num_classes: int) -> nn.Module:
    """torchvision's, with few channels and small linear layers."""
    layers = vgg_layers([16, "M", 24, 24, "M", 32, 32, "M"], batch_norm=True)
    with torch.device("meta"):
        model = models.VGG(nn.Identity(), num_classes=num_classes, init_weights=False)
    model.features = layers
    model.classifier = nn.Sequential(nn.Linear(32 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, num_classes))
    return model


def convnext(num_classes: int) -> nn.Module:
    """torchvision's, with few channels."""
    return models.ConvNeXt([CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 1)], num_classes=num_classes)


def swin_v2(num_classes: int) -> nn.Module:
    """torchvision's, with few channels."""
    return SwinTransformer(
        [2, 2], 12, [2, 2], [2, 4], [4, 4], num_classes=num_classes, block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )  # fmt: skip


def tv(family, name, side, layer, layout="NCHW", **arguments):
    return Network(family, f"torchvision.models.{name}", side, layer, layout, arguments)


def tm(family, name, side, layer, layout="NCHW", **arguments):
    return Network(family, f"timm:{name}", side, layer, layout, arguments)


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
MINE = __name__
NETWORKS = (
    Network("AlexNet", f"{MINE}.alexnet", 64, "features.4"),
    Network("VGG", f"{MINE}.vgg", 32, "features.6"),
    tv("ResNet", "resnet18", 32, "layer1"),
    tv("ResNet", "resnet50", 32, "layer1.0.conv2", width_per_group=16),
    tm("ResNeXt", "resnext50_32x4d", 32, "layer1.0.conv2", channels=[16, 32, 48, 64]),
    tv("DenseNet", "densenet121", 32, "features.transition1.pool"),
    tv("GoogLeNet", "googlenet", 32, "inception3a.branch1", init_weights=False),
    tv("Inception", "inception_v3", 75, "Mixed_5b.branch1x1", init_weights=False),
    tv("MobileNet", "mobilenet_v2", 32, "features.3", width_mult=0.35),
    tv("MobileNet", "mobilenet_v3_small", 32, "features.3"),
    tm("MobileNet", "mobilenetv4_conv_small", 32, "blocks.0"),
    tv("EfficientNet", "efficientnet_b0", 32, "features.2"),
    tv("SqueezeNet", "squeezenet1_1", 33, "features.3.squeeze_activation"),
    tv("RegNet", "regnet_x_400mf", 32, "trunk_output.block1"),
    tv("RegNet", "regnet_y_400mf", 32, "trunk_output.block1"),
    tv("ShuffleNet", "shufflenet_v2_x0_5", 32, "stage2"),
    tv("MNASNet", "mnasnet0_5", 32, "layers.8"),
    Network("ConvNeXt", f"{MINE}.convnext", 32, "features.1.0.block.2", "NHWC"),
    tm("ConvNeXt", "convnext_tiny", 32, "stages.1.blocks.0.norm", "NHWC", depths=[1, 1, 1, 1], dims=[16, 24, 32, 40]),
    tm("ConvNeXt-V2", "convnextv2_atto", 32, "stages.1.blocks.0", depths=[1, 1, 1, 1], dims=[16, 24, 32, 40]),
    tv("Swin", "swin_transformer.SwinTransformer", 32, "features.3.1", "NHWC", patch_size=[2, 2], embed_dim=12,
       depths=[2, 2], num_heads=[2, 4], window_size=[4, 4]),
    tm("Swin", "swin_tiny_patch4_window7_224", 32, "layers.1.blocks.1", "NHWC", img_size=32, window_size=4, embed_dim=12,
       depths=[2, 2], num_heads=[2, 4]),
    Network("Swin-V2", f"{MINE}.swin_v2", 32, "features.3.1", "NHWC"),
    tm("Swin-V2", "swinv2_tiny_window8_256", 32, "layers.1.blocks.1", "NHWC", img_size=32, window_size=4, embed_dim=12,
       depths=[2, 2], num_heads=[2, 4]),
    tv("ViT", "vision_transformer.VisionTransformer", 32, "encoder.layers.encoder_layer_0", "tokens:1", image_size=32, patch_size=8,
       num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=48),
    tm("ViT", "vit_tiny_patch16_224", 32, "blocks.0", "tokens:1", **VIT),
    tm("ViT, registers", "vit_small_patch14_reg4_dinov2", 32, "blocks.0", "tokens:5", **VIT),
    tm("ViT, mean of patches", "vit_base_patch16_gap_224", 32, "blocks.0", "tokens:0", **VIT),
    tm("ViT, attention pool", "vit_base_patch16_siglip_224", 32, "blocks.0", "tokens:0", **VIT),
    tm("DeiT", "deit_tiny_patch16_224", 32, "blocks.0", "tokens:1", **VIT),
    tm("DeiT distilled", "deit_tiny_distilled_patch16_224", 32, "blocks.0", "tokens:2", **VIT),
    tm("DeiT-III", "deit3_small_patch16_224", 32, "blocks.0", "tokens:1", **VIT),
    tm("BEiT", "beit_base_patch16_224", 32, "blocks.0", "tokens:1", **VIT),
    tm("CaiT", "cait_xxs24_224", 32, "blocks.0", "tokens:0", **VIT),
    tm("EVA-02", "eva02_tiny_patch14_224", 32, "blocks.0", "tokens:1", **VIT),
    tm("LeViT", "levit_128s", 32, "stem.conv2", img_size=32),
    tm("XCiT", "xcit_nano_12_p16_224", 32, "blocks.0", "tokens:0", img_size=32, depth=2),
    tm("PVT-V2", "pvt_v2_b0", 32, "stages.1.blocks.0", "tokens:0", depths=[1, 1, 1, 1]),
    tm("PoolFormer", "poolformer_s12", 32, "stages.1.blocks.0"),
    Network("MLP-Mixer", "timm.models.mlp_mixer.MlpMixer", 32, "blocks.0", "tokens:0",
            {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_blocks": 2}),
    Network("ConvMixer", "timm.models.convmixer.ConvMixer", 32, "blocks.0", "NCHW", {"dim": 24, "depth": 2, "patch_size": 4}),
    tm("CoAtNet", "coatnet_nano_rw_224", 32, "stages.0.blocks.0", img_size=32),
    tv("MaxViT", "maxvit.MaxVit", 32, "blocks.0", input_size=[32, 32], stem_channels=8, partition_size=2, block_channels=[8, 16],
       block_layers=[1, 1], head_dim=4, stochastic_depth_prob=0.1),
    tm("MobileViT", "mobilevit_xxs", 32, "stages.1"),
    tm("EdgeNeXt", "edgenext_xx_small", 32, "stages.1"),
    tm("GhostNet", "ghostnet_050", 32, "blocks.2"),
    tm("RepVGG", "repvgg_a0", 32, "stages.0"),
)  # fmt: skip

LARGE = (
    "resnet18", "resnet50", "timm:resnext50_32x4d", "densenet121", "googlenet", "inception_v3", "mobilenet_v2", "efficientnet_b0",
    "timm:mobilenetv4_conv_small", "regnet_x_400mf", "regnet_y_400mf", "shufflenet_v2_x0_5", "mnasnet0_5", "timm:coatnet_nano_rw_224",
    "timm:repvgg_a0", "timm:mobilevit_xxs", "timm:ghostnet_050", "timm:poolformer_s12",
)  # fmt: skip
"""Networks that take seconds each."""
