"""A job of photographs and clips: the photographs first, in one stream, then clip after clip."""

from __future__ import annotations

from collections.abc import Callable, Generator

from cmudrn.deploy.backends import Backends
from cmudrn.deploy.job import InferJob
from cmudrn.deploy.pipeline import restore_images
from cmudrn.deploy.report import ItemResult
from cmudrn.deploy.sources import find_items
from cmudrn.deploy.video.clips import FrameNews, restore_clips
from cmudrn.deploy.video.names import is_clip
from cmudrn.deploy.video.options import VideoOptions

__all__ = ["restore_items"]


def restore_items(
    job: InferJob,
    options: VideoOptions,
    backends: Backends,
    *,
    on_frame: FrameNews = lambda clip, done, of: None,
    on_note: Callable[[str], None] = lambda line: None,
) -> Generator[ItemResult, None, None]:
    """Each item's result as it ends. Raises what `restore_images` and `restore_clips` raise."""
    photographs = (item for item in find_items(job) if not is_clip(item.source))
    clips = (item for item in find_items(job) if is_clip(item.source))
    yield from restore_images(job, photographs, backends)
    yield from restore_clips(job, options, clips, backends, on_frame=on_frame, on_note=on_note)
