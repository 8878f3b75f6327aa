"""PSNR and SSIM against scikit-image, torchmetrics, and arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cmudrn.errors import ImageError
from cmudrn.metrics import Truth, luma, mean_psnr_db, psnr_db, ssim

Pixels = NDArray[np.uint8]
SIZES = [(11, 11), (32, 47), (120, 80)]


def noisy_pair(height: int, width: int) -> tuple[Pixels, Pixels]:
    """A smooth photograph-like image and a noisy copy, [H, W, 3] each."""
    rng = np.random.default_rng(height)
    rows, columns = np.mgrid[:height, :width]
    smooth = 128 + 60 * np.sin(rows / 7)[..., None] * np.cos(columns / 11)[..., None] * [1, 0.7, -0.5]
    clean = np.clip(smooth, 0, 255).astype(np.uint8)
    return np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8), clean


def reference_ssim(a: Pixels, b: Pixels) -> float:
    return float(
        structural_similarity(
            a,
            b,
            channel_axis=2 if a.ndim == 3 else None,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


@pytest.mark.parametrize("size", SIZES)
def test_rgb_equals_scikit_images(size: tuple[int, int]) -> None:
    noisy, clean = noisy_pair(*size)
    scores = Truth(clean).score(noisy)
    assert scores.ssim_rgb == pytest.approx(reference_ssim(noisy, clean), abs=1e-9)
    assert scores.psnr_rgb_db == pytest.approx(peak_signal_noise_ratio(clean, noisy), abs=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_luma_scores_equal_scikit_images_on_matlabs_luma(size: tuple[int, int]) -> None:
    noisy, clean = (image for image in noisy_pair(*size))
    scores = Truth(clean).score(noisy)
    # MATLAB's rgb2ycbcr gives 8 bits for 8 bits; scikit-image's has its matrix, unrounded.
    noisy_y, clean_y = (np.floor(rgb2ycbcr(image)[..., 0] + 0.5).astype(np.uint8) for image in (noisy, clean))
    assert scores.ssim_y == pytest.approx(reference_ssim(noisy_y, clean_y), abs=1e-9)
    assert scores.psnr_y_db == pytest.approx(peak_signal_noise_ratio(clean_y, noisy_y), abs=1e-9)


@pytest.mark.parametrize("size", SIZES[1:])
def test_all_equal_torchmetrics(size: tuple[int, int]) -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    torch = pytest.importorskip("torch")
    noisy, clean = noisy_pair(*size)
    scores = Truth(clean).score(noisy)
    for channels, psnr, similarity in (
        ((noisy, clean), scores.psnr_rgb_db, scores.ssim_rgb),
        ((luma(noisy)[..., None], luma(clean)[..., None]), scores.psnr_y_db, scores.ssim_y),
    ):
        a, b = (torch.from_numpy(image).permute(2, 0, 1)[None].double() for image in channels)
        assert psnr == pytest.approx(
            float(functional.peak_signal_noise_ratio(a, b, data_range=255.0)), abs=1e-4
        )
        # Its own mean counts windows that reach over the edge into mirrored pixels; Wang et al., scikit-image
        # and we count those that lie inside: the map without a rim of five pixels.
        _, windows = functional.structural_similarity_index_measure(
            a, b, data_range=255.0, return_full_image=True
        )
        assert similarity == pytest.approx(float(windows[..., 5:-5, 5:-5].mean()), abs=1e-4)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((0, 0, 0), 16),
        ((255, 255, 255), 235),  # 16 + 65.481 + 128.553 + 24.966
        ((255, 0, 0), 81),  # 16 + 65.481
        ((0, 255, 0), 145),  # 16 + 128.553 = 144.553
        ((0, 0, 255), 41),  # 16 + 24.966
    ],
)
def test_luma_is_bt_601_between_16_and_235(rgb: tuple[int, int, int], expected: int) -> None:
    image = np.full((2, 3, 3), rgb, np.uint8)
    assert luma(image).tolist() == [[expected] * 3] * 2


def test_one_level_off_everywhere_is_48_decibels() -> None:
    clean = np.full((12, 12, 3), 7, np.uint8)
    assert psnr_db(clean + np.uint8(1), clean) == pytest.approx(20 * np.log10(255))


def test_preparing_the_truth_changes_no_figure() -> None:
    noisy, clean = noisy_pair(40, 30)
    truth = Truth(clean)
    for image in (noisy, clean, noisy):
        scores = truth.score(image)
        assert scores.ssim_rgb == ssim(image, clean)
        assert scores.psnr_rgb_db == psnr_db(image, clean)
        assert scores.ssim_y == ssim(luma(image), luma(clean))


def test_equal_images_are_infinitely_near() -> None:
    a = np.full((12, 12, 3), 7, np.uint8)
    assert psnr_db(a, a) == float("inf")
    assert ssim(a, a) == pytest.approx(1.0)


def test_an_equal_image_counts_a_hundred_decibels_in_a_mean() -> None:
    assert mean_psnr_db([30.0, float("inf")]) == 65.0
    assert mean_psnr_db([float("inf")]) == 100.0


def test_images_that_cannot_be_compared_are_refused() -> None:
    a = np.zeros((12, 12, 3), np.uint8)
    for other in (a[1:], a.astype(np.float32)):
        with pytest.raises(ImageError):
            psnr_db(a, other)
        with pytest.raises(ImageError):
            Truth(a).score(other)
    with pytest.raises(ImageError, match="12x5"):
        ssim(a[:5], a[:5])
    with pytest.raises(ImageError):
        luma(a[..., 0])
