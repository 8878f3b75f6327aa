"""Engines: what is asked for (`spec`), and the weights as an ONNX graph (`graph`, needs `onnx`)."""

from cmudrn.engines.spec import EngineSpec, Output, Pixel, Precision, receptive_radius

__all__ = ["EngineSpec", "Output", "Pixel", "Precision", "receptive_radius"]
