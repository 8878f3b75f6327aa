"""What `cmudrn parity-check` certifies: how far a backend's images are from PyTorch's in float32."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, replace

from cmudrn.engines.plain_json import SHA256, UTC_TIME, Document, Fields
from cmudrn.engines.spec import MOST, Output, Pixel, Precision
from cmudrn.errors import UsageError

__all__ = [
    "CHECK_AGAIN",
    "ParityCertificate",
    "ParityLimits",
    "Subject",
    "read_certificate",
    "shown_db",
    "write_certificate",
]

SCHEMA = 1  # one more whenever a reader of the one before would misread it
CHECK_AGAIN = "run `cmudrn parity-check` again"
BACKEND = re.compile(r"[a-z0-9]{1,20}")
MOST_IMAGES = 1 << 31
# One float32 value of 100 million, wrong by the least there is: 1,000 dB. Grey levels end at 255.
MOST_DB, MOST_LEVELS = 2000.0, 255.0


@dataclass(frozen=True, kw_only=True)
class ParityLimits:
    """What a certificate must keep to be trusted. Differences are in grey levels of 255, for floats too."""

    psnr_db: float = 50.0  # of the worst image, at least
    difference: float = 3.0  # grey levels, of the worst pixel, at most
    truth_db: float = 0.01  # by which the mean PSNR to the ground truth may change, up or down

    def __post_init__(self) -> None:
        options = {
            "psnr_db": "--min-psnr",
            "difference": "--max-difference",
            "truth_db": "--max-truth-change",
        }
        for name, option in options.items():
            value, most = getattr(self, name), MOST_LEVELS if name == "difference" else MOST_DB
            if not 0 <= value <= most:  # NaN neither
                raise UsageError(f"{option} {value:g}", fix=f"give 0 to {most:g}")

    @classmethod
    def from_fields(cls, fields: Fields) -> ParityLimits:
        """Raises EngineError."""
        return cls(
            psnr_db=fields.number("psnr_db", 0, MOST_DB),
            difference=fields.number("difference", 0, MOST_LEVELS),
            truth_db=fields.number("truth_db", 0, MOST_DB),
        )


@dataclass(frozen=True, kw_only=True)
class ParityCertificate:
    """Measured on the same images through a backend and through the PyTorch model in float32.

    Raises ValueError where the figures contradict each other, or are not numbers.
    """

    images: int
    images_sha256: str  # of the pixels that went in, in order
    psnr_min_db: float | None  # of the worst image; None: all are equal
    psnr_mean_db: float | None  # of those that differ; None: all are equal
    difference: float  # grey levels, of the worst pixel
    off_by_one: float  # share of values, 0 to 1, that are one grey level off; floats are rounded to levels
    off_by_more: float  # share of values, 0 to 1, that are more than one off
    truth_psnr_change_db: float | None  # mean, with the backend less with the model; None: no ground truth
    truth_ssim_change: float | None
    measured_at: str  # UTC, such as 2026-11-26T07:30:00Z; all else is equal when it is measured again
    measured_on: str = ""  # a backend's label, such as TensorRT-RTX 1.7.1.116 on NVIDIA L4
    limits: ParityLimits = field(default_factory=ParityLimits)

    def __post_init__(self) -> None:
        told = (self.psnr_min_db, self.psnr_mean_db, self.truth_psnr_change_db, self.truth_ssim_change)
        numbers = [self.difference, self.off_by_one, self.off_by_more, *(x for x in told if x is not None)]
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a figure that is not finite")  # NaN is below no limit: it would pass them all
        if (self.psnr_min_db is None) != (self.psnr_mean_db is None):
            raise ValueError("one PSNR without the other")
        if (self.psnr_min_db is None) != (self.difference == 0):
            raise ValueError(f"equal images that differ by {self.difference:g}, or the reverse")
        if (self.psnr_min_db or 0) > (self.psnr_mean_db or 0):
            raise ValueError("the worst PSNR above the mean")
        if self.off_by_one + self.off_by_more > 1 or (self.difference == 0 and max(numbers[1:3]) > 0):
            raise ValueError("shares that don't add up")
        if (self.truth_psnr_change_db is None) != (self.truth_ssim_change is None):
            raise ValueError("a truth for one figure and not for the other")

    @property
    def failures(self) -> list[str]:
        """What is beyond the limits, in words; empty for a certificate that is passed."""
        limits, found = self.limits, []
        if self.psnr_min_db is not None and self.psnr_min_db < limits.psnr_db:
            found.append(f"PSNR {shown_db(self.psnr_min_db)} dB, below {limits.psnr_db:g}")
        if self.difference > limits.difference:
            found.append(f"a pixel is {self.difference:g} grey levels off, more than {limits.difference:g}")
        if self.truth_psnr_change_db is not None and abs(self.truth_psnr_change_db) > limits.truth_db:
            found.append(f"PSNR to the truth changes by {self.truth_psnr_change_db:+.3f} dB")
        return found

    @property
    def passed(self) -> bool:
        """Within its limits."""
        return not self.failures

    @property
    def device(self) -> str:
        """What it was measured on, without the library: a GPU's name, for an engine."""
        return self.measured_on.partition(" on ")[2]

    @property
    def difference_to_allow(self) -> int | None:
        """The least whole limit of the largest difference that it would pass with.

        None where it passes as it is, where more is beyond the limits, or a value is as wrong as can be.
        """
        if self.passed or self.difference >= MOST_LEVELS:
            return None
        allowed = math.ceil(self.difference)
        return allowed if replace(self, limits=replace(self.limits, difference=allowed)).passed else None

    @classmethod
    def from_fields(cls, fields: Fields) -> ParityCertificate:
        """Raises EngineError for a value that is missing, out of its range, or in conflict with another."""
        try:
            return cls(
                images=fields.integer("images", 1, MOST_IMAGES),
                images_sha256=fields.text("images_sha256", SHA256),
                psnr_min_db=fields.maybe("psnr_min_db", lambda key: fields.number(key, 0, MOST_DB)),
                psnr_mean_db=fields.maybe("psnr_mean_db", lambda key: fields.number(key, 0, MOST_DB)),
                difference=fields.number("difference", 0, MOST_LEVELS),
                off_by_one=fields.number("off_by_one", 0, 1),
                off_by_more=fields.number("off_by_more", 0, 1),
                truth_psnr_change_db=fields.maybe(
                    "truth_psnr_change_db", lambda key: fields.number(key, -MOST_DB, MOST_DB)
                ),
                truth_ssim_change=fields.maybe("truth_ssim_change", lambda key: fields.number(key, -2, 2)),
                measured_at=fields.text("measured_at", UTC_TIME),
                measured_on=fields.text("measured_on"),
                limits=ParityLimits.from_fields(fields.inner("limits")),
            )
        except ValueError as exc:
            raise fields.document.damaged(str(exc)) from exc


def shown_db(psnr_db: float) -> str:
    """Cut, not rounded: 49.999 is not 50."""
    return f"{math.floor(psnr_db * 100) / 100:.2f}"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a certificate is about where there is no engine: a library that runs the network at any size."""

    backend: str  # native, onnx, torch or openvino
    version: str  # of the library, in full
    precision: Precision
    loops: int
    pixel: Pixel
    output: Output
    weights_sha256: str
    device: str  # the processor's model, or the GPU's

    @property
    def key(self) -> str:
        """The certificate's name in the store, such as parity-openvino-2026.4-bf16-t3-uint8-12d6.."""
        release = ".".join(re.split(r"[^0-9A-Za-z]+", self.version)[:2])
        whole = hashlib.sha256("\n".join([self.version, self.device]).encode()).hexdigest()
        parts = ["parity", self.backend, release, self.precision.value, f"t{self.loops}", self.pixel.value]
        parts += [] if self.output is Output.FUSED else [self.output.value]
        return "-".join([*parts, self.weights_sha256[:12], whole[:8]])

    @classmethod
    def from_fields(cls, fields: Fields) -> Subject:
        """Raises EngineError."""
        return cls(
            backend=fields.text("backend", BACKEND),
            version=fields.text("version"),
            precision=fields.choice("precision", Precision),
            loops=fields.integer("loops", 1, MOST["loops"]),
            pixel=fields.choice("pixel", Pixel),
            output=fields.choice("output", Output),
            weights_sha256=fields.text("weights_sha256", SHA256),
            device=fields.text("device"),
        )


def write_certificate(subject: Subject, certificate: ParityCertificate) -> bytes:
    """As a file of its own; sorted, for people to read and to compare."""
    plain = {"schema": SCHEMA, "subject": asdict(subject), "parity": asdict(certificate)}
    return json.dumps(plain, indent=1, sort_keys=True).encode() + b"\n"


def read_certificate(data: bytes, name: str) -> tuple[Subject, ParityCertificate]:
    """Raises EngineError, with `name`, where a value is missing, or none that `write_certificate` writes."""
    fields = Document(name, "certificate", CHECK_AGAIN).fields(data)
    if fields.integer("schema", 0, 1 << 31) != SCHEMA:
        raise fields.wrong("schema", fix=f"update cmudrn, or {CHECK_AGAIN}")
    return Subject.from_fields(fields.inner("subject")), ParityCertificate.from_fields(fields.inner("parity"))
