"""The network on a CPU in machine code of our own: Winograd convolutions, a stage's layers in one pass."""

from cmudrn.deploy.native.backend import NativeBackend

__all__ = ["NativeBackend"]
