"""Draw the images of the bundled models: PNGs of 32x32 pixels, in one folder per class where there are classes.

    faces      glyphs of a color emoji font, on white
    creatures  avatars of ten DiceBear styles; the class is the style
    letters    the capitals of many fonts, dark on white; the class is the letter

Faces need Debian's package fonts-noto-color-emoji, letters those in fonts.txt, and all of them requirements.txt.
Each function returns images by class, `{class: {name: image}}`, for training and for tests. The test images, which
training never sees, are avatars of other seeds and letters of other font families; faces have none.
"""

from __future__ import annotations

import io
import json
import logging
import string
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 32
Drawn = dict[str, dict[str, Image.Image]]

# ----------------------------------------------------------------------------
# Faces

EMOJI_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
EMOJI_SIZE = 109  # the one bitmap size that the font holds
GLYPH = (136, 128)

# Unicode ranges, both ends included.
FACES = [(0x2639, 0x263A), (0x1F600, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F925), (0x1F927, 0x1F92F)]
FACES += [(0x1F970, 0x1F976), (0x1F978, 0x1F97A), (0x1F9D0, 0x1F9D0), (0x1FAE0, 0x1FAE5), (0x1FAE8, 0x1FAE8)]


def draw_faces() -> tuple[Drawn, Drawn]:
    from fontTools.ttLib import TTFont

    font, side, drawn = ImageFont.truetype(EMOJI_FONT, EMOJI_SIZE), max(GLYPH), {}
    with TTFont(EMOJI_FONT) as table:
        points = sorted(table.getBestCmap())
    for point in points:
        if any(low <= point <= high for low, high in FACES):
            glyph = Image.new("RGBA", (side, side), "white")
            ImageDraw.Draw(glyph).text((0, (side - GLYPH[1]) // 2), chr(point), font=font, embedded_color=True)
            drawn[f"{point:05x}"] = glyph.convert("RGB")  # in full size: training resizes it
    return {"": drawn}, {}


# ----------------------------------------------------------------------------
# Creatures

# DiceBear's own styles in the public domain (CC0 1.0) that stay readable at 32 pixels.
STYLES = ["clay", "critters", "cutouts", "landscape", "marbles", "moods", "planets", "sprouts", "thumbs", "voxel-bot"]
TRAINING_SEEDS, TEST_SEEDS = 4000, 400  # of each style


def draw_creatures() -> tuple[Drawn, Drawn]:
    import dicebear_styles
    from dicebear import Style

    package = Path(next(iter(dicebear_styles.__path__)))
    training, test = {}, {}
    for name in STYLES:
        (path,) = package.rglob(f"{name}.json")
        definition = json.loads(path.read_text(encoding="utf-8"))
        if definition["meta"]["license"]["name"] != "CC0 1.0":
            raise SystemExit(f"{name} is no longer in the public domain: {definition['meta']['license']}")
        style = Style(definition)
        training[name] = {f"{seed:04d}": avatar(style, f"{name}-{seed}") for seed in range(TRAINING_SEEDS)}
        seeds = range(TRAINING_SEEDS, TRAINING_SEEDS + TEST_SEEDS)
        test[name] = {f"{seed:04d}": avatar(style, f"{name}-{seed}") for seed in seeds}
    return training, test


def avatar(style, seed: str) -> Image.Image:
    """Return the avatar of `seed` on white: drawn at twice the size, then averaged."""
    import resvg_py
    from dicebear import Avatar

    svg = str(Avatar(style, {"seed": seed}))
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE))))
    image = Image.new("RGBA", drawn.size, "white")
    image.alpha_composite(drawn.convert("RGBA"))
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)


# ----------------------------------------------------------------------------
# Letters

FONTS = "/usr/share/fonts"
MAX_STYLES = 4  # of a family: its bold, italic and so on
EVERY_TENTH = 10  # family is for tests
SAME_FONT = 0.03  # root mean square difference of all letters below which two fonts are the same
INSIDE, OVERSAMPLING = 27, 4  # pixels that the letters of a font fill at most; how much larger they are drawn
# No letters, though they say so: keys and displays, and other scripts at the places of the Latin letters.
NO_LETTERS = ("DSEG", "Linux Biolinum Keyboard", "Klingon", "Futhark")


def draw_letters(fonts: str = FONTS) -> tuple[Drawn, Drawn]:
    """`fonts`: a folder with the files of Debian's fonts-* packages. Fonts count whose own license field names the SIL
    Open Font License.
    """
    training, test = ({letter: {} for letter in string.ascii_uppercase} for _ in range(2))
    seen = np.zeros((0, 26 * SIDE * SIDE), np.float32)  # the letters of every training font
    families = sorted(ofl_families(Path(fonts)).items())
    held_out = families[::EVERY_TENTH]
    for family in [family for family in families if family not in held_out] + held_out:
        name, paths = family
        for i, path in enumerate(paths[:MAX_STYLES]):
            letters = font_letters(path)
            flat = np.stack([np.asarray(letter, np.float32) / 255 for letter in letters]).reshape(1, -1)
            is_new = not len(seen) or np.sqrt(((seen - flat) ** 2).mean(1)).min() > (
                SAME_FONT if family in held_out else 0
            )
            if any(letter.getextrema() == (255, 255) for letter in letters) or not is_new:
                continue  # blank, or known under another name
            if family not in held_out:
                seen = np.concatenate([seen, flat])
            for letter, image in zip(string.ascii_uppercase, letters, strict=True):
                (test if family in held_out else training)[letter][f"{name} {i}"] = image
    return training, test


def ofl_families(fonts: Path) -> dict[str, list[Path]]:
    """Return the files of each font family under the SIL Open Font License that has all capitals."""
    from fontTools.ttLib import TTFont, TTLibError

    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of every irregular table
    families: dict[str, list[Path]] = {}
    for path in sorted(path for path in fonts.rglob("*") if path.suffix.lower() in (".ttf", ".otf")):
        try:
            with path.open("rb") as file, TTFont(file, lazy=True) as font:  # it leaves a damaged file open
                characters = font.getBestCmap() or {}
                fields = {field: font["name"].getDebugName(field) or "" for field in (0, 1, 13, 14, 16)}
        except (TTLibError, KeyError):  # damaged, or without a name
            continue
        license = " ".join(fields[field] for field in (0, 13, 14))
        family = (fields[16] or fields[1]).replace("/", " ")
        is_free = "Open Font License" in license or "OFL" in license
        if is_free and all(map(characters.get, range(ord("A"), ord("Z") + 1))) and not family.startswith(NO_LETTERS):
            families.setdefault(family, []).append(path)
    return families


def font_letters(path: Path) -> list[Image.Image]:
    """Return the 26 capitals, dark on white, in one size and on one baseline, each with its advance width centered."""
    font = ImageFont.truetype(path, 100)
    boxes = [font.getbbox(letter, anchor="ls") for letter in string.ascii_uppercase]
    width = max(right - left for left, _, right, _ in boxes)
    height = max(box[3] for box in boxes) - min(box[1] for box in boxes)
    side = SIDE * OVERSAMPLING
    font = ImageFont.truetype(path, 100 * INSIDE * OVERSAMPLING / max(width, height, 1))
    boxes = [font.getbbox(letter, anchor="ls") for letter in string.ascii_uppercase]
    baseline = (side - min(box[1] for box in boxes) - max(box[3] for box in boxes)) / 2
    letters = []
    for letter, (left, _, right, _) in zip(string.ascii_uppercase, boxes, strict=True):
        image = Image.new("L", (side, side), "white")
        ImageDraw.Draw(image).text(((side - left - right) / 2, baseline), letter, font=font, fill="black", anchor="ls")
        letters.append(image.resize((SIDE, SIDE), Image.Resampling.BOX))
    return letters


# ----------------------------------------------------------------------------


def save(drawn: Drawn, folder: Path) -> int:
    """Write folder/<class>/<name>.png. Return the number of images."""
    images: Iterator = ((folder / label / name, image) for label, of in drawn.items() for name, image in of.items())
    count = 0
    for count, (path, image) in enumerate(images, 1):  # noqa: B007
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path.with_name(path.name + ".png"))
    return count
