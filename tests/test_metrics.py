"""PSNR and SSIM against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cmudrn.errors import ImageError
from cmudrn.metrics import psnr_db, ssim


@pytest.mark.parametrize("size", [(11, 11), (32, 47)])
def test_they_equal_scikit_images(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    expected = structural_similarity(
        a, b, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)
    assert psnr_db(a, b) == pytest.approx(peak_signal_noise_ratio(a, b), abs=1e-9)


def test_equal_images_are_infinitely_near() -> None:
    a = np.full((12, 12, 3), 7, np.uint8)
    assert psnr_db(a, a) == float("inf")
    assert ssim(a, a) == pytest.approx(1.0)


def test_images_that_cannot_be_compared_are_refused() -> None:
    a = np.zeros((12, 12, 3), np.uint8)
    with pytest.raises(ImageError):
        psnr_db(a, a[1:])
    with pytest.raises(ImageError):
        ssim(a[:5], a[:5])
