"""What the tests on a GPU share. Skipped without one, and without the flavour of TensorRT they ask for."""

from __future__ import annotations

import pytest

from cmudrn.engines.build import targets_of
from cmudrn.engines.flavors import Flavor, Library, open_library
from cmudrn.engines.gpu import Gpu, local_gpu
from cmudrn.errors import EnvironmentMissing


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of whoever runs this folder: the runner leaves out what can't be built for the GPU."""
    parser.addoption("--flavors", metavar="NAME,...", help="only these of tensorrt and rtx")


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """The first GPU that CUDA shows."""
    try:
        return local_gpu()
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session", params=Flavor, ids=lambda flavor: flavor.value)
def library(request: pytest.FixtureRequest, gpu: Gpu) -> Library:
    """Each flavour that is installed; TensorRT-RTX only on GPUs among those that it builds for."""
    asked = request.config.getoption("--flavors", None)
    if asked is not None and request.param.value not in asked.split(","):
        pytest.skip(f"{request.param.label} was left out")
    try:
        library = open_library(request.param)
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))
    targets = targets_of(library)
    if targets and gpu.target not in targets:
        label, version = library.flavor.label, library.version
        pytest.skip(f"{label} {version} builds for {', '.join(targets)}, not for {gpu.target}")
    return library
