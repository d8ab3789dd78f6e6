"""Filter graphs of the ffmpeg program, built with ffmpeg-python.

Everything that needs packets, timestamps or frames in memory uses PyAV (`video_reader`,
`video_writer`). Graphs of whole files are shorter here: filters that the user chooses for a video,
and two videos next to each other. The program is the `ffmpeg` of the machine, or that of the
package imageio-ffmpeg.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from talker.clip import FPS
from talker.core.files import atomic_write
from talker.errors import UserError
from talker.media.container import open_media

SCALER = "area+accurate_rnd+full_chroma_int+bitexact"
"""Options of swscale; without accurate rounding every frame becomes one level darker."""

LOSSLESS = {"preset": "ultrafast", "qp": 0}
"""Options of libx264 that keep every value."""
QUIET = ("-nostdin", "-loglevel", "error")
"""Arguments that make ffmpeg non-interactive and let it print only errors."""


def ffmpeg_program() -> str:
    """Return the path of the ffmpeg program.

    Raises:
        ImportError: there is none, and imageio-ffmpeg is not installed.
    """
    if program := shutil.which("ffmpeg"):
        return program
    from imageio_ffmpeg import get_ffmpeg_exe  # pyright: ignore[reportMissingImports]

    return get_ffmpeg_exe()


@contextmanager
def filtered(video: Path, filters: str, folder: Path) -> Iterator[Path]:
    """Yield a lossless copy of a video whose frames have passed through FFmpeg's filters.

    Timestamps and audio are those of the video. The copy is deleted when the block ends.

    Args:
        video: video to read.
        filters: chain of filters as for ffmpeg's option -vf; empty yields the video itself.
        folder: folder with space for the copy.

    Raises:
        UserError: the video cannot be read, or a filter does not exist or fails.
        ImportError: ffmpeg-python is not installed, or there is no ffmpeg program.
    """
    if not filters:
        yield video
        return
    ffmpeg: Any = import_module("ffmpeg")  # its functions are created at run time

    with open_media(video, "a video"):
        pass  # refuses files that refer to other files, as everywhere else
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".filtered.talker-", dir=folder) as scratch:
        copy = Path(scratch, "filtered.mkv")
        source = ffmpeg.input(str(video.resolve()), protocol_whitelist="file")
        graph = ffmpeg.output(
            *(source["v:0"], source["a?"], str(copy)),
            vf=filters,
            vcodec="libx264",
            acodec="copy",
            fps_mode="passthrough",
            avoid_negative_ts="disabled",  # FFmpeg 5 would delay the video
            **LOSSLESS,
        )
        action = f"apply the filters '{filters}' to {video}"
        _run(graph.global_args("-copyts", *QUIET), ffmpeg_program(), action)
        yield copy


def side_by_side(
    real: Path,
    first: int,
    rendered: Path,
    size: tuple[int, int],
    target: Path,
    crf: int = 18,
    codec: str = "libx264",
    tags: Mapping[str, str] = MappingProxyType({}),
    finish: Callable[[Path], None] = lambda _: None,
) -> None:
    """Write a video that shows real frames on the left and a rendered video on the right.

    Args:
        real: pattern of the real frames, such as `ori_imgs/%d.jpg`.
        first: number of the real frame that belongs to the first rendered frame.
        rendered: rendered video; its audio is copied.
        size: height and width in pixels of the rendered frames, to which real ones are scaled.
        target: .mp4 file to write.
        crf: constant rate factor of libx264, or the constant quality of another encoder.
        codec: name of FFmpeg's encoder, such as libx264 or h264_nvenc.
        tags: metadata of the file by FFmpeg's names.
        finish: function that receives the path of the complete file before the file appears.

    Raises:
        UserError: ffmpeg cannot read or write a file.
        ImportError: ffmpeg-python is not installed, or there is no ffmpeg program.
    """
    ffmpeg: Any = import_module("ffmpeg")  # its functions are created at run time

    height, width = size
    pattern = f"{str(real.parent).replace('%', '%%')}/{real.name}"
    left = ffmpeg.input(pattern, start_number=first, framerate=FPS)
    # Colors as in talker.media.video_writer: BT.601 with limited range. Odd sizes grow by one
    # repeated pixel, as they do there.
    left = left.filter(
        "scale", width, height, out_color_matrix="bt601", out_range="tv", flags=SCALER
    )
    if height % 2 or width % 2:
        left = left.filter("format", "yuv444p").filter("pad", "ceil(iw/2)*2", "ceil(ih/2)*2")
        left = left.filter("fillborders", right=width % 2, bottom=height % 2, mode="smear")
    left = left.filter("format", "yuv420p")
    right = ffmpeg.input(str(rendered))
    picture = ffmpeg.filter([left, right.video.filter("format", "yuv420p")], "hstack", shortest=1)
    quality = {"crf": crf} if codec.startswith("lib") else {"cq": crf}
    with atomic_write(target) as (scratch,):
        graph = ffmpeg.output(
            *(picture, right.audio, str(scratch)),
            vcodec=codec,
            acodec="copy",
            movflags="+faststart",
            colorspace="smpte170m",
            color_primaries="bt709",
            color_trc="iec61966-2-1",
            color_range="tv",
            map_metadata=-1,
            **{f"metadata:g:{i}": "=".join(tag) for i, tag in enumerate(tags.items())},
            **quality,
        )
        _run(graph.global_args(*QUIET), ffmpeg_program(), f"write {target}")
        finish(scratch)


def _run(graph: Any, program: str, action: str) -> None:
    """Run a filter graph; raise a UserError that names `action` if it fails."""
    ffmpeg: Any = import_module("ffmpeg")  # its functions are created at run time

    try:
        graph.overwrite_output().run(cmd=program, capture_stdout=True, capture_stderr=True)
    except ffmpeg.Error as error:
        lines = (error.stderr or b"").decode(errors="replace").strip().splitlines()
        reason = lines[0] if lines else "it gave no reason"
        raise UserError(f"ffmpeg could not {action}: {reason}") from error
