"""Render the example pictures of the page: Noto Color Emoji things on painted backgrounds.

    python examples/make.py            # rewrites examples/*.jpg and page/icon.png

The emoji are from Google's Noto Color Emoji font (SIL Open Font License 1.1; Debian package
fonts-noto-color-emoji); everything else is painted here, so that the pictures are free to redistribute.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
GLYPH = 109  # the one size at which the font has bitmaps
WIDTH, HEIGHT = 720, 540
Colour = tuple[int, int, int]


def gradient(top: Colour, bottom: Colour, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A vertical blend from `top` to `bottom`."""
    width, height = size
    t = np.linspace(0, 1, height)[:, None, None]
    rows = (1 - t) * np.array(top) + t * np.array(bottom)  # (height, 1, 3)
    return Image.fromarray(np.broadcast_to(rows, (height, width, 3)).astype(np.uint8))


def blend(picture: Image.Image, colour: Colour, mask: Image.Image, strength: float = 1.0) -> None:
    """Lay `colour` over `picture` where `mask` is bright."""
    picture.paste(Image.new("RGB", picture.size, colour), mask=mask.point(lambda v: round(v * strength)))


def shape(draw, blur: float = 0.0) -> Image.Image:
    """A soft mask: `draw(ImageDraw)` at twice the size, shrunk (smooth edges) and blurred."""
    mask = Image.new("L", (2 * WIDTH, 2 * HEIGHT))
    draw(ImageDraw.Draw(mask))
    return mask.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).filter(ImageFilter.GaussianBlur(blur))


def oval(x: float, y: float, rx: float, ry: float, blur: float = 0.0) -> Image.Image:
    box = [2 * (x - rx), 2 * (y - ry), 2 * (x + rx), 2 * (y + ry)]
    return shape(lambda d: d.ellipse(box, fill=255), blur)


def polygon(points: list[tuple[float, float]], blur: float = 0.0) -> Image.Image:
    return shape(lambda d: d.polygon([(2 * x, 2 * y) for x, y in points], fill=255), blur)


def box(x0: float, y0: float, x1: float, y1: float, blur: float = 0.0, radius: float = 0.0) -> Image.Image:
    corners = [2 * x0, 2 * y0, 2 * x1, 2 * y1]
    return shape(lambda d: d.rounded_rectangle(corners, 2 * radius, fill=255), blur)


def hills(base: float, height: float, period: float, phase: float) -> Image.Image:
    """Everything below a wavy line."""
    xs = np.arange(0, WIDTH + 8, 4)
    ys = base - height * (np.sin(xs / period + phase) + 0.4 * np.sin(2.3 * xs / period + 2 * phase))
    return polygon([(0, HEIGHT), *zip(xs.tolist(), ys.tolist(), strict=True), (WIDTH, HEIGHT)])


def grain(
    picture: Image.Image, rng: np.random.Generator, amount: float, stretch: tuple[int, int] = (1, 1)
) -> Image.Image:
    """Fine noise, drawn out by `stretch` (columns, rows) to look like grass or wood."""
    columns, rows = stretch
    noise = rng.normal(0, 1, (-(-HEIGHT // rows), -(-WIDTH // columns)))
    noise = np.kron(noise, np.ones((rows, columns)))[:HEIGHT, :WIDTH, None]
    return Image.fromarray(np.clip(np.asarray(picture) + amount * noise, 0, 255).astype(np.uint8))


def cloud(picture: Image.Image, x: float, y: float, size: float) -> None:
    for dx, dy, r in ((-1.1, 0.1, 0.6), (-0.4, -0.2, 0.8), (0.4, -0.1, 0.7), (1.1, 0.1, 0.5), (0, 0.3, 1.1)):
        puff = oval(x + dx * size, y + dy * size, r * size, 0.55 * r * size, size / 7)
        blend(picture, (255, 255, 255), puff, 0.75)


def thing(emoji: str, height: float, mirror: bool = False, turn: float = 0.0) -> Image.Image:
    """One emoji, RGBA, trimmed to what is drawn and scaled to `height` pixels."""
    font = ImageFont.truetype(FONT, GLYPH)
    glyph = Image.new("RGBA", (180, 180))
    ImageDraw.Draw(glyph).text((20, 20), emoji, font=font, embedded_color=True)
    glyph = glyph.crop(glyph.getbbox())
    glyph = ImageOps.mirror(glyph) if mirror else glyph
    scale = height / glyph.height
    glyph = glyph.resize((round(scale * glyph.width), round(height)), Image.Resampling.LANCZOS)
    return glyph.rotate(turn, Image.Resampling.BICUBIC, expand=True) if turn else glyph


def put(
    picture: Image.Image,
    emoji: str,
    x: float,
    foot: float,
    height: float,
    *,
    mirror: bool = False,
    turn: float = 0.0,
    shadow: float = 0.45,
) -> None:
    """Stand an emoji on the line `foot`, centred on `x`, with a soft shadow under it."""
    glyph = thing(emoji, height, mirror, turn)
    if shadow:
        ground = oval(x + 0.06 * height, foot - 2, 0.46 * glyph.width, 0.07 * height, 0.05 * height)
        blend(picture, (20, 24, 30), ground, shadow)
    picture.paste(glyph, (round(x - glyph.width / 2), round(foot - glyph.height)), glyph)


def meadow(rng: np.random.Generator) -> Image.Image:
    picture = gradient((112, 178, 235), (226, 241, 250))
    blend(picture, (255, 244, 200), oval(600, 80, 130, 130, 45), 0.8)
    for x, y, size in ((130, 90, 52), (400, 60, 36), (520, 150, 30)):
        cloud(picture, x, y, size)
    blend(picture, (150, 196, 140), hills(300, 26, 110, 0.4))
    blend(picture, (122, 184, 104), hills(335, 16, 160, 2.1))
    grass = grain(gradient((132, 196, 92), (74, 146, 60)), rng, 9, (1, 7))
    picture.paste(grass, mask=hills(365, 8, 190, 4.0))
    for _ in range(46):
        x, y = rng.uniform(0, WIDTH), rng.uniform(390, HEIGHT)
        colour = ((250, 250, 245), (250, 214, 90), (240, 150, 180))[rng.integers(3)]
        blend(picture, colour, oval(x, y, 2 + 2 * (y - 380) / 160, 2 + 1.5 * (y - 380) / 160, 0.6))
    put(picture, "🐕", 165, 455, 190, mirror=True)
    put(picture, "🐈", 560, 460, 175)
    put(picture, "⚽", 360, 500, 92)
    return picture


def table(rng: np.random.Generator) -> Image.Image:
    picture = gradient((246, 232, 214), (232, 208, 182))
    blend(picture, (255, 250, 240), oval(180, 60, 260, 160, 80), 0.8)
    wood = grain(grain(gradient((190, 132, 84), (140, 88, 50)), rng, 7, (90, 2)), rng, 4, (24, 1))
    picture.paste(wood, mask=box(-10, 290, WIDTH + 10, HEIGHT + 10))
    for y in (365, 450):
        blend(picture, (90, 54, 30), box(-10, y, WIDTH + 10, y + 2, 1), 0.5)
    blend(picture, (70, 44, 26), box(-10, 288, WIDTH + 10, 292, 3), 0.5)
    put(picture, "🍌", 130, 420, 165)
    put(picture, "🍎", 320, 405, 140)
    put(picture, "🍎", 455, 480, 145)
    put(picture, "🍐", 600, 420, 170)
    return picture


def street(rng: np.random.Generator) -> Image.Image:
    picture = gradient((150, 196, 232), (248, 232, 214))
    cloud(picture, 560, 70, 46)
    x = -20.0
    walls = ((214, 138, 112), (236, 206, 156), (150, 172, 190), (226, 178, 140), (178, 160, 190))
    for number in range(7):
        width, top = rng.uniform(100, 140), rng.uniform(70, 150)
        blend(picture, walls[number % len(walls)], box(x, top, x + width, 320))
        for row in np.arange(top + 22, 270, 46):
            for column in np.arange(x + 16, x + width - 24, 34):
                blend(picture, (255, 246, 214), box(column, row, column + 18, row + 26, radius=2), 0.85)
        x += width
    blend(picture, (196, 192, 186), box(-10, 296, WIDTH + 10, 330))
    road = grain(gradient((104, 108, 116), (74, 78, 86)), rng, 5)
    picture.paste(road, mask=box(-10, 328, WIDTH + 10, HEIGHT + 10))
    for dash in range(-20, WIDTH, 120):
        blend(picture, (244, 240, 226), box(dash, 424, dash + 66, 431, 0.6, 2), 0.9)
    put(picture, "🚌", 170, 392, 150)
    put(picture, "🚗", 530, 396, 92)
    put(picture, "🚗", 200, 518, 104, mirror=True)
    put(picture, "🚗", 510, 522, 108, mirror=True)
    return picture


def night(rng: np.random.Generator) -> Image.Image:
    picture = gradient((14, 20, 52), (70, 74, 130))
    for _ in range(130):
        x, y, r = rng.uniform(0, WIDTH), rng.uniform(0, 300), rng.uniform(0.6, 1.7)
        blend(picture, (250, 246, 224), oval(x, y, r, r, 0.4), rng.uniform(0.3, 1))
    blend(picture, (240, 230, 180), oval(580, 100, 110, 110, 50), 0.35)
    blend(picture, (36, 44, 84), hills(345, 22, 90, 1.0))
    snow = gradient((120, 134, 186), (196, 206, 236))
    picture.paste(snow, mask=hills(400, 12, 150, 3.0))
    put(picture, "🌙", 580, 165, 130, shadow=0)
    put(picture, "🌲", 90, 425, 210)
    put(picture, "🌲", 215, 410, 160)
    put(picture, "🏠", 400, 440, 185)
    put(picture, "🦊", 600, 505, 130)
    return picture


def sea(rng: np.random.Generator) -> Image.Image:
    picture = gradient((142, 206, 240), (236, 246, 246))
    cloud(picture, 150, 70, 42)
    cloud(picture, 560, 100, 34)
    water = gradient((70, 176, 204), (10, 62, 122))
    picture.paste(water, mask=hills(215, 5, 34, 0.0))
    for ray in range(5):
        x = 90 + 140 * ray
        blend(
            picture,
            (190, 236, 246),
            polygon([(x, 225), (x + 46, 225), (x - 40, 500), (x - 130, 500)], 18),
            0.22,
        )
    sand = grain(gradient((226, 204, 150), (206, 178, 120)), rng, 6)
    picture.paste(sand, mask=hills(500, 9, 80, 1.5))
    for _ in range(26):
        x, y, r = rng.uniform(0, WIDTH), rng.uniform(260, 460), rng.uniform(2, 6)
        blend(picture, (226, 246, 252), ImageChops.subtract(oval(x, y, r, r), oval(x, y, r - 1.4, r - 1.4)), 0.7)
    put(picture, "⛵", 350, 240, 165, shadow=0)
    put(picture, "🐠", 170, 390, 110, shadow=0)
    put(picture, "🐠", 545, 365, 100, mirror=True, shadow=0)
    put(picture, "🐙", 385, 515, 125)
    return picture


def room(rng: np.random.Generator) -> Image.Image:
    picture = gradient((206, 222, 226), (232, 238, 234))
    blend(picture, (255, 253, 246), box(60, 50, 250, 250, radius=6))
    picture.paste(gradient((150, 204, 240), (226, 242, 250)), mask=box(72, 62, 238, 238, radius=3))
    blend(picture, (255, 253, 246), box(151, 50, 159, 250))
    blend(picture, (255, 253, 246), box(60, 146, 250, 153))
    floor = grain(gradient((214, 178, 138), (176, 134, 96)), rng, 5, (60, 2))
    picture.paste(floor, mask=box(-10, 372, WIDTH + 10, HEIGHT + 10))
    blend(picture, (250, 250, 246), box(-10, 358, WIDTH + 10, 373))
    blend(picture, (196, 92, 86), oval(350, 470, 290, 56, 1.5))
    blend(picture, (232, 190, 170), oval(350, 470, 250, 44, 1.5))
    for x, top, turn in ((420, 70, 6), (570, 30, -6)):
        put(picture, "🎈", x, top + 190, 190, turn=turn, shadow=0)
    put(picture, "🧸", 300, 485, 185)
    put(picture, "🪑", 590, 470, 220)
    return picture


SCENES = {"meadow": meadow, "table": table, "street": street, "night": night, "sea": sea, "room": room}


def favicon() -> Image.Image:
    """The snake, for the browser's tab."""
    icon = Image.new("RGBA", (96, 96))
    snake = thing("🐍", 92)
    icon.paste(snake, (round(48 - snake.width / 2), 2), snake)
    return icon


def main() -> None:
    here = Path(__file__).resolve().parent
    favicon().save(here.parent / "page" / "icon.png", optimize=True)
    for name, paint in SCENES.items():
        picture = paint(np.random.default_rng(7))
        # a little soft light from above ties the things to their background
        picture = Image.blend(picture, ImageChops.screen(picture, gradient((46, 42, 34), (0, 0, 0))), 0.6)
        path = here / f"{name}.jpg"
        picture.save(path, quality=86, optimize=True, progressive=True)
        print(f"{path.name} {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
