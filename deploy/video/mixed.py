"""Photographs and clips of one job: the photographs first, in one stream, then clip after clip."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator

from cmudrn.deploy.backends import Backends
from cmudrn.deploy.decoding import Decoders
from cmudrn.deploy.gate import Gate
from cmudrn.deploy.job import InferJob
from cmudrn.deploy.pipeline import restore_images
from cmudrn.deploy.report import ItemResult
from cmudrn.deploy.sources import Item
from cmudrn.deploy.video.clips import FrameNews, restore_clips
from cmudrn.deploy.video.names import is_clip
from cmudrn.deploy.video.options import VideoOptions

__all__ = ["restore_items"]


def restore_items(
    job: InferJob,
    options: VideoOptions,
    items: Iterable[Item],
    backends: Backends,
    gate: Gate | None = None,
    decoders: Decoders | None = None,
    *,
    on_frame: FrameNews = lambda clip, done, of: None,
    on_note: Callable[[str], None] = lambda line: None,
) -> Generator[ItemResult, None, None]:
    """Each item's result as it ends. Raises what `restore_images` and `restore_clips` raise.

    gate, decoders: for photographs alone.
    """
    clips: list[Item] = []  # few beside what they take

    def photographs() -> Iterator[Item]:
        for item in items:
            if is_clip(item.source):
                clips.append(item)
            else:
                yield item

    yield from restore_images(job, photographs(), backends, gate, decoders)
    yield from restore_clips(job, options, clips, backends, on_frame=on_frame, on_note=on_note)
