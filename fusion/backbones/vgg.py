"""VGG-16 (Simonyan and Zisserman 2015, configuration D), convolutions only.

Parameter names `features.N.weight|bias` are those of torchvision's vgg16 checkpoint, which therefore drops in
(as safetensors); its classifier is not used, the embedding is the mean over space of the last maps.
"""

from __future__ import annotations

from torch import Tensor, nn

LAYERS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0 = max pooling


class Vgg16(nn.Module):
    """float32 [B, 3, H, W] → [B, 512, H/16, W/16] (the last pooling is left out: finer heat maps)."""

    width = 512

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in LAYERS:
            if width == 0:
                layers.append(nn.MaxPool2d(2, 2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)  # type: ignore[no-any-return]
