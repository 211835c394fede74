"""What the figures of a run say in words."""

from typing import Any

import pytest

from daad.findings import remarks


def metrics(**others: Any) -> dict[str, Any]:
    verdict = {"words": "Verdicts go by 40 normal picture(s) held out from training."}
    return {"image_auroc": 0.9, "verdict": verdict, "baselines": {}} | others


def test_what_verdicts_go_by_comes_first() -> None:
    assert remarks(metrics()) == ["Verdicts go by 40 normal picture(s) held out from training."]


def test_the_best_of_the_simple_ways_is_named_and_whether_it_is_better() -> None:
    baselines = {"mean picture": 0.91, "PCA 50": 0.95, "nearest patch": 0.9, "brightness": None}
    (_, said) = remarks(metrics(baselines=baselines))
    assert said == (
        "Without a network, PCA 50 ranks these pictures better than the network does: AUROC 0.950 "
        "against 0.900."
    )
    (_, said) = remarks(metrics(baselines={"PCA 50": 0.9, "mean picture": 0.2}))
    assert "PCA 50 ranks these pictures best, but not better: AUROC 0.900" in said


@pytest.mark.parametrize(("light", "is_said"), [(0.85, True), (0.15, True), (0.79, False)])
def test_light_that_tells_good_from_bad_is_said(light: float, is_said: bool) -> None:
    said = remarks(metrics(image_auroc_brightness=light))
    assert any("--even-light" in one for one in said) == is_said
    assert not remarks(metrics(image_auroc_brightness=light, even_light=True))[1:]


def test_a_run_without_a_test_set_has_the_verdicts_basis_alone() -> None:
    assert len(remarks(metrics(image_auroc=None) | {"baselines": {}})) == 1
    assert remarks({"image_auroc": 0.9}) == []  # of runs that need no reference
