"""Certificates for the tests: one that is passed, one that is failed."""

from __future__ import annotations

from dataclasses import replace

from cmudrn.engines.certificate import ParityCertificate

__all__ = ["FAILED", "PASSED"]

PASSED = ParityCertificate(
    images=8,
    images_sha256="3" * 64,
    psnr_min_db=57.5,
    psnr_mean_db=61.0,
    difference=1.0,
    off_by_one=0.05,
    off_by_more=0.0,
    truth_psnr_change_db=None,
    truth_ssim_change=None,
    measured_at="2026-11-26T07:30:00Z",
)
FAILED = replace(PASSED, psnr_min_db=31.0, difference=40.0, off_by_more=0.2)
