"""What a scored test set says, in figures: how well the scores rank it, and what the verdicts come to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from daad.form import Fit, Form
from daad.masks import load_masks, own_mask
from daad.metrics import image_auroc, pixel_areas, ranking
from daad.pictures import Pictures, Sample
from daad.scoring import Raw
from daad.verdict import Reference, Threshold

LIGHT = 0.8  # image AUROC by brightness alone, from which on it is said


@dataclass
class Findings:
    """A scored test set of n pictures; `anomaly` is "defect" or "class".

    eq7: the paper's score A (Eq. 7), (n,).
    reference, threshold: what `score`, p and verdict go by; None during training, when there is none.
    baselines: scores (n,) without a network, by name. fit: see `Form`.
    """

    samples: Sequence[Sample]
    pictures: Pictures
    raw: Raw
    eq7: Tensor
    anomaly: str
    reference: Reference | None = None
    threshold: Threshold | None = None
    baselines: Mapping[str, Tensor] = field(default_factory=dict)
    fit: Fit = "squeeze"

    @cached_property
    def truth(self) -> tuple[Tensor, Tensor]:
        """The masks, bool (n, S, S), and whether each is known, bool (n,); see `load_masks`."""
        return load_masks(self.samples, Form(self.raw.error_maps.shape[-1], self.fit))

    @cached_property
    def labels(self) -> Tensor:
        """Whether each picture is anomalous, bool (n,)."""
        return torch.tensor([sample.label for sample in self.samples], dtype=torch.bool)

    @cached_property
    def maps(self) -> Tensor:
        """The standardised maps, whose highest values are the scores; (n, S, S)."""
        assert self.reference is not None, "no normal pictures to compare with"
        return self.reference.standardise(self.raw.evened_maps)

    @cached_property
    def scores(self) -> Tensor:
        """What the pictures are ranked by, (n,): the score of `verdict`, or Eq. 7 without a reference."""
        if self.reference is None:
            return self.eq7
        return self.reference.score(self.raw.evened_maps)

    @property
    def auroc(self) -> float | None:
        """The area under the ROC curve of the scores."""
        return image_auroc(self.scores, self.labels)

    def verdicts(self) -> list[tuple[float, str]]:
        """Give p and the verdict of each picture."""
        assert self.reference is not None, "no normal pictures to compare with"
        assert self.threshold is not None, "no threshold"
        words = map(self.threshold.verdict, self.scores.tolist())
        return list(zip(self.reference.p_values(self.scores).tolist(), words, strict=True))

    def metrics(self) -> dict[str, Any]:
        """Compute all of metrics.json that is about the scores: over all pictures, and by defect."""
        defects: dict[str, Any] = {}
        for defect in dict.fromkeys(sample.defect for sample in self.samples if sample.label):
            members = torch.tensor([sample.defect == defect for sample in self.samples])
            areas = self._areas(members | ~self.labels)
            defects[defect] = {"count": int(members.sum()), **areas, **self._flagged(members)}
        counts = {
            "good": int((~self.labels).sum()),
            "anomalous": int(self.labels.sum()),
            "masks": int((self.truth[1] & self.labels).sum()),
        }
        return {
            "kind": self.anomaly,
            **ranking(self.scores, self.labels),
            **self._areas(torch.ones_like(self.labels)),
            **self._pixels(),
            "counts": counts,
            "verdict": self._verdict(),
            "defects": defects,
            "baselines": {
                name: image_auroc(scores, self.labels) for name, scores in self.baselines.items()
            },
        }

    def _areas(self, members: Tensor) -> dict[str, float | None]:
        """Compute areas over the pictures `members`, by pixel over those whose mask is known.

        "pixel_auroc_error" is by the bare squared error at the network's size.
        """
        masks, known = self.truth
        marked = members & known
        labels = self.labels[members]
        return {
            "image_auroc": image_auroc(self.scores[members], labels),
            "image_auroc_eq7": image_auroc(self.eq7[members], labels),
            "image_auroc_brightness": image_auroc(self.raw.brightness[members], labels),
            "pixel_auroc_error": image_auroc(self.raw.error_maps[marked], masks[marked]),
        }

    def _pixels(self) -> dict[str, float | None]:
        """Compare the standardised maps with the masks, at the pictures' own sizes."""
        masks, known = self.truth
        if self.reference is None or not masks.any():
            return {"pixel_auroc": None, "aupro": None}
        marked = [sample for sample, is_known in zip(self.samples, known, strict=True) if is_known]
        areas = pixel_areas(self.maps[known], map(own_mask, marked), self.fit)
        return {"pixel_auroc": areas.auroc, "aupro": areas.aupro}

    def _verdict(self) -> dict[str, Any] | None:
        if self.reference is None or self.threshold is None:
            return None
        return _basis(self.reference, self.threshold) | {
            "false_alarms_found": self._flagged(~self.labels).get("flagged"),
            "recall": self._flagged(self.labels).get("flagged"),
        }

    def _flagged(self, members: Tensor) -> dict[str, float]:
        """Give the share of the pictures `members` whose verdict is anomalous."""
        if self.threshold is None or not members.any():
            return {}
        return {
            "flagged": round(
                (self.scores[members] > self.threshold.value).double().mean().item(), 6
            )
        }


def untested(reference: Reference | None, false_alarms: float) -> dict[str, Any]:
    """Give what of metrics.json there is without a test set: what verdicts go by."""
    assert reference is not None, "neither test pictures nor normal ones to compare with"
    counts = dict.fromkeys(("good", "anomalous", "masks"), 0)
    basis = _basis(reference, reference.threshold(false_alarms))
    return {
        "kind": "defect",
        "counts": counts,
        "verdict": basis,
        "defects": {},
        "image_auroc": None,
    }


def _basis(reference: Reference, threshold: Threshold) -> dict[str, Any]:
    return {
        "false_alarms_asked": threshold.asked,
        "false_alarms": threshold.rate,
        "threshold": threshold.value,
        "normals": len(reference.scores),
        "source": reference.source,
        "words": reference.words(threshold),
    }


def remarks(metrics: Mapping[str, Any]) -> list[str]:
    """Say in sentences what a reader of these metrics should know: the verdicts' basis, simpler ways, light."""
    found = [metrics["verdict"]["words"]] if metrics.get("verdict") else []
    own = metrics.get("image_auroc")
    simple = {
        name: area for name, area in (metrics.get("baselines") or {}).items() if area is not None
    }
    if own is not None and simple:
        best = max(simple, key=lambda name: simple[name])
        how = "better than the network does" if simple[best] > own else "best, but not better"
        found.append(
            f"Without a network, {best} ranks these pictures {how}: AUROC {simple[best]:.3f} against "
            f"{own:.3f}."
        )
    light = metrics.get("image_auroc_brightness")
    if light is not None and max(light, 1 - light) > LIGHT and not metrics.get("even_light"):
        found.append(
            f"Brightness alone ranks these pictures with AUROC {light:.3f}: the light differs between "
            f"good and anomalous ones. Compare with --even-light."
        )
    return found
