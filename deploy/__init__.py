"""Deployment: backends, tiling, the pipeline from files to files."""

import os

# ONNX Runtime 1.31 and 1.32 report to Microsoft once imported, and keep an identifier and a database in the
# user's cache. A package that restores photographs has no business there; who wants it sets this to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
