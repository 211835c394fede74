"""What the scripts' command lines share: options for the choices of `Config`, `--config`, and the exit."""

import dataclasses
import itertools
import json
import math
import signal
import sys
import tomllib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from tyro.conf import arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo
from tyro.extras import SubcommandApp

from daad.config import PIXEL, RETIRED, Config, Division
from daad.io import UserError, printable

# What several commands take.
Device = Annotated[str, arg(help="auto, cpu, cuda, or one GPU such as cuda:1.")]
TensorBoard = Annotated[bool, arg(help="Write losses for TensorBoard, into the run's folder.")]
Settings = Annotated[  # commands need not look at it: `run_app` has put its choices among the options
    Path | None,
    arg(
        name="config",
        help="A TOML or JSON file of the choices below, or the config.json of a run; options that "
        "are given too count more.",
    ),
]
# What the evaluation of a trained run takes.
Run = Annotated[Path, arg(help="Folder of a trained run.")]
Moved = Annotated[Path | None, arg(help="Where the data is now, if it is not where it was.")]
Gamma = Annotated[float | None, arg(help="As in training if not given.")]
Scaling = Annotated[Literal["test", "normals"] | None, arg(help="As in training if not given.")]
FalseAlarms = Annotated[
    float | None, arg(help="Share of normal pictures that may be called anomalous; as in training.")
]
EvenLight = Annotated[bool, arg(help="Make each picture as bright as those of training.")]
BatchNorm = Annotated[Literal["eval", "batch"] | None, arg(help="As in training if not given.")]

Preset = Literal["try", "cpu", "paper"]
# Of `daad_mvtec.py`: options, which others count more than. `steps` are batches.
_SMALL: dict[str, Any] = {
    **{"image_size": 128, "batch_size": 4, "lr": 1e-3, "schedule": "cosine"},
    **{"memory_init": "blocks"},
}
PRESETS: dict[Preset, dict[str, Any]] = {
    "try": _SMALL | {"width": 8, "num_items": 62, "steps": 500},
    "cpu": _SMALL | {"width": 16, "num_items": 125, "steps": 4000},
    "paper": {},
}
QUICKER = "--preset cpu takes about ten minutes on two cores, --preset try less than one."
PRESET = (
    "try: less than a minute on two cores. cpu: about ten; the default without a GPU. paper: its "
    "settings, which are the defaults below; days without a GPU. Other options count more."
)
OPPOSITES = {"--no-discriminator": "--discriminator=False"}

registry = ConstructorRegistry()


def run_app(
    app: SubcommandApp,
    documentation: str | None,
    arguments: Sequence[str] | None,
    default: str = "--help",
    presets: Collection[str] = (),
) -> None:
    """Run a script on `arguments`, None being those of the shell; without any the command `default`.

    presets: the commands that have presets. documentation: help shows its first line. For bad input it exits as `in_one_line` says.
    """
    asked = list(sys.argv[1:] if arguments is None else arguments) or [default]
    with in_one_line(), registry:
        options = with_settings([OPPOSITES.get(one, one) for one in asked], presets)
        app.cli(args=options, description=(documentation or "").partition("\n")[0])


@contextmanager
def in_one_line() -> Iterator[None]:
    """Print bad input as one line and exit with code 2; at Ctrl-C and SIGTERM exit as shells expect.

    A file or folder that cannot be read or written is bad input too: the system's words name it.
    """
    try:
        yield
    except (UserError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print(str(error) or "stopped", file=sys.stderr)
        sys.exit(128 + getattr(error, "number", signal.SIGINT))


def with_settings(arguments: list[str], presets: Collection[str] = ()) -> list[str]:
    """Put a preset, then what the file of `--config FILE` chooses, before the command's other options."""
    chosen = [option for file in _given(arguments, "config") for option in _options(Path(file))]
    if arguments[0] in presets and "--help" not in arguments:
        names = _given(arguments, "preset") or ["paper" if torch.cuda.is_available() else "cpu"]
        chosen = _preset(names[-1], [*chosen, *arguments]) + chosen
    return [*arguments[:1], *chosen, *arguments[1:]]


def _given(arguments: Sequence[str], name: str) -> list[str]:
    """Find the values of an option that is written `--name VALUE` or `--name=VALUE`."""
    values = [one.partition("=")[2] for one in arguments if one.startswith(f"--{name}=")]
    return values + [after for one, after in itertools.pairwise(arguments) if one == f"--{name}"]


def _preset(name: str, others: Sequence[str]) -> list[str]:
    """Write a preset as options; it has no say in how long to train where `others` have epochs."""
    wanted = dict(PRESETS.get(cast("Preset", name), {}))  # tyro refuses other names
    if any(one.partition("=")[0] == "--epochs" for one in others):
        wanted.pop("steps", None)
    return [f"--{key.replace('_', '-')}={setting_text(value)}" for key, value in wanted.items()]


def _options(path: Path) -> list[str]:
    """Write the settings of a file as options; null is what is not given."""
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        settings = dict(content.get("config", content))  # a run's own has more than its choices
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"--config {path}: cannot be read ({error}); write TOML lines such as width = 32, or a "
            f"JSON object"
        ) from error
    known = {field.name: field.type for field in dataclasses.fields(Config)}
    options = []
    for key, value in settings.items():
        name, option = key.replace("-", "_"), key.replace("_", "-")
        if name in RETIRED:
            continue
        if name not in known:
            raise UserError(f"--config {path}: unknown setting {key}; give {', '.join(known)}")
        if known[name] is bool and isinstance(value, bool):
            options.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            options.append(f"--{option}={setting_text(value)}")
    return options


@registry.primitive_rule
def _own_types(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Read what tyro has no option for: three numbers or a word, and a flag that may be left open."""
    wanted: Any = kind.type
    if wanted == Division | Literal["pixel"] | None:
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"R_H,R_W,R_C|{PIXEL}",
            instance_from_str=lambda given: parse_division(given[0]),
            is_instance=lambda value: value is None or isinstance(value, tuple | str),
            str_from_instance=lambda value: [setting_text(value)],
        )
    if wanted == bool | None:
        return PrimitiveConstructorSpec(
            nargs=(0, 1),
            metavar="[True|False]",
            instance_from_str=lambda given: given != ["False"],
            is_instance=lambda value: value is None or isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
            choices=("True", "False"),
        )
    return None


def parse_division(text: str) -> Division | Literal["pixel"]:
    """Read `"8,8,1"` as `(8, 8, 1)`; `"pixel"` stays. UserError for anything else."""
    if text == PIXEL:
        return PIXEL
    try:
        r_h, r_w, r_c = (int(part) for part in text.split(","))
    except ValueError:
        r_h = r_w = r_c = 0
    if min(r_h, r_w, r_c) < 1:
        raise UserError(f"--division {text}: give r_h,r_w,r_c (such as 8,8,1) or {PIXEL}")
    return r_h, r_w, r_c


def setting_text(value: Any) -> str:
    """Write a setting as its option takes it: a division as 8,8,1."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def given(**choices: Any) -> dict[str, Any]:
    """Keep the choices that were made, None being none."""
    return {name: value for name, value in choices.items() if value is not None}


def epochs_of(steps: int, pictures: int, config: Config) -> int:
    """Count the epochs of `pictures` that are about as long as `steps` batches; at least 1."""
    return max(1, round(steps / math.ceil(pictures / config.batch_size)))


def auroc_text(value: float | None) -> str:
    """Write an AUROC with three digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"
