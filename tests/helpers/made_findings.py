"""A scored test set of random pictures, without a network."""

from pathlib import Path

import torch

from daad.findings import Findings
from daad.pictures import Sample
from daad.scoring import Raw, Scale
from daad.verdict import Reference
from tests.helpers.stand_ins import TensorPictures


def make_samples(counts: dict[str, int], mask: Path | None = None) -> list[Sample]:
    return [
        Sample(
            Path(f"bottle/test/{defect}/{index}.png"), defect, None if defect == "good" else mask
        )
        for defect, count in counts.items()
        for index in range(count)
    ]


def make_findings(counts: dict[str, int], *, masks: bool = True) -> Findings:
    samples = make_samples(counts, Path("mask.png") if masks else None)
    n, size = len(samples), 16
    random = torch.Generator().manual_seed(0)
    x = torch.rand(n, 3, size, size, generator=random) * 2 - 1
    error_maps = torch.rand(n, size, size, generator=random)
    labels = torch.tensor([sample.label for sample in samples])
    marked = torch.zeros(n, size, size, dtype=torch.bool)
    marked[labels == 1, 4:8, 4:8] = masks
    reconstruction = torch.rand(n, generator=random, dtype=torch.float64) + labels
    pixels = (x * 100 + 128).to(torch.uint8)
    raw = Raw(reconstruction, None, error_maps, error_maps, pixels, torch.rand(n, generator=random))
    found = Findings(samples, TensorPictures(x), raw, reconstruction, "defect")
    found.truth = (marked, (labels == 0) | masks)  # in place of what the files of masks say
    return found


def judged(found: Findings, false_alarms: float) -> Findings:
    """The same by what the good pictures of it are like."""
    good = found.raw.evened_maps[~found.labels]
    made = Reference(good.mean(0), good.std(0), torch.empty(0), Scale.of([found.raw]), "held-out")
    found.reference = made._replace(scores=made.score(good).sort().values)
    found.threshold = found.reference.threshold(false_alarms)
    return found
