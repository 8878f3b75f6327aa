"""Compiled engines on disk: `<key>.engine`, the raw plan, and `<key>.json`, what is known of it.

A plan is code that runs on the GPU and in the process: it is handed out only where its bytes are those of its
manifest, and where nobody else could have written either. An engine is there from the moment that its
manifest is, so a kill at any point leaves the old engine, the new one, or none.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from cmudrn.engines.flavors import PORTABLE, Flavor, Library
from cmudrn.engines.manifest import MOST_BYTES, Manifest, engine_key
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.trusted_files import BUILD_AGAIN, fill, locked, read_trusted, sync
from cmudrn.errors import EngineError
from cmudrn.files import cache_folder, replacing
from cmudrn.wording import listed

__all__ = ["Engine", "EngineStore", "Wanted"]

KEY = re.compile(r"[A-Za-z0-9.+-]+")
# What prune may take: a folder that was named by mistake keeps its other files.
NAMED_AS_AN_ENGINE = re.compile(r"t[0-9]+-[0-9]+x[0-9]+-b[0-9]+-[A-Za-z0-9.+-]+")
TIMINGS = re.compile(r"timing-[A-Za-z0-9.+-]+\.cache")
TEMPORARY = re.compile(r"\..*\.[0-9]+-[0-9a-f]{8}\.part")
LEFT_BEHIND_S = 3600  # a temporary file as old as that has no writer any more
MOST_TIMINGS_BYTES = 1 << 28
DIGEST_BYTES = 32  # SHA-256, before the timings
OWNER_ONLY = 0o600  # until `fill` opens it to readers: nobody else can have it open for writing
SHOWN = 8  # of a list within an error


class Engine(NamedTuple):
    """A plan that may be handed to TensorRT, and what is known of it."""

    manifest: Manifest
    plan: bytes


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which engine is looked for."""

    spec: EngineSpec
    flavor: Flavor
    version: str  # in full: a plan loads in the version that built it
    targets: Sequence[str]  # that would do, the best one first: sm86, sm80+
    weights_sha256: str
    weights: str = "default"  # as --weights takes them, for the command that builds it


@dataclass(frozen=True)
class EngineStore:
    """A folder of engines, made by the first one. Raises EngineError for all that goes wrong."""

    folder: Path

    @classmethod
    def default(cls, told: Path | None = None) -> EngineStore:
        """The folder told, else that of CMUDRN_STORE, else one in the user's cache."""
        return cls(told or Path(os.environ.get("CMUDRN_STORE") or cache_folder() / "engines"))

    def put(self, plan: bytes, manifest: Manifest) -> Path:
        """Stores an engine in place of one of the same key, and returns where its plan is.

        Raises EngineError where it can't be written; what was there is there still.
        """
        if (len(plan), hashlib.sha256(plan).hexdigest()) != (manifest.plan_bytes, manifest.plan_sha256):
            raise ValueError(f"the manifest of {manifest.key} is that of another plan")
        described, text = self._manifest_path(manifest.key), manifest.to_json()
        Manifest.from_json(text, manifest.key)  # nothing is stored that can't be read again
        with self._alone(), replacing(described, mode=OWNER_ONLY) as described_file:
            fill(described_file, text)
            with replacing(self._plan_path(manifest.key), mode=OWNER_ONLY) as plan_file:
                fill(plan_file, plan)
                # Both are on the disk, under other names. From here until the end there is no engine: a
                # manifest never stands beside a plan of another, not after a power cut either.
                described.unlink(missing_ok=True)
                sync(self.folder)
            sync(self.folder)
        sync(self.folder)
        return self._plan_path(manifest.key)

    def manifests(self) -> tuple[list[Manifest], list[tuple[str, EngineError]]]:
        """All engines by key, and those that can't be read: their names, and why not. Plans aren't read."""
        with self._apart_from_builders():
            return self._manifests()

    def manifest(self, key: str) -> Manifest:
        """What is known of an engine. Raises EngineError where there is none, or it isn't to be trusted."""
        path = self._manifest_path(key)
        manifest = Manifest.from_json(read_trusted(path, most=MOST_BYTES), str(path))
        if manifest.key != key:
            raise EngineError(f"{path}: the manifest of {manifest.key}", fix=BUILD_AGAIN)
        return manifest

    def load(self, key: str) -> Engine:
        """An engine, checked. Raises EngineError where it isn't to be trusted."""
        with self._apart_from_builders():
            return self._load(key)

    def verify(self, key: str) -> Manifest:
        """As `load`, without keeping the plan."""
        return self.load(key).manifest

    def find(self, wanted: Wanted) -> Engine:
        """The engine that is exactly this one, for the first of its targets that there is one for.

        Raises EngineError with the nearest reason why there is none, and the command that builds it.
        """
        exact = wanted.spec, wanted.flavor, wanted.version, wanted.weights_sha256
        with self._apart_from_builders():
            whole, broken = self._manifests()
            found = {
                one.target: one.key
                for one in whole
                if (one.spec, one.flavor, one.version, one.weights_sha256) == exact
            }
            for target in wanted.targets:
                if target in found:
                    return self._load(found[target])
        keys = {engine_key(wanted.spec, wanted.flavor, wanted.version, target) for target in wanted.targets}
        for name, error in broken:
            if name in keys:
                raise error
        raise self._nearest(whole, wanted)

    def remove(self, key: str) -> None:
        """Removes an engine, also a broken one. Raises EngineError where there is none."""
        paths = self._manifest_path(key), self._plan_path(key)
        if not any(os.path.lexists(path) for path in paths):
            raise EngineError(f"{self.folder}: no engine {key}", fix="see `cmudrn engines list`")
        with self._alone():
            self._remove(*paths)

    def prune(self, *, keep: Collection[Library] | None = None) -> list[str]:
        """Removes what no run can use, and returns the names of the files.

        That is: temporary files of writers that were killed, plans without a manifest, manifests that can't
        be read or have no plan, and, where `keep` is given, engines and timings of any other version.
        """
        if not os.path.lexists(self.folder):
            return []
        if self.folder.is_dir() and not any(map(_is_ours, self.folder.iterdir())):
            return []  # a folder named by mistake is left as it is, without even a lock
        with self._alone():
            names = {path.name for path in self.folder.iterdir()}
            whole, _ = self._manifests()
            kept = {
                one.key
                for one in whole
                if f"{one.key}.engine" in names
                and (keep is None or any((one.flavor, one.version) == (to.flavor, to.version) for to in keep))
            }
            entries = {name.rpartition(".")[0] for name in names if name.endswith((".json", ".engine"))}
            gone = [entry for entry in entries - kept if NAMED_AS_AN_ENGINE.fullmatch(entry)]
            paths = [path for entry in gone for path in (self._manifest_path(entry), self._plan_path(entry))]
            temporary = [self.folder / name for name in names if TEMPORARY.fullmatch(name)]
            paths += [path for path in temporary if time.time() - path.lstat().st_mtime > LEFT_BEHIND_S]
            if keep is not None:
                endings = tuple(f"-{library.version}.cache" for library in keep)
                timings = [name for name in names if TIMINGS.fullmatch(name)]
                paths += [self.folder / name for name in timings if not name.endswith(endings)]
            self._remove(*paths)
        return sorted(path.name for path in paths if path.name in names)

    def timing_cache(self, gpu: str, version: str) -> bytes | None:
        """What TensorRT has measured on such a GPU. None where there is nothing, or nothing to be trusted."""
        try:
            data = read_trusted(self._timing_path(gpu, version), most=MOST_TIMINGS_BYTES)
        except EngineError:
            return None
        digest, timings = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        # A damaged one can end the process inside TensorRT.
        return timings if hashlib.sha256(timings).digest() == digest else None

    def keep_timing_cache(self, gpu: str, version: str, data: bytes) -> None:
        """For later builds. Where it can't be written they measure again: no build fails for that."""
        path = self._timing_path(gpu, version)
        with suppress(EngineError), self._alone(), replacing(path, mode=OWNER_ONLY) as file:
            fill(file, hashlib.sha256(data).digest() + data)

    def prepare(self) -> None:
        """Makes the folder. Raises EngineError where engines could not be put there."""
        with self._alone(), TemporaryFile(dir=self.folder):
            pass

    def _manifest_path(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise EngineError(f"{key[:80]!r}: not an engine's name", fix="see `cmudrn engines list`")
        return self.folder / f"{key}.json"

    def _plan_path(self, key: str) -> Path:
        return self._manifest_path(key).with_name(f"{key}.engine")

    def _timing_path(self, gpu: str, version: str) -> Path:
        plain = [re.sub(r"[^A-Za-z0-9.+]+", "-", text)[:80] for text in (gpu, version)]
        return self.folder / f"timing-{plain[0]}-{plain[1]}.cache"

    def _manifests(self) -> tuple[list[Manifest], list[tuple[str, EngineError]]]:
        try:
            stems = (path.stem for path in self.folder.iterdir() if path.suffix == ".json")
            names = sorted(stem for stem in stems if KEY.fullmatch(stem))
        except FileNotFoundError:
            return [], []
        except OSError as exc:
            raise EngineError(f"{self.folder}: {exc.strerror}", fix="give another folder: --store") from exc
        whole, broken = [], []
        for name in names:
            try:
                whole.append(self.manifest(name))
            except EngineError as exc:
                broken.append((name, exc))
        return whole, broken

    def _load(self, key: str) -> Engine:
        manifest, path = self.manifest(key), self._plan_path(key)
        plan = read_trusted(path, least=manifest.plan_bytes, most=manifest.plan_bytes)
        if hashlib.sha256(plan).hexdigest() != manifest.plan_sha256:
            raise EngineError(f"{path}: not the plan that was built: its SHA-256 is another", fix=BUILD_AGAIN)
        return Engine(manifest, plan)

    def _remove(self, *paths: Path) -> None:
        """A manifest stands before its plan, and is gone before it."""
        for path in paths:
            path.unlink(missing_ok=True)
            sync(self.folder)

    def _nearest(self, whole: Sequence[Manifest], wanted: Wanted) -> EngineError:
        """Leaves the engines that fit, one demand after the other, until none is left."""
        spec, weights = wanted.spec, f"of weights {wanted.weights_sha256[:12]}"
        library = f"of {wanted.flavor.value} {wanted.version}"
        demands: list[tuple[Sequence[str], Callable[[Manifest], str]]] = [
            ([_place(spec)], lambda one: _place(one.spec)),
            ([_types(spec)], lambda one: _types(one.spec)),
            ([library], lambda one: f"of {one.flavor.value} {one.version}"),
            ([f"for {target}" for target in wanted.targets], lambda one: f"for {one.target}"),
            ([weights], lambda one: f"of weights {one.weights_sha256[:12]}"),
        ]
        those = "those here"
        left = sorted(whole, key=lambda one: (one.spec.loops, one.spec.height, one.spec.width, one.key))
        for told, said in demands:
            have = list(dict.fromkeys(said(one) for one in left))
            left = [one for one in left if said(one) in told]
            if not left:
                break
            those = f"those {_place(spec)}"
        there = f"{those} are {listed(have, most=SHOWN)}" if have else "the store holds none"
        what = f"{self.folder}: no engine {' or '.join(told)}; {there}"
        return EngineError(what, fix=self.build_command(wanted))

    def build_command(self, wanted: Wanted) -> str:
        """What builds such an engine; beside loops and size, only what isn't as usual."""
        spec, target = wanted.spec, wanted.targets[0]
        parts = [f"cmudrn build-engine --loops {spec.loops} --size {spec.height}x{spec.width}"]
        usual = EngineSpec(loops=spec.loops, height=spec.height, width=spec.width)
        for name in ("batch", "precision", "pixel", "output"):
            value = getattr(spec, name)
            if value != getattr(usual, name):
                parts.append(f"--{name} {value.value if isinstance(value, Enum) else value}")
        if wanted.weights != "default":
            parts.append(f"--weights {shlex.quote(wanted.weights)}")
        parts.append(f"--flavor {wanted.flavor.value}")
        if wanted.flavor is Flavor.RTX and PORTABLE not in wanted.targets:
            parts.append(f"--target {target}")
        if self != EngineStore.default():
            parts.append(f"--store {shlex.quote(str(self.folder))}")
        return " ".join(parts)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The one writer in the folder; what the system refuses becomes an EngineError."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(self.folder, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX):
                yield
        except OSError as exc:
            raise EngineError(
                f"{exc.filename or self.folder}: cannot be changed: {exc.strerror}",
                fix=f"make room or get the right to write in {self.folder}, or give another folder: --store",
            ) from exc

    @contextmanager
    def _apart_from_builders(self) -> Iterator[None]:
        """No engine is half-replaced meanwhile. A store for reading only may have no lock and no builders."""
        with ExitStack() as held:
            with suppress(OSError):
                held.enter_context(locked(self.folder, os.O_RDONLY, fcntl.LOCK_SH))
            yield


def _is_ours(path: Path) -> bool:
    named = NAMED_AS_AN_ENGINE.fullmatch(path.stem) and path.suffix in (".json", ".engine")
    return bool(named or TIMINGS.fullmatch(path.name) or TEMPORARY.fullmatch(path.name))


def _place(spec: EngineSpec) -> str:
    return f"for T = {spec.loops} at {spec.height}x{spec.width}"


def _types(spec: EngineSpec) -> str:
    types = f"{spec.precision.value}, {spec.pixel.value} pixels, {spec.output.value} output"
    return f"with batch {spec.batch}, {types}"
