"""Rain from a database of rendered streaks, as the paper's generator composes it.

The streaks: Garg & Nayar, "Photorealistic rendering of rain streaks", SIGGRAPH 2006 (Columbia database).
A file is white streaks on black; it is upscaled four times, its connected streaks are sorted by area, and
three layers of near, middle and far rain are summed onto the photograph. There is no haze.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyvips
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn.functional import interpolate

from cmudrn.errors import TrainingError, UsageError
from cmudrn.train.weather.streak_cache import Cut, recall
from cmudrn.train.weather.weathered import Image, Weathered, check_image

__all__ = [
    "SLANTED",
    "STRAIGHT",
    "RainRecipe",
    "StreakDatabase",
    "StreakLayer",
    "StreakParams",
    "is_held_out",
    "render_streaks",
    "streak_files",
]

Plane = NDArray[np.float32]  # [H, W]

UPSCALE = 4  # a file before its streaks are told apart
TOP_ROWS = 3  # cut off: the database's renderer leaves a line there
# To which slanted layers are turned beforehand. The generator draws any angle up to 15; seven steps are ours.
ANGLES_DEG = (-15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0)


@dataclass(frozen=True, kw_only=True)
class StreakLayer:
    """One depth of rain: steps of the paper's generator, whose values STRAIGHT and SLANTED hold."""

    files: int  # count: streak files drawn for an image
    area_px: tuple[int, int]  # streaks kept: area in pixels of the upscaled file
    blur_px: float  # sigma of the Gaussian blur, in pixels of the upscaled file
    scale: float  # ratio: size of the layer against the upscaled file
    crops: int  # count: random crops taken from each file
    strength: tuple[float, float]  # ratio: each crop is added times a number drawn evenly from here
    fit: bool = False  # resized to the image as a whole instead of cropped


@dataclass(frozen=True, kw_only=True)
class RainRecipe:
    """One of the two ways in which the paper's generator composes an image."""

    layers: tuple[StreakLayer, ...]  # dense, middle, sparse
    slanted: bool  # all layers turned by one angle of ANGLES_DEG, degrees


# Both as the generator of arXiv 2211.08290's rain has them, every number.
STRAIGHT = RainRecipe(
    slanted=False,
    layers=(
        StreakLayer(
            files=8, area_px=(0, 1000), blur_px=1, scale=0.25, crops=1, strength=(0.25, 0.45), fit=True
        ),
        StreakLayer(files=8, area_px=(800, 4000), blur_px=2, scale=0.5, crops=6, strength=(0.20, 0.35)),
        StreakLayer(files=3, area_px=(2000, 6000), blur_px=1, scale=1.0, crops=6, strength=(0.10, 0.20)),
    ),
)
SLANTED = RainRecipe(
    slanted=True,
    layers=(
        StreakLayer(files=32, area_px=(0, 500), blur_px=1, scale=0.25, crops=1, strength=(0.4, 0.8)),
        StreakLayer(files=2, area_px=(2000, 5000), blur_px=2, scale=0.25, crops=6, strength=(0.10, 0.25)),
        StreakLayer(files=2, area_px=(1000, 10000), blur_px=7, scale=0.25, crops=6, strength=(0.10, 0.25)),
    ),
)


def streak_files(folder: Path) -> list[Path]:
    """The database's files `<id>-<type>.png`, by number. Raises UsageError where there are none."""
    files = [path for path in folder.glob("*-*.png") if path.stem.replace("-", "").isdigit()]
    if not files:
        raise UsageError(
            f"{folder}: no streak files", fix="give the folder with <id>-<type>.png of the database"
        )
    return sorted(files, key=lambda path: tuple(int(part) for part in path.stem.split("-")))


def is_held_out(streak_file: Path) -> bool:
    """Whether the protocols own this streak file: every fifth streak is never trained on."""
    return int(streak_file.stem.split("-")[0]) % 5 == 0


def otsu_threshold(grey: NDArray[np.uint8]) -> int:
    """The grey level that separates best (Otsu 1979): pixels above it are streaks."""
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    below, levels = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = levels / below - (levels[-1] - levels) / above
        between = np.nan_to_num(below * above * gap**2)
    return int(np.argmax(between))


def cut_layers(path: Path, recipe: RainRecipe) -> list[NDArray[np.uint8]]:
    """One file's streaks, sorted into the recipe's layers; [h, w] uint8 each, at the layer's own scale.

    Raises TrainingError for a file that cannot be read to its end, or is too small to hold a streak.
    """
    try:
        # Of bytes: libvips remembers what it opened by name, and would not see that a file has changed.
        file = pyvips.Image.new_from_buffer(path.read_bytes(), "", fail_on="truncated")
        file = file.colourspace("b-w")[0].copy_memory()  # decoded here: it is opened by its header alone
    except (OSError, pyvips.Error) as exc:
        raise TrainingError(
            f"{path}: not readable as a streak file", fix="fetch it again or remove it"
        ) from exc
    if file.height <= TOP_ROWS:
        raise TrainingError(
            f"{path}: not a streak file, it is {file.width} wide and {file.height} high", fix="remove it"
        )
    file = file.crop(0, TOP_ROWS, file.width, file.height - TOP_ROWS)
    grey = file.resize(UPSCALE, kernel="cubic").cast("uchar").numpy()
    streaks, count = ndimage.label(grey > otsu_threshold(grey))
    areas = np.bincount(streaks.ravel(), minlength=count + 1)
    layers = []
    for layer in recipe.layers:
        kept = (areas >= layer.area_px[0]) & (areas <= layer.area_px[1])
        kept[0] = False  # the background
        streak = np.where(kept[streaks], grey, 0).astype(np.uint8)
        blurred = pyvips.Image.new_from_array(streak).gaussblur(layer.blur_px, precision="float")
        layers.append(blurred.resize(layer.scale).cast("uchar").numpy())
    return layers


def turn(layer: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """Turned about its centre, grown so that its corners leave the frame; the same shape."""
    turned = pyvips.Image.new_from_array(layer).similarity(
        angle=degrees, scale=1.4, interpolate=pyvips.Interpolate.new("bicubic")
    )
    height, width = layer.shape
    left, top = (turned.width - width) // 2, (turned.height - height) // 2
    pixels: NDArray[np.uint8] = turned.crop(left, top, width, height).numpy()
    return pixels


def cut_and_turn(path: Path, recipe: RainRecipe) -> Cut:
    """The layers, at each angle of a slanted recipe; from the cache where that was done before.

    Raises TrainingError as cut_layers does.
    """

    def make() -> Cut:
        layers = cut_layers(path, recipe)
        return (
            [[turn(layer, angle) for layer in layers] for angle in ANGLES_DEG] if recipe.slanted else [layers]
        )

    try:
        file = path.read_bytes()
    except OSError:
        return make()  # which says what is wrong
    libvips = ".".join(str(pyvips.version(part)) for part in range(3))
    return recall(make, file, repr(recipe).encode(), libvips.encode(), Path(__file__).read_bytes())


class StreakDatabase:
    """A recipe's layers of many files, cut once and kept as uint8 so that rendering only crops and adds.

    Memory: 3.4 MB a file for STRAIGHT; 0.5 MB a file and angle for SLANTED.
    """

    def __init__(self, recipe: RainRecipe, layers: Sequence[Sequence[NDArray[np.uint8]]]) -> None:
        self.recipe = recipe
        self.layers = layers  # [file][layer]; for a slanted recipe [file * angles + angle][layer]

    @classmethod
    def load(cls, files: Sequence[Path], recipe: RainRecipe, *, workers: int = 2) -> StreakDatabase:
        """Cuts every file, about half a second each, or takes what was cut of it before."""
        # Threads, not processes: libvips and numpy let go of the lock, and libvips dies in a forked child.
        with ThreadPoolExecutor(workers) as pool:
            cut = pool.map(partial(cut_and_turn, recipe=recipe), files)
            return cls(recipe, [turned for file in cut for turned in file])

    def draw_files(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Indices of all files, in random order; slanted ones all of one angle."""
        if not self.recipe.slanted:
            return rng.permutation(len(self.layers))
        files = rng.permutation(len(self.layers) // len(ANGLES_DEG))
        return files * len(ANGLES_DEG) + rng.integers(len(ANGLES_DEG))


def resize_to(layer: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    image = pyvips.Image.new_from_array(layer)
    pixels: NDArray[np.uint8] = image.resize(width / image.width, vscale=height / image.height).numpy()
    return pixels[:height, :width]


def draw_crop(
    layer: NDArray[np.uint8], height: int, width: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A random window; a layer that is too small is first enlarged until it covers the image."""
    grow = max(height / layer.shape[0], width / layer.shape[1])
    if grow > 1:
        layer = resize_to(layer, int(np.ceil(layer.shape[0] * grow)), int(np.ceil(layer.shape[1] * grow)))
    top = rng.integers(layer.shape[0] - height + 1)
    left = rng.integers(layer.shape[1] - width + 1)
    return layer[top : top + height, left : left + width]


@dataclass(frozen=True, kw_only=True)
class StreakParams:
    """What one rain of the database is drawn with. The defaults are the generator; the factors are ours."""

    recipe: RainRecipe
    severity: float = 1.0  # ratio, on all layers; 1 is the generator's own, 0.2 light rain, 0 none
    scale: float = 1.0  # ratio: size of streaks against the generator's; 1 suits photographs of 500 pixels
    whole: bool = True  # over a whole image, over which a `fit` layer is stretched; False: a crop of one


def render_streaks(
    clean: Image, database: StreakDatabase, rng: np.random.Generator, params: StreakParams | None = None
) -> Weathered:
    """Lay the database's rain over a photograph.

    clean: [H, W, 3] float32 in [0, 1]; left as it is. rng: the only chance; equal state, equal bytes.
    params: by default those of the generator; the recipe must be the one the database was cut for.
    Returns the rainy image, the layer added, [H, W, 3] float32 each, and params.
    Raises ImageError for another shape or dtype.
    Source: the generator of arXiv 2211.08290's rain, after Garg & Nayar 2006.
    """
    check_image(clean)
    params = params or StreakParams(recipe=database.recipe)
    height, width = clean.shape[:2]
    if params.scale == 1:
        rain = sum_layers(height, width, database, rng, whole=params.whole)
    else:
        small = (int(np.ceil(height / params.scale)), int(np.ceil(width / params.scale)))
        rain = enlarge(sum_layers(*small, database, rng, whole=params.whole), height, width)
    rain *= np.float32(params.severity / 255)
    rainy = np.minimum(clean + rain[..., None], np.float32(1))
    return Weathered(rainy, rainy - clean, params)


def sum_layers(
    height: int, width: int, database: StreakDatabase, rng: np.random.Generator, *, whole: bool
) -> Plane:
    """The recipe's layers over each other, [height, width] float32, in steps of 8 bits."""
    rain = np.zeros((height, width), np.float32)
    order = database.draw_files(rng)
    for depth, layer in enumerate(database.recipe.layers):
        drawn, order = order[: layer.files], np.roll(order, -layer.files)
        for file in drawn:
            streaks = database.layers[file][depth]
            for _ in range(layer.crops):
                fit = layer.fit and whole
                window = resize_to(streaks, height, width) if fit else draw_crop(streaks, height, width, rng)
                rain += window * np.float32(rng.uniform(*layer.strength))
    return rain


def enlarge(rain: Plane, height: int, width: int) -> Plane:
    """Resized, antialiased where it shrinks. By torch: libvips would hang in a forked worker."""
    resized = interpolate(
        torch.from_numpy(rain)[None, None], (height, width), mode="bilinear", antialias=True
    )
    plane: Plane = resized[0, 0].numpy()
    return plane
