"""The `talker` command: `talker STAGE [options]` runs one stage.

Only the module of that stage is imported, so `talker --help` is instant.
"""

import functools
import hashlib
import importlib
import inspect
import io
import logging
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from talker import __version__
from talker.core.boundary import (
    allocate_blas_buffers,
    boundary,
    use_writable_caches,
    watch_for_crashes,
)
from talker.errors import UserError

COMMANDS = {
    "run": "turn a video into a talking avatar: all stages, videos and a report",
    "demo": "render a synthetic person and train an avatar on it; needs no video and no GPU",
    "frames": "extract 25 fps frames from a video, cropped around the face",
    "audio": "extract 16 kHz mono audio with exactly the duration of the frames",
    "speech": "extract speech features, one window per frame",
    "landmarks": "detect the face mesh and 68 landmarks in every frame",
    "parsing": "segment head, neck, torso and background",
    "blink": "estimate eye closure and brow motion in every frame",
    "shots": "find the cuts of the clip, and reject frames whose face cannot be used",
    "fit": "fit the head's shape, the focal length and the poses to the landmarks",
    "track": "estimate the head pose of every frame from landmarks and optical flow",
    "overlay": "write a video of the tracked head over the frames, for visual inspection",
    "background": "reconstruct the background behind the person",
    "layers": "extract the torso, and composite the person over the reconstructed background",
    "verify": "verify that a dataset folder is complete and that its files belong together",
    "lipsync": "measure how well the mouth moves with the audio of a dataset folder",
    "check": "refuse a clip that is unlikely to give a good avatar",
    "adopt": "check a dataset folder of another project (such as GaussianTalker) before using it",
    "export": "copy a dataset folder and convert it for another project (such as GaussianTalker)",
    "pack": "pack a dataset folder into one file for training on another machine",
    "prior": "learn from other speakers how speech maps to expressions; for avatars of short clips",
    "train": "train the avatar",
    "bundle": "write a trained avatar to one file that can be rendered without the dataset folder",
    "render": "render the avatar to a video",
    "player": "write a web page that plays the avatar in 3D",
    "splats": "write the Gaussians of the avatar as .ply or .spz, for other viewers",
    "speak": "render the avatar live from a stream of speech",
    "evaluate": "evaluate the avatar on frames that were not used for training",
    "report": "write an HTML page with all results of a subject",
    "bench": "measure how fast this machine renders and trains, or compare the quality of avatars",
    "synthesize": "render the demo's synthetic person, with exact ground truth",
    "serve": "serve a web page on which people make avatars and talk with them",
    "view": "show an avatar in the browser, move its face and let it speak",
    "weights": "list the optional models, or download some of them",
    "info": "print what a bug report needs: versions, GPU, memory, disk",
}

TOOLS = {
    "adopt",
    "bench",
    "bundle",
    "demo",
    "export",
    "info",
    "pack",
    "player",
    "prior",
    "run",
    "serve",
    "speak",
    "splats",
    "synthesize",
    "view",
    "weights",
}
"""Commands in `talker/tools`. They are not stages between a video and the report on its avatar."""
GPU_STAGES = {"train": False, "bench": False, "render": True, "evaluate": True}
"""Stages that take a slot of a GPU before they start, and whether they share it with other jobs.
`speak` takes none, because live speech must not wait."""
WORKFLOW_KEYS = {"preset", "encoder", "options", "subjects"}
"""Keys that occur in the workflow's configuration, but not in a file with a section per stage."""


def module_of(stage: str) -> str:
    """Return the dotted name of the module of a command."""
    return f"talker.tools.{stage}" if stage in TOOLS else f"talker.{stage}"


def _usage() -> str:
    """Return the text of `talker --help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: talker STAGE [options]\n\nSTAGE is one of:\n"
        f"{rows}\n\n"
        "`talker STAGE --help` lists the options of a stage. `talker STAGE --config FILE` reads\n"
        "them from a YAML file: either the configuration of the Snakemake workflow\n"
        "(config/config.yaml), or a file with one section for each stage. Options on the command\n"
        "line override those of the file. For `run`, `demo` and `serve`, `--config FILE` sets\n"
        "only the options of the command itself, and `--configfile FILE` gives the configuration\n"
        "of the workflow that they start.\n\n"
        "Where a help text writes an option without leading dashes, it is the name in the YAML\n"
        "file: `density.min_opacity` is the option --density.min-opacity on the command line.\n"
        "docs/conventions.md explains the terms used in the help texts."
    )


def _take_config(args: list[str]) -> tuple[Path | None, list[str]]:
    """Return the file of `--config FILE`, if given, and the other arguments."""
    for i, arg in enumerate(args):
        if arg.startswith("--config="):
            return Path(arg.removeprefix("--config=")), args[:i] + args[i + 1 :]
        if arg == "--config":
            if i + 1 == len(args):
                raise UserError("--config needs the path of a YAML file.")
            return Path(args[i + 1]), args[:i] + args[i + 2 :]
    return None, args


def _annotations(hint: typing.Any) -> tuple[str, ...]:
    """Return the metadata of an argument's `Annotated` type, which may be optional."""
    parts = typing.get_args(hint) if not hasattr(hint, "__metadata__") else ()
    return getattr(hint, "__metadata__", ()) or sum(map(_annotations, parts), ())


def _exclusive(stage: str, main: Callable[..., None]) -> Callable[..., None]:
    """Wrap `main` so that it holds the lock of its outputs and, if it needs one, a GPU."""
    from talker.core.exclusive import exclusive
    from talker.core.files import OUTPUT
    from talker.core.provenance import code_of

    roles = {
        name: _annotations(hint)
        for name, hint in typing.get_type_hints(main, include_extras=True).items()
    }

    @functools.wraps(main)
    def run(**arguments: typing.Any) -> None:
        work = hashlib.sha256(f"{code_of(module_of(stage))} {arguments}".encode())
        paths = {name: path for name, path in arguments.items() if isinstance(path, Path)}
        outputs = [path for name, path in paths.items() if OUTPUT in roles[name]]
        inputs = [path for name, path in paths.items() if not roles[name]]
        with exclusive(outputs, work.hexdigest()[:12], inputs) as needed:
            if needed:
                with _gpu(stage, arguments.get("config")):
                    main(**arguments)

    return run


@contextmanager
def _gpu(stage: str, config: typing.Any) -> Iterator[None]:
    """Hold a GPU while the block runs, if the stage uses one and the machine has one."""
    from talker.core.gpu import gpu_slot, require_usable_gpu

    if stage not in GPU_STAGES or getattr(config, "device", "auto") == "cpu":
        yield
        return
    with gpu_slot(shared=GPU_STAGES[stage]):
        require_usable_gpu()
        yield


def _run(stage: str, args: list[str]) -> None:
    """Parse the arguments of a stage and run it."""
    import tyro
    from pydantic import ValidationError

    from talker.core.config import explain, unwrap

    main = importlib.import_module(module_of(stage)).main
    default = inspect.signature(main).parameters["config"].default
    # An option of the dataclass becomes a flag with the same name; an option of a group becomes
    # --group.name.
    main.__annotations__["config"] = Annotated[type(default), tyro.conf.arg(name="")]
    main.__doc__ = unwrap(main.__doc__ or "", indent=8)
    main = _exclusive(stage, main)
    config_file, args = _take_config(args)
    if config_file is not None:
        main = functools.partial(main, config=_read_options(config_file, stage, type(default)))
    try:
        tyro.cli(main, prog=f"talker {stage}", args=args)
    except ValidationError as error:
        lines = explain(error, type(default), lambda key: f"--{key.replace('_', '-')}")
        raise UserError("\n  ".join(lines)) from error


def _read_options(path: Path, stage: str, config: type) -> typing.Any:
    """Read the options of a stage from a file.

    The file is the workflow's configuration, or has a section for each stage.

    Raises:
        UserError: the file is neither, or an option is unknown or out of range.
    """
    from talker.core.config import from_mapping, read_yaml
    from talker.core.presets import choose_preset, merge_options

    values = read_yaml(path)
    if WORKFLOW_KEYS & set(values):
        preset = choose_preset(values.get("preset", "auto"))
        presets = path.parent / "presets" / f"{preset}.yaml"
        options = merge_options(read_yaml(presets) if presets.exists() else {}, values)
        return from_mapping(config, options.get(stage), f"{path}: options: {stage}")
    if unknown := sorted(set(values) - set(COMMANDS)):
        raise UserError(
            f"{path} has the key '{unknown[0]}', which is neither the name of a stage nor a key "
            "of the configuration of the workflow."
        )
    return from_mapping(config, values.get(stage), f"{path}: {stage}")


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not all names fit the encoding of the terminal
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = sys.argv[1:]
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return
    if args[0] == "--version":
        print(f"talker {__version__}")
        return
    stage = args[0]
    if stage not in COMMANDS:
        sys.exit(f"talker: There is no stage '{stage}'.\n\n{_usage()}")
    use_writable_caches()
    watch_for_crashes(stage)
    with boundary(stage):
        allocate_blas_buffers()
        _run(stage, args[1:])


if __name__ == "__main__":
    main()
