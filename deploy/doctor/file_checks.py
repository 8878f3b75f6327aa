"""Our own files and folders: weights and graphs, the cache, the engines; and the compiler of our kernels."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from cmudrn import __version__
from cmudrn.deploy.doctor.findings import Finding, Scene, mismatched, missing, ok
from cmudrn.engines.flavors import PORTABLE, Flavor
from cmudrn.engines.gpu import Gpu
from cmudrn.engines.manifest import Manifest
from cmudrn.engines.store import EngineStore
from cmudrn.engines.wanted import Wanted
from cmudrn.errors import EngineError
from cmudrn.files import cache_folder
from cmudrn.wording import counted, listed

__all__ = ["check_cache", "check_compiler", "check_graphs", "check_here", "check_store", "check_weights"]

REINSTALL = "pip install --force-reinstall --no-deps cmudrn"
LEAST_FREE_MB = 200  # for engines and compiled kernels
WAIT_FOR_COMPILER_S = 20
WITH_OPENMP = "#include <omp.h>\nint main(void) { return omp_get_max_threads(); }\n"


def check_here(scene: Scene) -> Iterator[Finding]:
    """The package and the machine."""
    yield ok("cmudrn", f"{__version__}, Python {platform.python_version()}, {sys.prefix}")
    machine = scene.machine
    processor = " ".join([machine.cpu, *machine.flags[-1:]])
    found = f"{processor}, {counted(machine.cores, 'core')}, {machine.memory_gb} GB"
    yield ok("machine", found, machine.to_json())


def check_weights(scene: Scene) -> Iterator[Finding]:
    """The shipped ones."""
    answer = scene.answers["weights"]
    finding = mismatched("weights", answer.failure, REINSTALL)
    if not answer.failure:
        about = answer.facts
        trained = f"trained for T = {','.join(map(str, about['depths']))}"
        text = f"default, {about['parameters']:,} parameters, {trained}, {about['sha256'][:12]}"
        finding = ok("weights", text, about)
    yield replace(finding, needed=True)


def check_graphs(scene: Scene) -> Iterator[Finding]:
    """Whether each was made of the shipped weights."""
    answer, weights = scene.answers["graphs"], scene.answers["weights"].facts.get("sha256")
    made_of: Mapping[str, str] = answer.facts.get("weights", {})
    others = [name for name, sha256 in made_of.items() if sha256 != weights]
    absent: Sequence[str] = answer.facts.get("absent", ())
    finding = ok("graphs", f"{counted(len(made_of), 'graph')} of these weights", answer.facts)
    fix = f"{REINSTALL}, or `make graphs` in a checkout"
    if answer.failure:
        finding = mismatched("graphs", answer.failure, fix)
    elif absent:
        finding = mismatched("graphs", f"not there: {listed(absent)}", fix)
    elif others and weights:
        finding = mismatched("graphs", f"of other weights: {listed(others)}", fix)
    yield replace(finding, needed=True)


def check_compiler(scene: Scene) -> Iterator[Finding]:
    """Of the training's own kernels, which are compiled when a training first asks for them."""
    told = shlex.split(os.environ.get("CC", ""))
    compiler = told or [path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))][:1]
    if not compiler:
        yield no_compiler("none")
        return
    name = shlex.join(compiler)
    try:
        done = subprocess.run(
            [*compiler, "-fopenmp", "-fsyntax-only", "-x", "c", "-"],
            input=WITH_OPENMP,
            capture_output=True,
            text=True,
            timeout=WAIT_FOR_COMPILER_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        yield no_compiler(f"{name}: {exc}")
        return
    if done.returncode:
        said = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        yield no_compiler(f"{name} does not compile with OpenMP: {said}")
    else:
        yield ok("C compiler", f"{name}, with OpenMP")


def no_compiler(why: str) -> Finding:
    """No mismatch: training goes on without it, at half the speed."""
    return missing("C compiler", f"{why}; training takes PyTorch's kernels", "install gcc with OpenMP")


def check_cache(scene: Scene) -> Iterator[Finding]:
    """Whether there is room, and the right to take it; nothing is made."""
    folder = cache_folder().absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    fix = "export CMUDRN_CACHE=DIR, a folder of yours with room"
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        yield mismatched("cache", f"{folder}: {nearest} cannot be written to", fix)
        return
    free_mb = shutil.disk_usage(nearest).free >> 20
    if free_mb < LEAST_FREE_MB:
        yield mismatched("cache", f"{folder}: {free_mb:,} MB free, less than {LEAST_FREE_MB}", fix)
    else:
        yield ok("cache", f"{folder}, {free_mb / 1024:,.1f} GB free")


def check_store(scene: Scene) -> Iterator[Finding]:
    """The engines: whole, for this GPU and version, certified."""
    store, told = (
        scene.store,
        "" if scene.store == EngineStore.default() else f" --store {shlex.quote(str(scene.store.folder))}",
    )
    try:
        whole, broken = verified(store)
    except EngineError as exc:
        yield mismatched("engines", exc.what, exc.fix)
        return
    for name, error in broken[:1]:
        text = f"{store.folder}: {counted(len(broken), 'engine')} broken; {error.what}"
        yield mismatched("engines", text, f"cmudrn engines remove {name}{told}, then build it again")
    if whole:
        yield fitting(scene, whole)
        yield certified(whole, told)
    elif not broken:
        yield missing("engines", f"{store.folder}: none", f"cmudrn build-engine --loops 3 --size 500{told}")


def verified(store: EngineStore) -> tuple[list[Manifest], list[tuple[str, EngineError]]]:
    """Engines that are whole, and those that aren't; plans are read."""
    manifests, broken = store.manifests()
    whole = []
    for manifest in manifests:
        try:
            whole.append(store.verify(manifest.key))
        except EngineError as exc:
            broken.append((manifest.key, exc))
    return whole, broken


def fitting(scene: Scene, whole: Sequence[Manifest]) -> Finding:
    """Whether some run here."""
    from cmudrn.deploy.choice import runs_on

    answers = {flavor: scene.answers[flavor.value] for flavor in Flavor}
    versions = {flavor: one.facts["version"] for flavor, one in answers.items() if "version" in one.facts}
    gpus = [Gpu(gpu.name, gpu.target) for gpu in scene.machine.gpus]
    of_version = [one for one in whole if versions.get(one.flavor) == one.version]
    for_gpu = [one for one in of_version if any(runs_on(one, gpu) for gpu in gpus)]
    text = f"{scene.store.folder}: {counted(len(whole), 'engine')}"
    facts = {"engines": len(whole), "of_version": len(of_version), "for_gpu": len(for_gpu)}
    if versions and not of_version:
        made_by = listed(sorted({f"{one.flavor.label} {one.version}" for one in whole}))
        here = " and ".join(f"{flavor.label} {version}" for flavor, version in versions.items())
        return mismatched(
            "engines", f"{text}, all of {made_by}; here: {here}", rebuild(scene, whole, versions), facts
        )
    if versions and gpus and not for_gpu:
        targets = listed(sorted({one.target for one in of_version}))
        here = listed([gpu.target for gpu in gpus])
        return mismatched(
            "engines", f"{text}, for {targets}; here: {here}", rebuild(scene, whole, versions), facts
        )
    here = f", {len(for_gpu)} for this GPU and version" if gpus else "; there is no GPU here to run them"
    return ok("engines", text + here, facts)


def rebuild(scene: Scene, whole: Sequence[Manifest], versions: Mapping[Flavor, str]) -> str:
    """The command for an engine like the last one built, by what is installed here."""
    last = max(whole, key=lambda one: (one.built_at, one.key))
    flavor = last.flavor if last.flavor in versions else next(iter(versions))
    targets = [*(gpu.target for gpu in scene.machine.gpus), PORTABLE]
    wanted = Wanted.like(last, version=versions[flavor], targets=targets, flavor=flavor)
    return scene.store.build_command(wanted)


def certified(whole: Sequence[Manifest], told: str) -> Finding:
    """How many `cmudrn parity-check` has certified. told: the option that names the store, or nothing."""
    failed = [(one.key, one.parity.failures) for one in whole if one.parity and not one.parity.passed]
    passed = [one for one in whole if one.parity and one.parity.passed]
    text = f"{len(passed)} of {counted(len(whole), 'engine')} certified"
    facts = {"certified": len(passed), "failed": len(failed)}
    if failed:
        key, failures = failed[0]
        found = f"{text}, {len(failed)} failed; {key}: {listed(failures)}"
        return mismatched("certificates", found, f"cmudrn engines remove {key}{told}", facts)
    if len(passed) < len(whole):
        return missing(
            "certificates", f"{text}; `infer` leaves the others aside", f"cmudrn parity-check{told}"
        )
    return ok("certificates", text, facts)
