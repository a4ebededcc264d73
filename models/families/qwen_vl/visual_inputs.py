"""A batch's pictures and clips checked against its tokens, on the host."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from models.families.base import VisualInputs
from models.families.qwen_vl.config import QwenVLConfig
from models.inputs.mrope_positions import Span, mrope_positions
from models.inputs.pixels import check_image_tokens, check_pixels
from models.vision.patch_grid import pack_frames

__all__ = ["ARRAY_NAMES", "visual_inputs"]

ARRAY_NAMES = (
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "second_per_grid_ts",
    "mm_token_type_ids",
)

_LATEST = 2**30
"""Position of a clip's last frame: positions are int32."""


class _Visuals(NamedTuple):
    """The pictures, or the clips, of a batch.

    Attributes:
        patches: of all frames [patches, width]. grids: frames, rows, columns of each, in patches.
    """

    patches: np.ndarray
    grids: list[tuple[int, int, int]]


def visual_inputs(
    config: QwenVLConfig, ids: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> VisualInputs:
    """See `models.families.base.Family.visual_inputs`.

    Patches are packed as `models.vision.patch_grid` says, pictures before clips.
    """
    images = _read(config, arrays, "pixel_values", "image_grid_thw")
    videos = _read(config, arrays, "pixel_values_videos", "video_grid_thw")
    _check_types(config, ids, mask, arrays.get("mm_token_type_ids"))
    image, video = config.visual_token_ids
    merge = config.vision.merge
    for token, visuals in ((image, images), (video, videos)):
        needed = sum(t * h * w for t, h, w in visuals.grids) // merge**2
        found = int((ids == token).sum())
        check_image_tokens(token, found, len(visuals.grids), needed)
    intervals = _intervals(config, arrays.get("second_per_grid_ts"), videos.grids)
    if not images.grids and not videos.grids:
        return VisualInputs()
    spans = {
        image: [_span(grid, merge, np.int64(1)) for grid in images.grids],
        video: [
            _span(part, merge, interval)
            for grid, interval in zip(videos.grids, intervals, strict=True)
            for part in ([(1, *grid[1:])] * grid[0] if config.frames_apart else [grid])
        ],
    }
    positions = mrope_positions(ids, mask, spans)
    grids = [*images.grids, *videos.grids]
    sizes = [(h, w) for t, h, w in grids for _ in range(t)]
    frames = np.repeat(np.arange(len(sizes)), [h * w // merge**2 for h, w in sizes])
    # Pictures and clips alternate in a batch; the frames of each lie in the order of their tokens.
    visual = ids[np.isin(ids, config.visual_token_ids)]
    split = int((visual == image).sum())
    feature_frames = np.empty(len(visual), np.int32)
    feature_frames[visual == image], feature_frames[visual == video] = np.split(frames, [split])
    patches = np.concatenate([images.patches, videos.patches])
    pixels, layout = pack_frames(patches, sizes, feature_frames, merge)
    return VisualInputs(pixels, layout, positions)


def _read(
    config: QwenVLConfig, arrays: Mapping[str, np.ndarray], pixels_name: str, grid_name: str
) -> _Visuals:
    """Patches and grids, which have to come together."""
    pixels, grid = arrays.get(pixels_name), arrays.get(grid_name)
    width = config.vision.patch_width
    if pixels is None and grid is None:
        return _Visuals(np.zeros((0, width), np.float32), [])
    if pixels is None or grid is None:
        missing, given = (pixels_name, grid_name) if pixels is None else (grid_name, pixels_name)
        raise ValueError(f"{missing} is missing: {given} needs it")
    pixels = check_pixels(pixels, (width,), f"[patches, {width}]", name=pixels_name)
    merge = config.vision.merge
    valid = grid.ndim == 2 and grid.shape[1] == 3 and np.issubdtype(grid.dtype, np.integer)
    if not valid or (grid < 1).any() or (grid[:, 1:] % merge).any():
        raise ValueError(
            f"{grid_name}: expected integers [pictures, 3], numbers of frames, rows and columns of "
            f"patches, the latter two multiples of {merge}; got {grid.dtype} {grid.shape}"
        )
    grids = [(t, h, w) for t, h, w in grid.tolist()]
    needed = sum(t * h * w for t, h, w in grids)
    if needed != len(pixels):
        raise ValueError(
            f"{pixels_name}: expected the {needed} patches of {grid_name}, got {len(pixels)}"
        )
    return _Visuals(pixels, grids)


def _check_types(
    config: QwenVLConfig, ids: np.ndarray, mask: np.ndarray, types: np.ndarray | None
) -> None:
    """Checks that types say what the ids say: 1 at tokens of pictures, 2 at those of clips."""
    if types is None:
        return
    image, video = config.visual_token_ids
    expected = np.where(ids == image, 1, np.where(ids == video, 2, 0))
    if types.shape != ids.shape or (types != expected)[mask].any():
        raise ValueError(
            f"mm_token_type_ids: expected {ids.shape}, 1 at image tokens (id {image}), 2 at video "
            f"tokens (id {video}) and 0 elsewhere; got {types.shape} with other numbers"
        )


def _intervals(
    config: QwenVLConfig, seconds: np.ndarray | None, grids: Sequence[tuple[int, int, int]]
) -> list[np.number]:
    """Steps of the time axis between two frames of each clip, one for each of their grids."""
    videos = len(grids)
    if seconds is None:
        return [np.int64(config.tokens_per_second or 1)] * videos
    if config.tokens_per_second is None:
        raise ValueError(f"second_per_grid_ts: {config.model_type} models do not take it")
    numbers = seconds.dtype.kind in "iuf" and seconds.shape == (videos,)
    if not numbers or not (np.isfinite(seconds) & (seconds >= 0)).all():
        raise ValueError(
            f"second_per_grid_ts: expected {videos} numbers of at least 0, one for each video, "
            f"got {seconds.dtype} {seconds.shape}"
        )
    frames = np.array([grid[0] for grid in grids])
    longest = frames * config.tokens_per_second * seconds.astype(float)
    if (longest > _LATEST).any():
        raise ValueError(
            f"second_per_grid_ts: expected clips of at most {_LATEST} steps of "
            f"1/{config.tokens_per_second} second, got {longest.max():g}"
        )
    return list(seconds * seconds.dtype.type(config.tokens_per_second))


def _span(grid: tuple[int, int, int], merge: int, interval: np.number) -> Span:
    frames, rows, columns = grid
    # Rounded as transformers does: the product in the dtype of the seconds, then cut.
    times = (np.arange(frames, dtype=interval.dtype) * interval).astype(np.int64)
    return Span(tuple(times.tolist()), rows // merge, columns // merge)
