"""The `talker` command: `talker STAGE [options]` runs one stage.

Only the module of the stage that was asked for is imported, so `talker --help` is instant.
"""

import functools
import hashlib
import importlib
import inspect
import logging
import sys
import typing
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from talker import __version__
from talker.errors import UserError

COMMANDS = {
    "frames": "extract 25 fps frames from a video, cropped around the face",
    "audio": "extract 16 kHz mono sound, exactly as long as the frames",
    "speech": "extract speech features, one window per frame",
    "landmarks": "detect the face mesh and 68 landmarks in every frame",
    "parsing": "segment head, neck, torso and background",
    "blink": "estimate the eye closure (AU45) of every frame",
    "track": "estimate head poses, focal length and head shape",
    "background": "reconstruct the background behind the person",
    "layers": "compose training targets and torso images",
    "check": "verify a dataset folder and refuse clips that cannot give a good avatar",
    "pack": "pack a dataset folder into one file, for training elsewhere",
    "train": "train the avatar",
    "render": "render the avatar to a video",
    "speak": "render the avatar live, while speech arrives",
    "evaluate": "measure the avatar on the held-out frames, next to controls",
    "report": "write a page with all results of a subject",
    "bench": "measure how fast this machine renders and trains",
    "synthesize": "render the demo's synthetic person, with exact ground truth",
}

GPU_STAGES = {"train", "render", "evaluate", "report", "bench"}
WORKFLOW_KEYS = {"preset", "encoder", "options", "subjects"}
"""Keys that tell the workflow's configuration from a file with a section for each stage."""


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: talker STAGE [options]\n\n"
        f"{rows}\n\n"
        "`talker STAGE --help` lists a stage's options. `--config FILE` reads them from the\n"
        "workflow's configuration (config/config.yaml), or from a YAML file with a section for\n"
        "each stage."
    )


def _take_config(args: list[str]) -> tuple[Path | None, list[str]]:
    """Split `--config FILE` off the arguments."""
    for i, arg in enumerate(args):
        if arg.startswith("--config="):
            return Path(arg.removeprefix("--config=")), args[:i] + args[i + 1 :]
        if arg == "--config":
            if i + 1 == len(args):
                raise UserError("--config: expected the path of a YAML file")
            return Path(args[i + 1]), args[:i] + args[i + 2 :]
    return None, args


def _marks(hint: typing.Any) -> tuple[str, ...]:
    """What `Annotated` says of an argument, which may be optional."""
    parts = typing.get_args(hint) if not hasattr(hint, "__metadata__") else ()
    return getattr(hint, "__metadata__", ()) or sum(map(_marks, parts), ())


def _alone(stage: str, main: Callable[..., None]) -> Callable[..., None]:
    """Make `main` the only one to make its outputs, with a GPU of its own where it needs one."""
    from talker.core.files import OUTPUT, exclusive
    from talker.core.gpu import gpu_slot
    from talker.core.provenance import code_of

    marks = {
        role: _marks(hint)
        for role, hint in typing.get_type_hints(main, include_extras=True).items()
    }

    @functools.wraps(main)
    def run(**given: typing.Any) -> None:
        work = hashlib.sha256(f"{code_of(f'talker.{stage}')} {given}".encode())
        paths = {role: path for role, path in given.items() if isinstance(path, Path)}
        outputs = [path for role, path in paths.items() if OUTPUT in marks[role]]
        inputs = [path for role, path in paths.items() if not marks[role]]
        with exclusive(outputs, work.hexdigest()[:12], inputs) as needed:
            if needed:
                with gpu_slot() if stage in GPU_STAGES else nullcontext():
                    main(**given)

    return run


def _run(stage: str, args: list[str]) -> None:
    import tyro
    from pydantic import ValidationError

    from talker.core.config import explain

    main = importlib.import_module(f"talker.{stage}").main
    default = inspect.signature(main).parameters["config"].default
    # Options go by their own name, those of a group as --group.name.
    main.__annotations__["config"] = Annotated[type(default), tyro.conf.arg(name="")]
    main = _alone(stage, main)
    config_file, args = _take_config(args)
    if config_file is not None:
        main = functools.partial(main, config=_read_options(config_file, stage, type(default)))
    try:
        tyro.cli(main, prog=f"talker {stage}", args=args)
    except ValidationError as error:
        lines = explain(error, type(default), lambda key: f"--{key.replace('_', '-')}")
        raise UserError("\n  ".join(lines)) from error


def _read_options(path: Path, stage: str, config: type) -> typing.Any:
    """Read the options of a stage from a file: the workflow's configuration, or one of sections.

    Raises:
        UserError: the file holds neither, or an option is unknown or out of range.
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
            f"{path}: expected sections named after stages, or the workflow's configuration; "
            f"found the key '{unknown[0]}'"
        )
    return from_mapping(config, values.get(stage), f"{path}: {stage}")


def main() -> None:
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
        sys.exit(f"talker: unknown stage '{stage}'\n\n{_usage()}")
    try:
        _run(stage, args[1:])
    except UserError as error:
        sys.exit(f"talker {stage}: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
