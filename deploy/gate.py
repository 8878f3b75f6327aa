"""Whether a photograph shows any rain or snow: what `--gate` leaves as it is.

Both branches look at a few windows at T = 1. What either of them would take off there, where they disagree,
and how much texture there is to be mistaken for weather make seven numbers; a logistic regression makes of
them the confidence that there is no weather. Its coefficients were fitted for one set of weights
(tools/ship_gate.py) and lie beside it. docs/gate.md holds what was measured.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmudrn.checkpoint import read_checkpoint, resolve_weights
from cmudrn.deploy.any_size import open_backend
from cmudrn.deploy.backend import Backend
from cmudrn.deploy.choice import choose_any_size
from cmudrn.deploy.job import CPU, BackendName, InferJob
from cmudrn.engines.plain_json import SHA256, Document
from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision, receptive_radius
from cmudrn.errors import CheckpointError
from cmudrn.images import Pixels

__all__ = ["TRACES", "Gate", "GateNumbers", "gate_path", "open_gate", "read_numbers", "traces"]

SCHEMA = 1  # one more whenever a trace or what is looked at changes: the numbers then are of another gate
LOOPS = 1  # T = 2 told no more apart (docs/gate.md), and costs four times as much
WINDOW_PX = 128
MOST_WINDOWS = 16  # of one photograph, laid evenly over it
RIM_PX = receptive_radius(LOOPS)  # of a window: its zero padding reaches so far, and no further
MOST_COEFFICIENT = 1e6  # beyond it, a file was not written by us
TRACES = (
    "peaks",  # what the brighter of the two takes off, at its 99.7th percentile: mean of the windows
    "least_peaks",  # the same in the window with the least: weather is everywhere, texture is not
    "least_disagreement",  # what rain takes off more than snow, at its 90th percentile: the least window
    "middle_disagreement",  # the same at its median: mean of the windows
    "contrast",  # standard deviation of a window's grey levels: mean
    "upright_edges",  # difference to the pixel on the right: mean
    "detail",  # root mean square of the Laplacian: mean
)

Planes = NDArray[np.float32]  # [N, H, W], grey, 0 to 1


@dataclass(frozen=True, kw_only=True)
class GateNumbers:
    """A fitted gate. Raises ValueError unless there is one coefficient for each of TRACES."""

    weights_sha256: str  # for no others
    coefficients: Mapping[str, float]  # of TRACES
    bias: float
    least_confidence: (
        float  # usually: at it, one of twenty photographs with weather was left alone in fitting
    )
    photos: int  # fitted on

    def __post_init__(self) -> None:
        if tuple(sorted(self.coefficients)) != tuple(sorted(TRACES)):
            raise ValueError(f"coefficients of {sorted(self.coefficients)}")

    def confidence(self, found: NDArray[np.float64]) -> float:
        """That there is no weather, 0 to 1; where half of all photographs are without."""
        evidence = self.bias + sum(
            self.coefficients[name] * one for name, one in zip(TRACES, found, strict=True)
        )
        return float(1 / (1 + math.exp(-min(max(evidence, -50.0), 50.0))))

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, data: bytes, name: str) -> GateNumbers:
        """Raises EngineError, with `name`, for what `to_json` would not write."""
        fields = Document(name, "gate", "python tools/ship_gate.py").fields(data)
        if fields.integer("schema", 0, 1 << 31) != SCHEMA:
            raise fields.wrong("schema")
        coefficients = fields.inner("coefficients")
        return cls(
            weights_sha256=fields.text("weights_sha256", SHA256),
            coefficients={
                trace: coefficients.number(trace, -MOST_COEFFICIENT, MOST_COEFFICIENT) for trace in TRACES
            },
            bias=fields.number("bias", -MOST_COEFFICIENT, MOST_COEFFICIENT),
            least_confidence=fields.number("least_confidence", 0, 1),
            photos=fields.integer("photos", 1, 1 << 31),
        )


def gate_path(weights: str) -> Path:
    """Where the gate of these weights lies, or would: beside them. Raises CheckpointError without weights."""
    return resolve_weights(weights).with_suffix(".gate.json")


def read_numbers(weights: str) -> GateNumbers:
    """Raises CheckpointError where these weights have no gate, EngineError for one that is damaged."""
    path, fix = gate_path(weights), f"leave --gate away, or fit one: python tools/ship_gate.py {weights}"
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise CheckpointError(f"{path}: no gate was fitted for these weights", fix=fix) from exc
    numbers = GateNumbers.from_json(data, str(path))
    if numbers.weights_sha256 != read_checkpoint(weights).sha256:
        raise CheckpointError(f"{path}: the gate of other weights", fix=fix)
    return numbers


class Gate:
    """Two open backends of float32 pixels at T = 1, one for each branch's image. Serves several threads.

    least: the confidence from which a photograph is left alone.
    """

    def __init__(self, rain: Backend, snow: Backend, numbers: GateNumbers, *, least: float) -> None:
        self._rain, self._snow, self._numbers, self.least = rain, snow, numbers, least
        self._turn = threading.Lock()  # not every backend lets two streams go on at once

    def confidence(self, pixels: Pixels) -> float:
        """That there is neither rain nor snow, 0 to 1.

        pixels: [H, W, 3] uint8 or uint16, a photograph or a frame. Raises ImageError where memory is short.
        """
        with self._turn:
            return self._numbers.confidence(traces(pixels, self._rain, self._snow))

    def leaves_alone(self, confidence: float) -> bool:
        return confidence >= self.least


@contextmanager
def open_gate(job: InferJob) -> Generator[Gate | None, None, None]:
    """The job's gate, with its backends; None where it has none. Raises what `read_numbers` raises.

    Beside engines, and on the CPU, our own kernels look, or what the job would take there.
    """
    if not job.gate:
        yield None
        return
    numbers = read_numbers(job.weights)
    least = numbers.least_confidence if job.gate_confidence is None else job.gate_confidence
    rain, snow = (backend_for(job, output) for output in (Output.RAIN, Output.SNOW))
    with rain, snow:
        yield Gate(rain, snow, numbers, least=least)


def backend_for(job: InferJob, output: Output) -> Backend:
    """Of one branch's image, to be entered: as told, but on the CPU where engines may restore."""
    told = job.backend
    if told.name in (BackendName.AUTO, BackendName.TENSORRT):
        told = replace(told, name=BackendName.AUTO, devices=(CPU,), engine=None)
    plain = replace(
        job,
        loops=LOOPS,
        output=output,
        precision=None,
        tile_px=None,
        overlap_px=None,
        layout=None,
        backend=told,
    )
    name = choose_any_size(plain) if told.name is BackendName.AUTO else told.name
    spec = EngineSpec(
        loops=LOOPS,
        height=WINDOW_PX,
        width=WINDOW_PX,
        batch=MOST_WINDOWS,
        precision=Precision.FP32,
        pixel=Pixel.FLOAT32,
        output=output,
    )
    return open_backend(name, plain, spec)


def traces(pixels: Pixels, rain: Backend, snow: Backend) -> NDArray[np.float64]:
    """What the gate decides by, one value for each of TRACES.

    pixels: [H, W, 3], uint8 or uint16. rain, snow: open, of float32 pixels, each for its branch's image.
    """
    shown = windows(pixels)
    (without_rain,), (without_snow,) = (list(branch.stream([shown])) for branch in (rain, snow))
    grey = inner(shown)
    off_rain, off_snow = grey - inner(without_rain), grey - inner(without_snow)
    peaks = percentiles(np.maximum(off_rain, off_snow), 99.7)[0]
    middle, high = percentiles(off_rain - off_snow, 50, 90)
    edges = np.abs(np.diff(grey, axis=2)).mean((1, 2))
    detail = np.sqrt(np.square(laplacian(grey)).mean((1, 2)))
    found = (
        peaks.mean(), peaks.min(), high.min(), middle.mean(),
        grey.std((1, 2)).mean(), edges.mean(), detail.mean(),
    )  # fmt: skip
    return logarithms(np.array(found, np.float64))


def windows(pixels: Pixels) -> NDArray[np.float32]:
    """[N, WINDOW_PX, WINDOW_PX, 3] in [0, 1], at most MOST_WINDOWS, none over another, evenly laid.

    A photograph that is smaller goes on as its own mirror image: to the network a dark frame is a thing seen.
    """
    short = [(0, max(0, WINDOW_PX - side)) for side in pixels.shape[:2]]
    if any(after for _, after in short):
        pixels = np.pad(pixels, (*short, (0, 0)), mode="symmetric")
    height, width = pixels.shape[:2]
    wanted_rows = round(math.sqrt(MOST_WINDOWS * height / width))
    rows = max(1, min(MOST_WINDOWS, height // WINDOW_PX, wanted_rows))
    columns = max(1, min(MOST_WINDOWS // rows, width // WINDOW_PX))
    cut = [
        pixels[top : top + WINDOW_PX, left : left + WINDOW_PX]
        for top in starts(height, rows)
        for left in starts(width, columns)
    ]
    batch: NDArray[np.float32] = np.stack(cut).astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    return batch


def starts(length: int, count: int) -> list[int]:
    """Of windows in the middle of equal parts."""
    return [int((part + 0.5) * length / count - WINDOW_PX / 2) for part in range(count)]


def inner(batch: NDArray[Any]) -> Planes:
    """Grey, without the rim."""
    planes: Planes = batch[:, RIM_PX:-RIM_PX, RIM_PX:-RIM_PX].mean(-1)
    return planes


def percentiles(planes: Planes, *shares: float) -> NDArray[np.float64]:
    """[share, window], shares in percent."""
    return np.asarray(np.percentile(planes.reshape(len(planes), -1), shares, axis=1))


def laplacian(grey: Planes) -> Planes:
    beside = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return np.asarray(4 * grey[:, 1:-1, 1:-1] - beside)


def logarithms(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of what is above a thousandth of the range, a quarter of a grey level; linear below, signs kept."""
    return np.asarray(np.sign(values) * np.log1p(1000 * np.abs(values)))
