"""What the scripts' command lines share: an option for every choice of `Config`, and the exit."""

import dataclasses
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_type_hints

import typer

from daad.config import Config, parse_division
from daad.errors import UserError

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, or one GPU such as cuda:1.")]
Devices = Annotated[int, typer.Option(help="Devices on each machine, by DDP.")]
Machines = Annotated[int, typer.Option(help="Machines.")]


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

        def with_options(**given: Any) -> Any:
            chosen = {field.name: given.pop(field.name) for field in fields}
            if chosen.get("division"):
                chosen["division"] = parse_division(chosen["division"])
            return command(Config(**chosen), **given)

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
    """The script on `arguments`; ends with SystemExit, code 2 after one line for bad input."""
    try:
        app(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
