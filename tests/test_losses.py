"""The losses against scikit-image and against shown arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from cmudrn.model import CMUDRN, ModelConfig, Restored
from cmudrn.train.losses import LossWeights, cmudrn_loss, ssim


def test_ssim_equals_scikit_images() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((32, 40, 3))
    b = np.clip(a + rng.normal(0, 0.1, a.shape), 0, 1)
    # scikit-image averages over the pixels whose window lies inside: our convolution has no padding either.
    expected = structural_similarity(
        a, b, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    as_tensor = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in (a, b)]
    assert ssim(*as_tensor).item() == pytest.approx(expected, abs=1e-6)


def test_the_terms_are_those_of_the_equations() -> None:
    """Images that differ by 0.1 everywhere, no SSIM: mean of squares 0.01, root 0.1."""
    clean = torch.full((1, 3, 16, 16), 0.5)
    off, exact = clean + 0.1, clean.clone()
    restored = Restored(
        torch.cat([off, exact]),
        [torch.cat([off, exact]), torch.cat([exact, off])],
        [torch.cat([exact, exact])] * 2,
    )
    terms = cmudrn_loss(restored, clean, LossWeights(ssim=0, squared=1, root=1))
    assert terms.local.item() == pytest.approx(
        0.0, abs=1e-7
    )  # both last images are exact for their own weather
    assert terms.recur.item() == pytest.approx(2 * 0.01 / 4, rel=1e-4)  # one of four stages is off
    assert terms.global_.item() == pytest.approx(
        0.1 + 1e-4, rel=1e-2
    )  # the rainy half is off, root(1e-8) the other
    assert terms.total.item() == pytest.approx((terms.local + terms.recur + terms.global_).item())


def test_each_weather_supervises_its_own_branch() -> None:
    """Local and recur give the snow branch no gradient from rainy images, where nothing is stitched."""
    model = CMUDRN(ModelConfig(inter_loops=1, intra_loops=1, stitches={}))
    clean = torch.rand(1, 3, 16, 16)
    restored = model.forward_all(torch.cat([torch.rand_like(clean), clean]))
    rain_only = Restored(
        restored.fused.detach(), restored.rain_stages, [x.detach() for x in restored.snow_stages]
    )
    cmudrn_loss(rain_only, clean, LossWeights()).total.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in model.snow.parameters())
    assert all(parameter.grad is not None for parameter in model.rain.parameters())
