"""Deployment: backends, tiling, the pipeline from files to files."""
