"""Clips, streams of frames and cameras: the same network, frame by frame."""
