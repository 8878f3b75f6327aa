"""Which engine is looked for, what is said where the store has none, and the command that builds it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cmudrn.checkpoint import read_checkpoint
from cmudrn.engines.flavors import PORTABLE, Flavor
from cmudrn.engines.manifest import Manifest
from cmudrn.engines.spec import EngineSpec
from cmudrn.errors import CheckpointError
from cmudrn.wording import listed

__all__ = ["Wanted"]

SHOWN = 8  # of a list within an error


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which engine is looked for."""

    spec: EngineSpec
    flavor: Flavor
    version: str  # in full: a plan loads in the version that built it
    targets: Sequence[str]  # that would do, the best one first: sm86, sm80+
    weights_sha256: str
    weights: str = "default"  # as --weights takes them, for the command that builds it
    device: str = "0"  # as --device takes it, for that command

    @classmethod
    def like(
        cls, manifest: Manifest, *, version: str, targets: Sequence[str], flavor: Flavor | None = None
    ) -> Wanted:
        """An engine as that one, by another version, or for another GPU. flavor: None is the same.

        Which file its weights were is known of the shipped ones alone: of others the command says FILE.
        """
        shipped = manifest.weights_sha256 == shipped_sha256()
        return cls(
            spec=manifest.spec,
            flavor=flavor or manifest.flavor,
            version=version,
            targets=targets,
            weights_sha256=manifest.weights_sha256,
            weights="default" if shipped else "FILE",
        )

    def why_none_of(self, engines: Sequence[Manifest]) -> str:
        """Leaves the engines that fit, one demand after the other, until none is left."""
        weights = f"of weights {self.weights_sha256[:12]}"
        library = f"of {self.flavor.value} {self.version}"
        demands: list[tuple[Sequence[str], Callable[[Manifest], str]]] = [
            ([_place(self.spec)], lambda one: _place(one.spec)),
            ([_types(self.spec)], lambda one: _types(one.spec)),
            ([library], lambda one: f"of {one.flavor.value} {one.version}"),
            ([f"for {target}" for target in self.targets], lambda one: f"for {one.target}"),
            ([weights], lambda one: f"of weights {one.weights_sha256[:12]}"),
        ]
        those = "those here"
        left = sorted(engines, key=lambda one: (one.spec.loops, one.spec.height, one.spec.width, one.key))
        for told, said in demands:
            have = list(dict.fromkeys(said(one) for one in left))
            left = [one for one in left if said(one) in told]
            if not left:
                break
            those = f"those {_place(self.spec)}"
        there = f"{those} are {listed(have, most=SHOWN)}" if have else "the store holds none"
        return f"no engine {' or '.join(told)}; {there}"

    def build_command(self, store: Path | None) -> str:
        """Beside loops and size it says only what isn't as usual. store: None is the usual one, too."""
        spec = self.spec
        parts = [f"cmudrn build-engine --loops {spec.loops} --size {spec.height}x{spec.width}"]
        usual = EngineSpec(loops=spec.loops, height=spec.height, width=spec.width)
        for name in ("batch", "precision", "pixel", "output"):
            value = getattr(spec, name)
            if value != getattr(usual, name):
                parts.append(f"--{name} {value.value if isinstance(value, Enum) else value}")
        if self.weights != "default":
            parts.append(f"--weights {shlex.quote(self.weights)}")
        parts.append(f"--flavor {self.flavor.value}")
        if self.flavor is Flavor.TENSORRT and self.device != "0":
            parts.append(f"--device {shlex.quote(self.device)}")
        if self.flavor is Flavor.RTX and PORTABLE not in self.targets:
            parts.append(f"--target {self.targets[0]}")
        if store is not None:
            parts.append(f"--store {shlex.quote(str(store))}")
        return " ".join(parts)


def shipped_sha256() -> str | None:
    """Of the default weights; None where they can't be read."""
    try:
        return read_checkpoint("default").sha256
    except CheckpointError:
        return None


def _place(spec: EngineSpec) -> str:
    return f"for T = {spec.loops} at {spec.height}x{spec.width}"


def _types(spec: EngineSpec) -> str:
    types = f"{spec.precision.value}, {spec.pixel.value} pixels, {spec.output.value} output"
    return f"with batch {spec.batch}, {types}"
