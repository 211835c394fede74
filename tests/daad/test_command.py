"""Options of the scripts: every choice of `Config`, from the command line or from a file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tyro.conf import OmitArgPrefixes
from tyro.extras import SubcommandApp

from daad import command
from daad.config import Config
from tests.helpers.scripts import Done, call, misused, refused

DEFAULTS = Config(epochs=7)


def configured(*arguments: Any) -> tuple[Done, Config | None]:
    """How `learn` of a small script ended, and the configuration it was called with."""
    app = SubcommandApp()
    seen: list[Config] = []

    @app.command
    def learn(
        config: OmitArgPrefixes[Config] = DEFAULTS,
        *,
        settings: command.Settings = None,
    ) -> None:
        """Learn."""
        seen.append(config)

    @app.command
    def nothing(stop: bool = False) -> None:
        """Do nothing."""
        raise KeyboardInterrupt if stop else OSError("no such disk")

    done = call(lambda given: command.run_app(app, "A script.", given), *arguments)
    return done, seen[0] if seen else None


def test_a_command_has_its_own_defaults() -> None:
    assert configured("learn") == (Done(0, "", ""), DEFAULTS)
    assert configured("learn", "--width", 8)[1] == dataclasses.replace(DEFAULTS, width=8)


@pytest.mark.parametrize(
    ("options", "choice"),
    [
        ("--division 4,2,1", {"division": (4, 2, 1)}),
        ("--division pixel", {"division": "pixel"}),
        ("--discriminator", {"discriminator": True}),
        ("--discriminator True --width 8", {"discriminator": True, "width": 8}),
        ("--no-discriminator", {"discriminator": False}),
        ("--renormalize", {"renormalize": True}),
        ("--no-alignment-trains-discriminator", {"alignment_trains_discriminator": False}),
        ("--lr 1e-3 --num-items 5", {"lr": 1e-3, "num_items": 5}),
        ("--flips none", {"flips": "none"}),
    ],
)
def test_every_kind_of_choice_has_an_option(options: str, choice: dict[str, Any]) -> None:
    assert configured("learn", *options.split())[1] == dataclasses.replace(DEFAULTS, **choice)


configs = st.builds(
    Config,
    variant=st.sampled_from(["ae", "memae", "daad", "daad+"]),
    division=st.sampled_from([None, "pixel", (8, 8, 1), (4, 2, 2)]),
    discriminator=st.sampled_from([None, True, False]),
    renormalize=st.booleans(),
    lr=st.none() | st.floats(1e-6, 1),
    gamma=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
    flips=st.sampled_from([None, "both", "none"]),
)


@given(configs)
def test_the_config_of_a_run_comes_back_as_options(
    tmp_path_factory: pytest.TempPathFactory, config: Config
) -> None:
    path = tmp_path_factory.mktemp("run") / "config.json"
    path.write_text(json.dumps({"config": config.to_dict(), "data": {"root": "elsewhere"}}))
    options = command.with_settings(["learn", "--config", str(path)])
    assert configured(*options)[1] == config


def test_toml_is_read_and_options_count_more(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('variant = "daad+"\nimage-size = 64\nwidth = 8\ndivision = [2, 2, 1]\n')
    expected = dataclasses.replace(
        DEFAULTS, variant="daad+", image_size=64, width=16, division=(2, 2, 1)
    )
    assert configured("learn", "--config", path, "--width", 16)[1] == expected
    assert configured("learn", "--width=16", f"--config={path}")[1] == expected


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("c.toml", "width = ", "cannot be read"),
        ("c.json", "[1]", "cannot be read"),
        ("c.toml", "colour = 3", "unknown setting colour"),
    ],
)
def test_a_file_that_is_no_settings_is_named(
    name: str, content: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    refused(configured("learn", "--config", tmp_path / name)[0], name, text)
    refused(configured("learn", "--config", tmp_path / "none")[0], "No such file")


def test_the_configuration_of_an_earlier_version_is_taken(tmp_path: Path) -> None:
    settings = dataclasses.asdict(DEFAULTS) | {"checkpoint_every": 50, "width": 24}
    (tmp_path / "config.json").write_text(json.dumps({"config": settings}))
    done, seen = configured("learn", "--config", tmp_path / "config.json")
    assert done.returncode == 0
    assert seen == dataclasses.replace(DEFAULTS, width=24)


def test_what_cannot_be_is_refused_with_code_2(tmp_path: Path) -> None:
    misused(configured("learn", "--variant", "vae")[0], "'vae'", "'daad+'")
    misused(configured("learn", "--width", "wide")[0], "--width", "wide")
    misused(configured("learn", "--discriminator", "maybe")[0], "maybe")
    misused(configured("learn", "--colour", "red")[0], "--colour")
    refused(configured("learn", "--division", "8,8")[0], "give r_h,r_w,r_c")
    refused(configured("nothing")[0], "no such disk")
    (tmp_path / "c.toml").write_text('lr = "fast"')
    misused(configured("learn", "--config", tmp_path / "c.toml")[0], "fast")


def test_an_interrupted_script_ends_without_a_traceback() -> None:
    assert configured("nothing", "--stop")[0] == Done(130, "", "stopped\n")


def test_help_names_the_choices_and_is_shown_where_nothing_is_asked() -> None:
    done, _ = configured("learn", "--help")
    for text in ("{ae,ae-skip,memae,memae-skip,daad,daad+}", "--config", "(default: 7)"):
        assert text in done.stdout
    assert "A script." in configured()[0].stdout
