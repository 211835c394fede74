"""What the scripts' command lines share: an option for every choice of `Config`, and the exit."""

import dataclasses
import inspect
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from daad.config import Config, parse_division
from daad.errors import UserError

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, or one GPU such as cuda:1.")]
Devices = Annotated[int, typer.Option(help="Devices on each machine, by DDP.")]
Machines = Annotated[int, typer.Option(help="Machines.")]
# Of the evaluation of a trained run.
Run = Annotated[Path, typer.Option(help="Folder of a trained run.")]
Moved = Annotated[
    Path | None, typer.Option(help="Where the data is now, if it is not where it was.")
]
Gamma = Annotated[float | None, typer.Option(help="As in training if not given.")]
Scaling = Annotated[str | None, typer.Option(help="As in training if not given.")]
BatchNorm = Annotated[str | None, typer.Option(help="As in training if not given.")]


def make_app(documentation: str, **choices: Any) -> typer.Typer:
    """A script's command line, with the first line of its docstring as help."""
    return typer.Typer(
        help=documentation.splitlines()[0],
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        **choices,
    )


def given(**choices: Any) -> dict[str, Any]:
    """Those of the choices that were made, None being none."""
    return {name: value for name, value in choices.items() if value is not None}


def auroc_text(value: float | None) -> str:
    """An AUROC to three digits; a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"


def pick_names(option: str, text: str, known: Collection[str]) -> list[str]:
    """The names in `text`, in the order of `known`; all of them for "all". UserError for others."""
    if text == "all":
        return list(known)
    wanted = {part.strip() for part in text.split(",")}
    unknown = sorted(wanted - set(known))
    if unknown:
        raise UserError(
            f"{option} {text}: no {', '.join(unknown) or '(empty)'}; give all, or some of these "
            f"with commas between: {', '.join(known)}"
        )
    return [name for name in known if name in wanted]


def parse_seeds(text: str) -> list[int]:
    """`"0,1,2"` as sorted numbers; UserError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--seeds {text}: give whole numbers with commas between, such as 0,1,2")
    return sorted({int(part) for part in parts})


def config_options(
    *left_out: str, defaults: dict[str, Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a typer command whose first parameter is a `Config` one option for each field of it.

    The fields `left_out` stay at their defaults; `defaults` differ from the paper's for a command.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        fields = [field for field in dataclasses.fields(Config) if field.name not in left_out]
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        options = [
            _parameter(field, (defaults or {}).get(field.name, field.default)) for field in fields
        ]

        def with_options(**values: Any) -> Any:
            chosen = {field.name: values.pop(field.name) for field in fields}
            if chosen.get("division"):
                chosen["division"] = parse_division(chosen["division"])
            return command(Config(**chosen), **values)

        parameters = [*own, *options]
        with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_options.__annotations__ = {p.name: p.annotation for p in parameters}
        return with_options

    return decorate


def _parameter(field: dataclasses.Field[Any], default: Any) -> inspect.Parameter:
    kind = get_type_hints(Config)[field.name]
    if field.name == "division":
        kind = str | None  # typer has no type for "three numbers or a word"
    option = typer.Option(rich_help_panel=field.metadata["panel"], help=field.metadata["help"])
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, option],
    )


def run_app(app: typer.Typer, arguments: Sequence[str] | None) -> None:
    """The script on `arguments`; ends with SystemExit, code 2 after one line for bad input.

    A file or folder that cannot be read or written is bad input too: the system's words name it.
    """
    try:
        app(arguments)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
