"""`foreign_models.py` where its libraries are not there."""

import sys

import pytest

from foreign_models import main


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["resnet"], "model 'resnet': expected one of monai-autoencoder-2d, "),
        ([], "what it needs: pip install -c constraints.txt monai diffusers transformers"),
    ],
)
def test_what_is_missing_is_named(arguments, says, capsys, monkeypatch):
    for module in ("monai", "monai.networks.nets"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert says in capsys.readouterr().err
