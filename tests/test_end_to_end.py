"""`cmudrn infer` as a whole, timed stage by stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmudrn.deploy.benchmark.contestants import (
    Conditions,
)
from cmudrn.deploy.benchmark.end_to_end import jobs_of, make_photos, median_pass, run_end_to_end
from cmudrn.deploy.job import BackendName
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
