"""The stages of each architecture, first layers first: gradual unfreezing goes back through them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from fusion.backbones.inception import InceptionV3
from fusion.backbones.networks import SmallCnn
from fusion.backbones.vgg import Vgg16
from fusion.errors import BadInput


def stages(network: nn.Module, name: str = "") -> list[list[nn.Module]]:
    """The network's modules in four to six stages; every parameter that is used is in one of them.

    name  of the encoder, for the message
    Raises BadInput for a network whose stages are not named here.
    """
    found = _named(network)
    if not found or not all(found):
        raise BadInput(
            f"the stages of the image encoder {name or type(network).__name__!r} are not known, which "
            "finetune='gradual' thaws one by one: name them, from the first to the last, in "
            "fusion/backbones/stages.py, or train with finetune='head' or 'none'"
        )
    return found


def _named(network: nn.Module) -> list[list[nn.Module]]:
    """Likewise; [] or empty stages where they are not known."""
    net: Any = network
    if isinstance(network, SmallCnn):
        return [[layer] for layer in net.layers]
    if isinstance(network, Vgg16):
        return _split(net.features, nn.MaxPool2d)
    if isinstance(network, InceptionV3):
        named = list(net.named_children())
        return [
            [m for name, m in named if name.startswith(p)] for p in ("Conv", "Mixed_5", "Mixed_6", "Mixed_7")
        ]
    if hasattr(net, "features"):  # DenseNet
        if not isinstance(net.features, nn.Module):
            return []
        named = list(net.features.named_children())
        blocks = [[m for n, m in named if n in (f"denseblock{i}", f"transition{i}")] for i in (1, 2, 3)]
        last = [m for n, m in named if n in ("denseblock4", "norm5")]
        return [[m for n, m in named if n in ("conv0", "norm0", "relu0", "pool0")], *blocks, last]
    if not hasattr(net, "model"):
        return []
    if hasattr(net.model, "embedder"):  # ResNet
        return [[net.model.embedder], *([stage] for stage in net.model.encoder.stages)]
    if hasattr(net.model, "embeddings"):  # ConvNeXt; its last norm is behind the maps and not used
        return [[net.model.embeddings], *([stage] for stage in net.model.encoder.stages)]
    if not hasattr(net.model, "_blocks"):
        return []
    blocks = list(net.model._blocks)  # EfficientNet; its classifier is not used
    quarter = -(-len(blocks) // 4)
    middle = [blocks[i : i + quarter] for i in range(0, len(blocks), quarter)]
    return [[net.model._conv_stem, net.model._bn0], *middle, [net.model._conv_head, net.model._bn1]]


def _split(layers: Iterable[nn.Module], kind: type[nn.Module]) -> list[list[nn.Module]]:
    """Runs of layers, each ending before one of that kind."""
    found: list[list[nn.Module]] = [[]]
    for layer in layers:
        if isinstance(layer, kind):
            found.append([])
        found[-1].append(layer)
    return found
