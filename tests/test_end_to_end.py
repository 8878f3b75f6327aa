"""`cmudrn infer` as a whole, timed stage by stage."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pytest
from hostcuda.build import under_hostcuda
from PIL import Image
from test_manifest import manifest_of

from cmudrn.checkpoint import read_checkpoint
from cmudrn.deploy.benchmark.contestants import Conditions
from cmudrn.deploy.benchmark.end_to_end import jobs_of, make_photos, median_pass, run_end_to_end
from cmudrn.deploy.job import BackendName
from cmudrn.engines.graph import typed_graph
from cmudrn.engines.spec import EngineSpec
from cmudrn.engines.store import EngineStore
from cmudrn.errors import ImageError

CPU = Conditions(device="cpu")


def test_infers_whole_way_is_timed_stage_by_stage(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 2)
    [job] = jobs_of(tmp_path / "photos", [BackendName.ONNX], [1], CPU)
    passes = list(run_end_to_end(job, passes=3))
    assert len(passes) == 3
    for one in passes:
        assert (one.images, one.loops) == (2, 1)
        assert one.megapixels == pytest.approx(2 * 0.6144)
        assert min(one.open_s, one.decode_s, one.restore_s, one.encode_s) > 0
        assert one.restore_s < one.wall_s
        assert one.images_per_s == pytest.approx(2 / one.wall_s)
        assert 0 < one.restoring_share < 1
    assert median_pass(passes).wall_s == sorted(one.wall_s for one in passes)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]  # what was restored is gone


def test_an_image_that_fails_ends_it(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    [job] = jobs_of(tmp_path, [BackendName.ONNX], [1], CPU)
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        list(run_end_to_end(job, passes=1))


@under_hostcuda()
def test_loading_an_engine_is_opening_and_no_restoring() -> None:
    from cmudrn.deploy.tensorrt import TensorRTBackend

    spec, load, loading_s = EngineSpec(loops=1, height=24, width=32), TensorRTBackend.__enter__, 3.0
    checkpoint = read_checkpoint("default")
    plan = typed_graph(checkpoint, spec)
    facts = {"version": "11.4.0.1", "target": "sm89", "weights_sha256": checkpoint.sha256}

    def slowly(backend: TensorRTBackend) -> TensorRTBackend:
        time.sleep(loading_s)
        return load(backend)

    with TemporaryDirectory() as name, patch.object(TensorRTBackend, "__enter__", slowly):
        folder = Path(name)
        EngineStore(folder / "store").put(plan, manifest_of(plan, spec, **facts))
        (folder / "photos").mkdir()
        Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(folder / "photos" / "a.png")
        on_gpu = Conditions(store=folder / "store")
        [job] = jobs_of(folder / "photos", [BackendName.TENSORRT], [1], on_gpu)
        [one] = run_end_to_end(job, passes=1)
    assert one.open_s >= loading_s > one.wall_s
