"""The loop that a researcher would write: PyTorch eager, one photograph after the other, Pillow in and out.

    python benchmarks/eager_loop.py OUT PHOTO...

What `benchmarks/infer.py` compares with; the same weights, T = 3, the same JPEG quality.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import cmudrn


def main() -> None:
    out = Path(sys.argv[1])
    model = cmudrn.load_model("default", loops=3)
    for name in sys.argv[2:]:
        rgb = np.asarray(Image.open(name).convert("RGB"))
        image = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            restored = model(image).clamp(0, 1)
        levels = (restored[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(out / Path(name).name, quality=95, subsampling=0)


if __name__ == "__main__":
    main()
