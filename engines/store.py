"""Compiled engines on disk: `<key>.engine`, the raw plan, and `<key>.json`, what is known of it.

Beside them lie the parity certificates of libraries that need no engine, `parity-*.json`.

A plan is code that runs on the GPU and in the process: it is handed out only where its bytes are those of its
manifest, and where nobody else could have written either. An engine is there from the moment that its
manifest is, so a kill at any point leaves the old engine, the new one, or none.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from cmudrn.engines.certificate import (
    CHECK_AGAIN,
    ParityCertificate,
    Subject,
    read_certificate,
    write_certificate,
)
from cmudrn.engines.flavors import Library
from cmudrn.engines.manifest import Manifest, engine_key
from cmudrn.engines.plain_json import MOST_BYTES
from cmudrn.engines.trusted_files import BUILD_AGAIN, fill, locked, read_trusted, sync
from cmudrn.engines.wanted import Wanted
from cmudrn.errors import EngineError
from cmudrn.files import cache_folder, replacing

__all__ = ["Engine", "EngineStore", "Wanted"]

KEY = re.compile(r"[A-Za-z0-9.+-]+")
# What prune may take: a folder that was named by mistake keeps its other files.
NAMED_AS_AN_ENGINE = re.compile(r"t[0-9]+-[0-9]+x[0-9]+-b[0-9]+-[A-Za-z0-9.+-]+")
NAMED_AS_A_CERTIFICATE = re.compile(
    r"parity-[a-z0-9]+-[0-9A-Za-z.]*-[a-z0-9]+-t[0-9]+-[a-z0-9]+(-[a-z]+)?-[0-9a-f]{12}-[0-9a-f]{8}"
)
TIMINGS = re.compile(r"timing-[A-Za-z0-9.+-]+\.cache")
TEMPORARY = re.compile(r"\..*\.[0-9]+-[0-9a-f]{8}\.part")
LEFT_BEHIND_S = 3600  # a temporary file as old as that has no writer any more
MOST_TIMINGS_BYTES = 1 << 28
DIGEST_BYTES = 32  # SHA-256, before the timings
OWNER_ONLY = 0o600  # until `fill` opens it to readers: nobody else can have it open for writing


class Engine(NamedTuple):
    """A plan that may be handed to TensorRT, and what is known of it."""

    manifest: Manifest
    plan: bytes


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

    def certify(self, measured: Manifest, certificate: ParityCertificate) -> Manifest:
        """Writes into an engine's manifest what was found, and returns the manifest; the plan is left alone.

        Raises EngineError where by now the store holds another plan than the measured one, or none.
        """
        path = self._manifest_path(measured.key)
        with self._alone():
            now = self.manifest(measured.key)
            if now.plan_sha256 != measured.plan_sha256:
                raise EngineError(f"{path}: built anew while it was being measured", fix=CHECK_AGAIN)
            certified = replace(now, parity=certificate)
            self._replace(path, certified.to_json())
        return certified

    def withdraw(self, measured: Manifest) -> None:
        """Takes an engine's certificate out of its manifest: it has failed since. The plan is left alone.

        One that was built anew has a manifest of its own, which is left alone, too. Raises EngineError where
        the manifest can't be read or changed.
        """
        with self._alone():
            now = self.manifest(measured.key)
            if now.plan_sha256 == measured.plan_sha256 and now.parity is not None:
                self._replace(self._manifest_path(measured.key), replace(now, parity=None).to_json())

    def keep_certificate(self, subject: Subject, certificate: ParityCertificate) -> Path:
        """Stores what was found of a library, in place of an older one, and returns where it is."""
        path, text = self._manifest_path(subject.key), write_certificate(subject, certificate)
        read_certificate(text, subject.key)  # nothing is stored that can't be read again
        with self._alone():
            self._replace(path, text)
        return path

    def withdraw_certificate(self, subject: Subject) -> None:
        """Removes what was found of a library, if anything: it has failed since."""
        path = self._manifest_path(subject.key)
        if os.path.lexists(path):
            with self._alone():
                self._remove(path)

    def certificate(self, subject: Subject) -> ParityCertificate | None:
        """What was found of a library. None where there is nothing, or nothing to be trusted."""
        try:
            return self._certificate(subject.key, subject)
        except EngineError:
            return None

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
        raise EngineError(f"{self.folder}: {wanted.why_none_of(whole)}", fix=self.build_command(wanted))

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
        be read or have no plan, certificates that can't be read, and, where `keep` is given, engines and
        timings of any other version.
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
            certificates = [entry for entry in entries if NAMED_AS_A_CERTIFICATE.fullmatch(entry)]
            paths += [self._manifest_path(key) for key in certificates if not self._is_certificate(key)]
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
            names = sorted(
                stem for stem in stems if KEY.fullmatch(stem) and not NAMED_AS_A_CERTIFICATE.fullmatch(stem)
            )
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

    def _certificate(self, key: str, subject: Subject | None = None) -> ParityCertificate:
        """subject: None is whatever the file says. Raises EngineError for that of another."""
        path = self._manifest_path(key)
        about, certificate = read_certificate(read_trusted(path, most=MOST_BYTES), str(path))
        if about.key != key or subject not in (None, about):
            raise EngineError(f"{path}: the certificate of another", fix=CHECK_AGAIN)
        return certificate

    def _is_certificate(self, key: str) -> bool:
        try:
            self._certificate(key)
        except EngineError:
            return False
        return True

    def _replace(self, path: Path, text: bytes) -> None:
        """One file by another, on the disk when this returns. Held alone."""
        with replacing(path, mode=OWNER_ONLY) as file:
            fill(file, text)
        sync(self.folder)

    def _remove(self, *paths: Path) -> None:
        """A manifest stands before its plan, and is gone before it."""
        for path in paths:
            path.unlink(missing_ok=True)
            sync(self.folder)

    def build_command(self, wanted: Wanted) -> str:
        """What builds such an engine into this store."""
        return wanted.build_command(None if self == EngineStore.default() else self.folder)

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
    certificate = NAMED_AS_A_CERTIFICATE.fullmatch(path.stem) and path.suffix == ".json"
    return bool(named or certificate or TIMINGS.fullmatch(path.name) or TEMPORARY.fullmatch(path.name))
