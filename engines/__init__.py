"""Engines: what is asked for (`spec`), weights to graph (`graph`), graph to plan (`build`, `compile`).

The plans and what is known of them are kept in a folder (`store`).

The spec and the store need nothing but the core; graphs need `onnx`, plans TensorRT or TensorRT-RTX.
"""

from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision, receptive_radius

__all__ = ["EngineSpec", "Output", "Pixel", "Precision", "receptive_radius"]
