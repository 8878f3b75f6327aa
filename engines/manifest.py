"""What is known of an engine: the JSON beside its plan, read as if an enemy had written it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, TypeVar

from cmudrn.engines.build import MOST_WORKSPACE_MB
from cmudrn.engines.flavors import Flavor
from cmudrn.engines.layers import LayerSummary
from cmudrn.engines.layout import Layout
from cmudrn.engines.spec import MOST, EngineSpec, Output, Pixel, Precision
from cmudrn.errors import CmudrnError, EngineError

__all__ = ["SCHEMA", "Frontend", "Manifest", "engine_key"]

SCHEMA = 1  # one more whenever a reader of the one before would misread it
MOST_BYTES = 1 << 20  # of a manifest: ours have two kilobytes
MOST_LEVELS = 16  # of objects in objects: a certificate has few, and Python's stack isn't for enemies to fill
MOST_CHARS = 200  # of one text
SHORT_LABELS = {Flavor.TENSORRT: "trt", Flavor.RTX: "rtx"}

SHA256 = re.compile(r"[0-9a-f]{64}")
VERSION = re.compile(r"[0-9]+(\.[0-9A-Za-z]+){1,5}")
TARGET = re.compile(r"sm[0-9]{2,3}\+?")
UTC_TIME = re.compile(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z")  # \d takes digits of all scripts
Choice = TypeVar("Choice", bound=Enum)
Value = TypeVar("Value")


class Frontend(str, Enum):
    """What handed the network to TensorRT."""

    ONNX = "onnx"  # our typed graph
    TORCH_TENSORRT = "torch-tensorrt"  # an exported PyTorch program


def engine_key(spec: EngineSpec, flavor: Flavor, version: str, target: str) -> str:
    """An engine's name, such as t3-500x500-b8-fp16-uint8-trt11.4-sm90."""
    return f"{spec}-{SHORT_LABELS[flavor]}{'.'.join(version.split('.')[:2])}-{target}"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about an engine that is not its plan."""

    spec: EngineSpec
    layout: Layout
    frontend: Frontend
    flavor: Flavor
    version: str  # of TensorRT or TensorRT-RTX
    target: str  # compute capability that it is for: sm89; sm80+: from 8.0 on
    gpu: str | None  # that it was built on; None: on none
    plan_sha256: str
    plan_bytes: int
    graph_sha256: str  # of the ONNX file or the exported program
    weights_sha256: str
    optimization_level: int | None  # None: the library's own
    workspace_mb: int | None  # None: the library's own
    built_at: str  # UTC, such as 2026-11-26T07:30:00Z
    seconds: float  # that the build took
    layers: LayerSummary
    parity: dict[str, Any] | None = field(default=None)  # what `cmudrn parity-check` certified

    @property
    def key(self) -> str:
        return engine_key(self.spec, self.flavor, self.version, self.target)

    def to_json(self) -> bytes:
        """Sorted, for people to read and to compare."""
        plain = {"schema": SCHEMA, **asdict(self), "layout": str(self.layout)}
        return json.dumps(plain, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Manifest:
        """Raises EngineError, with `name`, where a value is missing, or is none that `to_json` would write.

        What it doesn't know is left aside: a later version may say more within one schema.
        """
        fields = Fields(_parse(data, name), name)
        if fields.integer("schema", 0, 1 << 31) != SCHEMA:
            raise fields.wrong("schema", fix="update cmudrn, or build the engine again")
        spec, layers = fields.inner("spec"), fields.inner("layers")
        try:
            return cls(
                spec=EngineSpec(
                    **{name: spec.integer(name, 1, most) for name, most in MOST.items()},
                    precision=spec.choice("precision", Precision),
                    pixel=spec.choice("pixel", Pixel),
                    output=spec.choice("output", Output),
                ),
                layout=Layout.parse(fields.text("layout")),
                frontend=fields.choice("frontend", Frontend),
                flavor=fields.choice("flavor", Flavor),
                version=fields.text("version", VERSION),
                target=fields.text("target", TARGET),
                gpu=fields.maybe("gpu", fields.text),
                plan_sha256=fields.text("plan_sha256", SHA256),
                plan_bytes=fields.integer("plan_bytes", 1, 1 << 34),
                graph_sha256=fields.text("graph_sha256", SHA256),
                weights_sha256=fields.text("weights_sha256", SHA256),
                optimization_level=fields.maybe("optimization_level", lambda key: fields.integer(key, 0, 5)),
                workspace_mb=fields.maybe(
                    "workspace_mb", lambda key: fields.integer(key, 1, MOST_WORKSPACE_MB)
                ),
                built_at=fields.text("built_at", UTC_TIME),
                seconds=fields.number("seconds", 1e9),
                layers=LayerSummary(
                    kinds=layers.counts("kinds"),
                    computing=(computing := layers.integer("computing", 0, 1 << 31)),
                    in_precision=layers.integer("in_precision", 0, computing),
                    convolving=layers.integer("convolving", 0, computing),
                ),
                parity=fields.maybe("parity", lambda key: fields.inner(key).values),
            )
        except EngineError:
            raise
        except CmudrnError as exc:  # a layout or a spec that refuses itself
            raise fields.damaged(exc.what) from exc


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        if len(data) > MOST_BYTES:
            raise ValueError(f"{len(data)} bytes")
        # Decoded here: json.loads would guess at UTF-16 and take it, too.
        parsed = json.loads(
            data.decode(), object_pairs_hook=_each_once, parse_float=_finite, parse_constant=_finite
        )
        if not isinstance(parsed, dict):
            raise ValueError("not an object")
        if _deeper_than(MOST_LEVELS, parsed):
            raise ValueError(f"more than {MOST_LEVELS} levels")
    except (ValueError, RecursionError) as exc:
        raise EngineError(f"{name}: not a manifest: {exc}", fix="build the engine again") from exc
    return parsed


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Where a name comes twice, one reader takes the first and another the last."""
    parsed = dict(pairs)
    if len(parsed) < len(pairs):
        raise ValueError("a name comes twice in an object")
    return parsed


def _finite(text: str) -> float:
    """Of NaN, Infinity, and of 1e999, which is infinite as well."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _deeper_than(levels: int, value: object) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(levels - 1, one) for one in inner)


@dataclass(frozen=True)
class Fields:
    """Values of a JSON object, each of the type that is asked for, or an error that names it."""

    values: dict[str, Any]
    name: str  # the file's, for messages

    def damaged(self, what: str) -> EngineError:
        return EngineError(f"{self.name}: a damaged manifest: {what}", fix="build the engine again")

    def wrong(self, key: str, *, fix: str = "build the engine again") -> EngineError:
        shown = repr(self.values.get(key))[:60]
        return EngineError(f"{self.name}: a manifest with {key} = {shown}", fix=fix)

    def text(self, key: str, pattern: re.Pattern[str] | None = None) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or not _shown_in_a_line(value):
            raise self.wrong(key)
        if pattern and not pattern.fullmatch(value):
            raise self.wrong(key)
        return value

    def integer(self, key: str, least: int, most: int) -> int:
        value = self.values.get(key)
        if type(value) is not int or not least <= value <= most:  # True is an int, too
            raise self.wrong(key)
        return value

    def number(self, key: str, most: float) -> float:
        value = self.values.get(key)
        # Compared before it is converted: an int may be too large for a float.
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= most:
            raise self.wrong(key)
        return float(value)

    def choice(self, key: str, choices: type[Choice]) -> Choice:
        try:
            return choices(self.values.get(key))
        except ValueError:
            raise self.wrong(key) from None

    def maybe(self, key: str, read: Callable[[str], Value]) -> Value | None:
        """None where the value is null; a missing one is an error."""
        if key not in self.values:
            raise self.wrong(key)
        return None if self.values[key] is None else read(key)

    def inner(self, key: str) -> Fields:
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key)
        return Fields(value, self.name)

    def counts(self, key: str) -> Mapping[str, int]:
        inner = self.inner(key)
        if not all(_shown_in_a_line(kind) for kind in inner.values):
            raise self.wrong(key)
        return {kind: inner.integer(kind, 0, 1 << 31) for kind in inner.values}


def _shown_in_a_line(text: str) -> bool:
    """Not so with line ends, or escapes that a terminal obeys."""
    return len(text) <= MOST_CHARS and text.isprintable()
