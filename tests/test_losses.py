"""The losses against scikit-image and against shown arithmetic."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from cmudrn.errors import UsageError
from cmudrn.model import CMUDRN, ModelConfig
from cmudrn.train.losses import LossWeights, Supervised, restoration_loss, ssim
from cmudrn.train.passes import UnifiedPasses


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


def test_ssim_compares_many_images_with_the_same_truth() -> None:
    torch.manual_seed(0)
    stages, clean = torch.rand(3, 2, 3, 16, 20), torch.rand(2, 3, 16, 20)
    together = ssim(stages, clean)
    assert together.shape == (3, 2)
    for stage, row in zip(stages, together, strict=True):
        assert torch.allclose(ssim(stage, clean), row, atol=1e-6)


def off_by_a_tenth(clean: torch.Tensor) -> Supervised:
    """Two stages a branch; the rain branch's first stage and the rainy final image are off by 0.1."""
    exact, off = clean.clone(), clean + 0.1
    return Supervised(torch.stack([off, exact, exact, exact]), 2, torch.stack([off, exact]))


def test_the_terms_are_those_of_the_equations() -> None:
    """No SSIM; a mean of squares of 0.01 in one of the four stages, a root of 0.1 in one of two finals."""
    clean = torch.full((3, 3, 16, 16), 0.5)
    terms = restoration_loss(off_by_a_tenth(clean), clean, LossWeights(ssim=0, squared=1, root=1))
    assert terms.local.item() == pytest.approx(0.0, abs=1e-7)  # both last stages are exact
    assert terms.recur.item() == pytest.approx(2 * 0.01 / 4, rel=1e-4)
    assert terms.global_.item() == pytest.approx(0.1 + 1e-4, rel=1e-3)  # 1e-4: the root's floor
    assert terms.total.item() == pytest.approx((terms.local + terms.recur + terms.global_).item())


def test_the_papers_loss_is_sums_of_squared_and_plain_frobenius_norms() -> None:
    """Three scenes of 3x16x16 values that differ by 0.1: 7.68 a scene, its root 2.771."""
    clean = torch.full((3, 3, 16, 16), 0.5)
    without_ssim = replace(LossWeights.paper(), ssim=0.0)
    terms = restoration_loss(off_by_a_tenth(clean), clean, without_ssim)
    assert terms.local.item() == pytest.approx(0.0, abs=1e-7)
    assert terms.recur.item() == pytest.approx(3 * 768 * 0.01, rel=1e-4)
    assert terms.global_.item() == pytest.approx(3 * 7.68**0.5 + 3 * 1e-4, rel=1e-3)
    only_ssim = restoration_loss(off_by_a_tenth(clean), clean, replace(LossWeights.paper(), frobenius=0.0))
    one = 1 - ssim(clean + 0.1, clean)[0].item()
    assert only_ssim.recur.item() == pytest.approx(3 * one, rel=1e-3)
    assert only_ssim.global_.item() == pytest.approx(3 * one, rel=1e-3)


@pytest.mark.parametrize("part", ["local", "recur", "global_"])
def test_a_part_of_weight_0_is_not_in_the_total(part: str) -> None:
    torch.manual_seed(0)
    clean = torch.rand(2, 3, 16, 16)
    made = Supervised(torch.rand(4, 2, 3, 16, 16), 2, torch.rand(2, 2, 3, 16, 16))
    terms = restoration_loss(made, clean, LossWeights(**{part: 0.0}))  # type: ignore[arg-type]
    others = sum(getattr(terms, name).item() for name in ("local", "recur", "global_") if name != part)
    assert terms.total.item() == pytest.approx(others)


def test_squared_and_root_are_factors_of_the_norms_in_their_parts() -> None:
    clean = torch.full((1, 3, 16, 16), 0.5)
    made = Supervised(clean.expand(4, 1, 3, 16, 16) + 0.1, 2, clean.expand(2, 1, 3, 16, 16) + 0.1)
    none = LossWeights(ssim=0, squared=0, root=0)
    assert restoration_loss(made, clean, none).total.item() == pytest.approx(0, abs=1e-9)
    squared = restoration_loss(made, clean, replace(none, squared=7))
    # A mean square of 0.01 in each of two branches; L_global has none of it.
    assert (squared.local.item(), squared.recur.item()) == pytest.approx((0.14, 0.14), rel=1e-4)
    assert squared.global_.item() == pytest.approx(0, abs=1e-9)
    root = restoration_loss(made, clean, replace(none, root=7))
    assert root.global_.item() == pytest.approx(2 * 7 * 0.1, rel=1e-4)  # its root, in both passes
    assert (root.local.item(), root.recur.item()) == pytest.approx((0, 0), abs=1e-9)


def test_the_logarithm_is_psnr_and_belongs_to_the_final_image() -> None:
    """One final image of two lies 20 dB from the truth, the other, exact, at the floor of 50 dB."""
    clean = torch.full((3, 3, 16, 16), 0.5)
    without, with_log = (
        restoration_loss(off_by_a_tenth(clean), clean, LossWeights(log=factor)) for factor in (0.0, 0.3)
    )
    assert (with_log.global_ - without.global_).item() == pytest.approx(-0.3 * (20 + 50) / 10, rel=1e-3)
    assert (with_log.local, with_log.recur) == (without.local, without.recur)


def test_a_loss_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="without any part"):
        LossWeights(ssim=0, frobenius=0)
    with pytest.raises(UsageError, match="without any part"):
        LossWeights(local=0, recur=0, global_=0)
    with pytest.raises(UsageError, match="ssim = -1"):
        LossWeights(ssim=-1)


def test_each_weather_supervises_its_own_branch() -> None:
    """Where nothing is stitched, rainy images alone give the snow branch no gradient by local and recur."""
    passes = UnifiedPasses(CMUDRN(ModelConfig(inter_loops=1, intra_loops=1, stitches={})))
    clean = torch.rand(1, 3, 16, 16)
    made = passes(torch.rand_like(clean), clean)
    rain_only = Supervised(torch.stack([made.stages[0], made.stages[1].detach()]), 2, made.finals)
    restoration_loss(rain_only, clean, LossWeights(global_=0)).total.backward()  # type: ignore[no-untyped-call]
    gradients = {
        branch: sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)
        for branch, model in (("rain", passes.model.rain), ("snow", passes.model.snow))
    }
    assert gradients["snow"] == 0
    assert gradients["rain"] > 0
