"""Our own kernels as a backend: no other library, weights straight from the checkpoint."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType

from cmudrn.checkpoint import Checkpoint, check_tensors
from cmudrn.deploy.backend import PixelBatch
from cmudrn.deploy.batches import check_batch
from cmudrn.deploy.native.library import (
    HALF,
    MOST_THREADS,
    NativeNetwork,
    NativeSession,
    NetworkConfig,
    chosen_isa,
)
from cmudrn.engines.spec import EngineSpec, Precision
from cmudrn.errors import UsageError

__all__ = ["NativeBackend"]


class NativeBackend(AbstractContextManager["NativeBackend"]):
    """The network with a checkpoint's weights; batches of any size and shape.

    spec.precision: FP32, or BF16 for features in bfloat16. spec.output says which image comes back.
    threads: of one batch, 256 at most even if more are told; None for one on each core. isa: None for the
    best here, or what CMUDRN_ISA says.
    Raises UsageError for another precision, or an isa of the other one. Entering raises EnvironmentMissing
    where the library isn't there, or it or the processor doesn't have that isa; CheckpointError for weights
    of another network.
    """

    def __init__(
        self, checkpoint: Checkpoint, spec: EngineSpec, *, threads: int | None = None, isa: str | None = None
    ) -> None:
        if spec.precision is Precision.FP16:
            raise UsageError("the package's own kernels in fp16", fix="give fp32 or bf16")
        if isa is not None and (isa == HALF) is not (spec.precision is Precision.BF16):
            raise UsageError(f"{isa} in {spec.precision.value}", fix=f"{HALF} is bf16, all others are fp32")
        self.spec = spec
        self._checkpoint, self._threads, self._told_isa = checkpoint, threads, isa
        self._session: NativeSession | None = None
        self._taken = ExitStack()
        self.isa = ""  # the instruction set, once entered

    @property
    def label(self) -> str:
        """Ours, the instruction set, the device. Once entered."""
        return f"own kernels ({self.isa}) on CPU"

    def __enter__(self) -> NativeBackend:
        checkpoint, loops = self._checkpoint, self.spec.loops
        check_tensors(checkpoint, "weights")
        threads = None if self._threads is None else min(self._threads, MOST_THREADS)
        config = NetworkConfig(inter_loops=loops, intra_loops=loops, stitches=checkpoint.stitches)
        self.isa = self._told_isa or chosen_isa(self.spec.precision)
        with ExitStack() as taken:
            network = taken.enter_context(NativeNetwork(checkpoint.tensors, config, self.isa))
            self._session = taken.enter_context(NativeSession(network, threads))
            self._taken = taken.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None
        self._taken.close()

    def stream(self, batches: Iterable[PixelBatch]) -> Generator[PixelBatch, None, None]:
        """Each batch restored, in order, same shape and dtype. Raises ImageError where that fails."""
        self._opened()
        for batch in batches:
            check_batch(batch, self.spec)
            yield self._opened().restore(batch, self.spec.output)

    def _opened(self) -> NativeSession:
        if self._session is None:
            raise RuntimeError("the backend is not open: use it in a `with` block")
        return self._session
