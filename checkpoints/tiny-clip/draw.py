"""Image-caption pairs, drawn: characters in many fonts, handwriting-like digits, and shapes.

Every picture starts as a mask on a 96x96 canvas. It is distorted, coloured, often taken through a coarse resolution,
and ends as uint8 [32, 32, 3]. No outside image is used. Everything is a function of the seed.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE, CANVAS = 32, 96
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = string.ascii_uppercase + string.ascii_lowercase
SHAPES = ("circle", "ring", "square", "triangle", "star", "cross", "diamond", "heart", "arrow", "hexagon", "crescent")
COLOURS = {
    "black": (15, 15, 15),
    "white": (242, 242, 242),
    "grey": (128, 128, 128),
    "red": (205, 35, 35),
    "green": (40, 150, 55),
    "blue": (40, 70, 200),
    "yellow": (235, 210, 45),
    "orange": (235, 130, 30),
    "purple": (130, 50, 160),
}
COLOUR_NAMES = tuple(COLOURS)

# Pen paths of digits in a unit box (x to the right, y down): the ways in which people write them. Each variant is a
# list of strokes, each stroke the points that a smooth curve passes through.
STROKES: dict[int, list[list[list[tuple[float, float]]]]] = {
    0: [
        [[(0.55, 0.0), (0.15, 0.2), (0.1, 0.6), (0.3, 0.97), (0.7, 0.95), (0.9, 0.6), (0.85, 0.2), (0.55, 0.0)]],
        [[(0.45, 0.03), (0.1, 0.35), (0.15, 0.8), (0.5, 1.0), (0.85, 0.75), (0.85, 0.25), (0.5, 0.02), (0.35, 0.1)]],
    ],
    1: [
        [[(0.5, 0.0), (0.5, 0.5), (0.5, 1.0)]],
        [[(0.25, 0.25), (0.4, 0.13), (0.55, 0.0)], [(0.55, 0.0), (0.55, 0.5), (0.55, 1.0)]],
        [[(0.2, 0.3), (0.4, 0.15), (0.55, 0.0)], [(0.55, 0.0), (0.55, 1.0)], [(0.25, 1.0), (0.85, 1.0)]],
        [[(0.6, 0.0), (0.5, 0.5), (0.4, 1.0)]],
        [[(0.1, 0.45), (0.35, 0.3), (0.6, 0.0)], [(0.6, 0.0), (0.6, 0.5), (0.6, 1.0)]],
    ],
    2: [
        [
            [(0.12, 0.25), (0.3, 0.03), (0.65, 0.03), (0.82, 0.25), (0.65, 0.55), (0.35, 0.8), (0.1, 1.0)],
            [(0.1, 1.0), (0.5, 0.98), (0.9, 0.98)],
        ],
        [
            [
                (0.15, 0.2),
                (0.4, 0.0),
                (0.75, 0.1),
                (0.75, 0.4),
                (0.5, 0.7),
                (0.2, 0.95),
                (0.1, 0.85),
                (0.3, 0.8),
                (0.6, 0.95),
                (0.95, 0.92),
            ]
        ],
    ],
    3: [
        [
            [(0.15, 0.12), (0.45, 0.0), (0.8, 0.15), (0.7, 0.4), (0.4, 0.47)],
            [(0.4, 0.47), (0.75, 0.55), (0.85, 0.8), (0.5, 1.0), (0.1, 0.88)],
        ],
        [
            [(0.15, 0.02), (0.5, 0.02), (0.82, 0.02)],
            [(0.82, 0.02), (0.6, 0.22), (0.4, 0.42)],
            [(0.4, 0.42), (0.75, 0.5), (0.85, 0.78), (0.5, 1.0), (0.12, 0.88)],
        ],
    ],
    4: [
        [
            [(0.6, 0.0), (0.35, 0.35), (0.05, 0.65)],
            [(0.05, 0.65), (0.5, 0.65), (0.95, 0.65)],
            [(0.65, 0.3), (0.65, 0.65), (0.65, 1.0)],
        ],
        [
            [(0.7, 0.0), (0.4, 0.35), (0.08, 0.68)],
            [(0.08, 0.68), (0.5, 0.68), (0.92, 0.68)],
            [(0.7, 0.0), (0.7, 0.5), (0.7, 1.0)],
        ],
        [
            [(0.2, 0.0), (0.15, 0.3), (0.2, 0.5), (0.5, 0.52), (0.8, 0.48)],
            [(0.8, 0.0), (0.78, 0.5), (0.75, 1.0)],
        ],
        [
            [(0.35, 0.0), (0.2, 0.3), (0.1, 0.55)],
            [(0.1, 0.55), (0.5, 0.57), (0.95, 0.55)],
            [(0.75, 0.2), (0.7, 0.6), (0.6, 1.0)],
        ],
    ],
    5: [
        [
            [(0.85, 0.02), (0.5, 0.02), (0.2, 0.03)],
            [(0.2, 0.03), (0.17, 0.25), (0.15, 0.45)],
            [(0.15, 0.45), (0.5, 0.37), (0.85, 0.55), (0.8, 0.85), (0.45, 1.0), (0.1, 0.9)],
        ],
        [
            [
                (0.9, 0.0),
                (0.55, 0.02),
                (0.35, 0.08),
                (0.25, 0.4),
                (0.5, 0.42),
                (0.75, 0.6),
                (0.7, 0.9),
                (0.35, 1.0),
                (0.1, 0.92),
            ]
        ],
    ],
    6: [
        [
            [
                (0.7, 0.0),
                (0.35, 0.25),
                (0.12, 0.65),
                (0.3, 0.97),
                (0.7, 0.97),
                (0.87, 0.72),
                (0.6, 0.52),
                (0.25, 0.62),
                (0.15, 0.75),
            ]
        ],
        [
            [
                (0.4, 0.0),
                (0.22, 0.3),
                (0.15, 0.7),
                (0.35, 1.0),
                (0.7, 0.95),
                (0.78, 0.7),
                (0.5, 0.55),
                (0.22, 0.68),
            ]
        ],
    ],
    7: [
        [[(0.1, 0.03), (0.5, 0.03), (0.9, 0.03)], [(0.9, 0.03), (0.65, 0.45), (0.4, 1.0)]],
        [
            [(0.1, 0.03), (0.5, 0.03), (0.9, 0.03)],
            [(0.9, 0.03), (0.65, 0.45), (0.45, 1.0)],
            [(0.3, 0.52), (0.6, 0.5), (0.9, 0.48)],
        ],
        [
            [(0.1, 0.15), (0.3, 0.02), (0.6, 0.1), (0.85, 0.03)],
            [(0.85, 0.03), (0.65, 0.5), (0.6, 1.0)],
            [(0.35, 0.55), (0.9, 0.5)],
        ],
        [[(0.1, 0.2), (0.12, 0.03)], [(0.12, 0.03), (0.5, 0.03), (0.85, 0.03)], [(0.85, 0.03), (0.6, 0.5), (0.5, 1.0)]],
    ],
    8: [
        [
            [
                (0.75, 0.12),
                (0.45, 0.0),
                (0.2, 0.2),
                (0.45, 0.45),
                (0.78, 0.68),
                (0.7, 0.95),
                (0.35, 0.98),
                (0.2, 0.72),
                (0.5, 0.47),
                (0.78, 0.25),
                (0.72, 0.1),
            ]
        ],
        [
            [(0.5, 0.47), (0.22, 0.3), (0.35, 0.02), (0.68, 0.03), (0.78, 0.28), (0.5, 0.47)],
            [(0.5, 0.47), (0.15, 0.7), (0.3, 0.98), (0.7, 0.98), (0.85, 0.7), (0.5, 0.47)],
        ],
    ],
    9: [
        [
            [(0.8, 0.2), (0.5, 0.0), (0.18, 0.2), (0.3, 0.48), (0.65, 0.45), (0.82, 0.15)],
            [(0.82, 0.15), (0.8, 0.55), (0.72, 1.0)],
        ],
        [
            [(0.8, 0.25), (0.55, 0.02), (0.2, 0.15), (0.25, 0.45), (0.6, 0.48), (0.8, 0.25)],
            [(0.8, 0.25), (0.8, 0.65), (0.6, 0.97), (0.2, 0.95)],
        ],
    ],
}


@dataclass(frozen=True)
class Picture:
    """One drawn image, what it shows and a caption; -1 stands for what the caption leaves open."""

    image: np.ndarray  # uint8 [32, 32, 3]
    caption: str
    shows: tuple[int, int, int]  # subject, foreground colour, background colour
    says: tuple[int, int, int]  # the same, as far as the caption tells


SUBJECTS = tuple(f"digit {d}" for d in range(10)) + tuple(f"letter {c}" for c in LETTERS) + SHAPES


def draw(rng: np.random.Generator) -> Picture:
    """One picture: 60% digits (most of them handwritten), 20% letters, 20% shapes."""
    kind = rng.choice(3, p=(0.6, 0.2, 0.2))
    if kind == 0:
        subject = int(rng.integers(10))
        mask = _handwritten(subject, rng) if rng.random() < 0.7 else _printed(str(subject), rng)
    elif kind == 1:
        letter = int(rng.integers(len(LETTERS)))
        subject, mask = 10 + letter, _printed(LETTERS[letter], rng)
    else:
        shape = int(rng.integers(len(SHAPES)))
        subject, mask = 10 + len(LETTERS) + shape, _shape(SHAPES[shape], rng)
    front, back = _two_colours(rng)
    image = _render(_fit(mask, rng), front, back, rng)
    caption, says = _caption(subject, front, back, rng)
    return Picture(image, caption, (subject, front, back), says)


def draw_many(seed: int, count: int) -> list[Picture]:
    """``count`` pictures; equal seeds give equal pictures."""
    rng = np.random.default_rng(seed)
    return [draw(rng) for _ in range(count)]


def _handwritten(digit: int, rng: np.random.Generator) -> Image.Image:
    variants = STROKES[digit]
    strokes = variants[rng.integers(len(variants))]
    wobble = rng.uniform(0.01, 0.055)
    aspect = rng.uniform(0.45, 0.95)
    slant, turn = rng.normal(0.0, 0.16), rng.normal(0.0, 0.12)
    turn_matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = turn_matrix @ np.array([[aspect, -slant], [0.0, 1.0]])
    bend = rng.normal(0.0, 0.06, size=(2, 2))
    width = rng.uniform(5.0, 15.0)
    mask = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(mask)
    joints: dict[tuple[float, float], np.ndarray] = {}
    for stroke in strokes:
        points = []
        for point in stroke:  # strokes that meet in a point keep meeting there
            joints.setdefault(point, np.array(point) - 0.5 + rng.normal(0.0, wobble, 2))
            points.append(joints[point])
        curve = _smooth(np.array(points))
        curve = curve + np.stack([bend[0, 0] * curve[:, 1] ** 2, bend[1, 1] * curve[:, 0] ** 2], axis=1) * 2
        path = [tuple(p) for p in (curve @ matrix.T) * (CANVAS * 0.62) + CANVAS / 2]
        pen.line(path, fill=255, width=round(width), joint="curve")
        for x, y in (path[0], path[-1]):
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return mask


def _smooth(points: np.ndarray, steps: int = 8) -> np.ndarray:
    """A Catmull-Rom curve through the points."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate([*pieces, points[-1:]])


@cache
def _fonts() -> tuple[ImageFont.FreeTypeFont, ...]:
    """The text fonts that matplotlib carries: DejaVu, STIX and Computer Modern."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = [p for p in sorted(folder.glob("*.ttf")) if p.stem.startswith(("DejaVu", "STIXGeneral", "cm"))]
    symbols = ("cmex10", "cmsy10", "cmmi10", "Display")
    return tuple(ImageFont.truetype(str(p), 64) for p in names if not any(s in p.stem for s in symbols))


def _printed(character: str, rng: np.random.Generator) -> Image.Image:
    fonts = _fonts()
    mask = Image.new("L", (CANVAS, CANVAS), 0)
    font = fonts[rng.integers(len(fonts))]
    outline = int(rng.integers(0, 3)) if rng.random() < 0.5 else 0
    ImageDraw.Draw(mask).text(
        (CANVAS / 2, CANVAS / 2), character, fill=255, font=font, anchor="mm", stroke_width=outline
    )
    return _affine(mask, rng, turn=0.14, slant=0.16)


def _shape(name: str, rng: np.random.Generator) -> Image.Image:
    mask = Image.new("L", (CANVAS, CANVAS), 0)
    pen = ImageDraw.Draw(mask)
    centre, radius = CANVAS / 2, CANVAS * 0.33
    box = (centre - radius, centre - radius, centre + radius, centre + radius)
    if name in ("circle", "ring", "crescent"):
        pen.ellipse(box, fill=255)
        if name != "circle":
            inner = radius * (rng.uniform(0.5, 0.75) if name == "ring" else 0.9)
            shift = 0.0 if name == "ring" else radius * rng.uniform(0.35, 0.55)
            pen.ellipse((centre - inner + shift, centre - inner, centre + inner + shift, centre + inner), fill=0)
    else:
        pen.polygon([(centre + radius * x, centre + radius * y) for x, y in _outline(name)], fill=255)
        if name in ("square", "triangle", "diamond", "hexagon") and rng.random() < 0.3:
            inner = rng.uniform(0.5, 0.7) * radius
            pen.polygon([(centre + inner * x, centre + inner * y) for x, y in _outline(name)], fill=0)
    return _affine(mask, rng, turn=0.2, slant=0.08)


def _outline(name: str) -> list[tuple[float, float]]:
    def around(count: int, start: float = -90.0, radii: tuple[float, ...] = (1.0,)) -> list[tuple[float, float]]:
        angles = np.radians(start + 360.0 * np.arange(count) / count)
        return [(radii[i % len(radii)] * np.cos(a), radii[i % len(radii)] * np.sin(a)) for i, a in enumerate(angles)]

    if name == "heart":
        t = np.linspace(0, 2 * np.pi, 40)
        x, y = np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
        return list(zip(x, y, strict=True))
    if name == "cross":
        a = 0.33
        quarter = [(-a, -1.0), (a, -1.0), (a, -a)]
        turns = [((1, 0), (0, 1)), ((0, -1), (1, 0)), ((-1, 0), (0, -1)), ((0, 1), (-1, 0))]
        return [(m[0][0] * x + m[0][1] * y, m[1][0] * x + m[1][1] * y) for m in turns for x, y in quarter]
    if name == "arrow":
        return [(-1, -0.25), (0.1, -0.25), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.25), (-1, 0.25)]
    return {
        "square": around(4, -45.0),
        "triangle": around(3),
        "diamond": [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)],
        "hexagon": around(6, 0.0),
        "star": around(10, -90.0, (1.0, 0.42)),
    }[name]


def _affine(mask: Image.Image, rng: np.random.Generator, turn: float, slant: float) -> Image.Image:
    angle, shear, stretch = rng.normal(0.0, turn), rng.normal(0.0, slant), np.exp(rng.normal(0.0, 0.18))
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [[stretch, shear], [0, 1]]
    centre = np.full(2, CANVAS / 2)
    offset = centre - matrix @ centre
    coefficients = (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])
    mask = mask.transform(mask.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return _elastic(mask, rng) if rng.random() < 0.3 else mask


def _elastic(mask: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A smooth random warp on a 3x3 grid of cells."""
    knots = np.linspace(0, CANVAS, 4)
    grid = np.stack(np.meshgrid(knots, knots, indexing="xy"), axis=-1)
    warped = grid + rng.normal(0.0, 0.035 * CANVAS, grid.shape)
    cells = []
    for i in range(3):
        for j in range(3):
            target = (int(knots[j]), int(knots[i]), int(knots[j + 1]), int(knots[i + 1]))
            corners = (warped[i, j], warped[i + 1, j], warped[i + 1, j + 1], warped[i, j + 1])
            cells.append((target, tuple(float(v) for corner in corners for v in corner)))
    return mask.transform(mask.size, Image.Transform.MESH, cells, Image.Resampling.BILINEAR)


def _fit(mask: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crops to the drawing and puts it, at its own aspect, into the square with a random margin and place."""
    box = mask.getbbox() or (0, 0, CANVAS, CANVAS)
    mask = mask.crop(box)
    margin = rng.uniform(0.0, 0.12) if rng.random() < 0.6 else rng.uniform(0.0, 0.5)
    scale = CANVAS * (1 - margin) / max(mask.size)
    width, height = (max(1, round(side * scale)) for side in mask.size)
    mask = mask.resize((width, height), Image.Resampling.BILINEAR)
    square = Image.new("L", (CANVAS, CANVAS), 0)
    room_x, room_y = CANVAS - width, CANVAS - height
    left, top = (int(np.clip(room * (0.5 + rng.normal(0, 0.12)), 0, room)) for room in (room_x, room_y))
    square.paste(mask, (left, top))
    return square


def _two_colours(rng: np.random.Generator) -> tuple[int, int]:
    if rng.random() < 0.3:
        return 1, 0  # white on black
    plain = rng.random() < 0.45
    pool = 3 if plain else len(COLOURS)
    front, back = rng.choice(pool, size=2, replace=False)
    return int(front), int(back)


def _render(mask: Image.Image, front: int, back: int, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.3:
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3.0)))
    coarse = 8 if rng.random() < 0.4 else int(rng.integers(8, SIZE + 1))
    alpha = np.asarray(mask.resize((coarse, coarse), Image.Resampling.BOX), np.float32)[..., None] / 255.0
    alpha = np.clip(alpha * rng.uniform(0.8, 1.35), 0.0, 1.0)  # pressure of the pen
    colours = [np.array(COLOURS[COLOUR_NAMES[c]], np.float32) for c in (front, back)]
    spread = 5.0 if max(front, back) < 3 else 22.0
    jitter = [
        c + (rng.normal(0, spread, 3) if i > 2 else rng.normal(0, spread))
        for c, i in zip(colours, (front, back), strict=True)
    ]
    if back == 0 and rng.random() < 0.6:
        jitter[1] = np.zeros(3, np.float32)
    pixels = alpha * jitter[0] + (1 - alpha) * jitter[1]
    if rng.random() < 0.5:
        pixels = pixels + rng.normal(0.0, rng.uniform(0.0, 14.0), (coarse, coarse, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _caption(subject: int, front: int, back: int, rng: np.random.Generator) -> tuple[str, tuple[int, int, int]]:
    kind, name = _name(subject, rng)
    colour = f"{COLOUR_NAMES[front]} "
    tell_front, tell_back = rng.random() < 0.3, rng.random() < 0.2
    what = f"{colour if tell_front else ''}{kind}{' ' if kind else ''}{name}"
    if kind == "digit" and not tell_front and rng.random() < 0.2:
        what = f"handwritten {what}"
    article = "the" if kind and what.startswith(kind) else _a(what)
    openings = ("", "a photo of ", "a picture of ", "a drawing of ", "an image of ")
    opening = openings[rng.integers(len(openings))] if rng.random() < 0.7 else ""
    ending = f" on {_a(COLOUR_NAMES[back])} {COLOUR_NAMES[back]} background" if tell_back else ""
    says = (subject, front if tell_front else -1, back if tell_back else -1)
    return f"{opening}{article} {what}{ending}", says


def _a(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _name(subject: int, rng: np.random.Generator) -> tuple[str, str]:
    if subject < 10:
        kind = "digit" if rng.random() < 0.7 else "number"
        return kind, str(subject) if rng.random() < 0.5 else DIGIT_WORDS[subject]
    if subject < 10 + len(LETTERS):
        letter = LETTERS[subject - 10]
        case = "capital" if letter.isupper() else "small"
        return f"{case} letter", letter.lower()
    return "", SHAPES[subject - 10 - len(LETTERS)]
