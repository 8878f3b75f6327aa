"""A profile and the options beside it: what is told counts, then the profile, and what is odd is said."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from importlib.util import find_spec

from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.job import BackendName
from cmudrn.deploy.machine import describe_machine
from cmudrn.deploy.native.library import is_built, kernels_version
from cmudrn.deploy.profile import Profile, Way
from cmudrn.engines.layout import FOR_ONNX_RUNTIME
from cmudrn.engines.spec import Precision
from cmudrn.errors import CmudrnError

__all__ = ["way_by_profile"]

# Of Way, by the command line's names; the layout and the engine are the profile's alone.
OPTIONS = {
    "loops": "loops",
    "backend": "backend",
    "batch": "batch",
    "streams": "streams",
    "tile": "tile_px",
    "threads": "threads",
}


def way_by_profile(
    profile: Profile, options: Way, told: Collection[str], *, weights: str
) -> tuple[Way, list[str]]:
    """How to restore, and lines for people where that isn't quite what the profile says.

    options: all of the command line's, defaults included; told: the names of those that were given there.
    weights: as --weights takes them. A profile of an engine gives AUTO with the engine's name: where that one
    doesn't fit, others are chosen. Raises CheckpointError for weights that cannot be read.
    """
    given = {field: getattr(options, field) for name, field in OPTIONS.items() if name in told}
    notes, way = list(differences(profile, weights)), profile.way
    if "backend" in told and options.backend is not way.backend:
        notes.append(
            f"--backend {options.backend.value}: of the profile, measured with {way.backend.value}, only the "
            "loop count is used"
        )
        return replace(options, loops=given.get("loops", way.loops)), notes
    if way.engine is not None:
        # Batch and size are the engine's; as limits they would bind what is chosen where it doesn't fit.
        backend = way.backend if "backend" in told else BackendName.AUTO
        way = replace(way, backend=backend, batch=None, tile_px=None, layout=None)
    else:
        way, missing = with_what_is_installed(way, weights)
        notes += missing
    return replace(way, **given), notes


def differences(profile: Profile, weights: str) -> Iterator[str]:
    """Of what else the profile's figures are; nothing where all is as it was measured."""
    if not profile.is_of(describe_machine().to_json()):
        yield "the profile was measured on another machine: its figures may not hold here"
    if profile.weights_sha256 != read_checkpoint(weights).sha256:
        yield f"the profile was measured with other weights, {profile.weights_sha256[:12]}"
    if profile.kernels is None:
        return
    try:
        here = kernels_version(Precision.FP32)
    except CmudrnError:  # opening them says so
        return
    if here != profile.kernels:
        yield f"the profile was measured with other kernels, {profile.kernels}; here they are {here}"


def with_what_is_installed(way: Way, weights: str) -> tuple[Way, list[str]]:
    """The way, or what is next to it where the backend, or what makes its graph, isn't here any more."""
    packaged = way.backend in (BackendName.OPENVINO, BackendName.TORCH)
    absent = packaged and not find_spec(way.backend.value)
    if absent or (way.backend is BackendName.NATIVE and not is_built()):
        note = f"the profile's {way.backend.value} is not installed: choosing as without it"
        return replace(way, backend=BackendName.AUTO, layout=None), [note]
    of_ones_own = way.layout not in (None, FOR_ONNX_RUNTIME)
    if of_ones_own and weights == "default" and not find_spec("onnx"):
        note = f"the profile's layout {way.layout} needs onnx, which is not installed: the usual one instead"
        return replace(way, layout=None), [note]
    return way, []
