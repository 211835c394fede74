"""Which settings of a run may change when it goes on."""

from typing import Any

from daad.config import Config
from daad.io import UserError

# What a run that goes on may set otherwise than before; epochs only at a constant learning rate.
RESUMABLE = ("epochs", "patience", "evaluate_every")


def settings_that_differ(stored: Any, config: Config) -> list[str]:
    """Name, with both values, what keeps a run with the settings `stored` from going on in `config`."""
    before, now = Config.from_dict(stored).to_dict(), config.to_dict()
    return [
        f"{name.replace('_', '-')} (was {before[name]}, now {now[name]})"
        for name in now
        if now[name] != before[name]
        and (name not in RESUMABLE or (name == "epochs" and config.schedule != "constant"))
    ]


def require_same_settings(path: object, stored: Any, config: Config) -> None:
    """Raise UserError where the settings `stored` in the file `path` are not those of `config`."""
    changed = settings_that_differ(stored, config)
    if changed:
        raise UserError(
            f"{path}: cannot go on with other settings: {', '.join(changed)}; "
            f"give the same ones, or train into a new folder"
        )
