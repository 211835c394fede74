"""A trained run as one file for other programs: from a picture to its verdict, by ONNX or torch.export."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

import blockmem
from daad.io import UserError, write_atomically
from daad.pictures import even_light
from daad.predicting import Judge
from daad.scoring import evened_errors

Format = Literal["onnx", "torch"]
SUFFIXES: dict[Format, str] = {"onnx": "onnx", "torch": "pt2"}
INPUT = "pictures"
OUTPUTS = ("reconstruction", "map", "score", "p", "anomalous")
CHECKED = 8  # random pictures that both programs judge
TOLERANCE = 1e-4  # of what they may differ by, relative to the largest value
METADATA = "blockmem.json"  # in a file of torch.export


class Judging(nn.Module):
    """All that `Judge` does, as one module.

    Takes RGB pictures, uint8 (B, S, S, 3). Gives their reconstructions, float32 (B, S, S, 3) from 0 for
    black to 1 for white; the standardised maps, float32 (B, S, S); scores and p, float32 (B,); and
    whether each is anomalous, bool (B,).
    """

    mean: Tensor
    deviation: Tensor
    scores: Tensor

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.generator = judge.networks.generator
        self.brightness, self.threshold = judge.brightness, judge.threshold.value
        self._reference = judge.reference
        for name in ("mean", "deviation", "scores"):
            self.register_buffer(name, getattr(judge.reference, name))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        reference = self._reference._replace(
            mean=self.mean, deviation=self.deviation, scores=self.scores
        )
        x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
        if self.brightness is not None:
            x = even_light(x, self.brightness)
        x_hat = self.generator(x)
        maps = evened_errors(x, x_hat)
        scores = reference.score(maps)
        rebuilt = ((x_hat + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)
        p = reference.p_values(scores)
        standard = reference.standardise(maps)
        return rebuilt, standard, scores.float(), p.float(), scores > self.threshold


def export(judge: Judge, name: str, path: Path, form: Format = "onnx") -> float:
    """Write a run to `path`, one file with its own description; return by how much it differs.

    name: what it was trained on. UserError where a file is there, a library is missing, or the file
    judges otherwise than the run does.
    """
    if path.exists():
        raise UserError(f"{path} exists; give another --out, or remove it")
    module = Judging(judge).eval().requires_grad_(False)
    size = judge.config.image_size
    random = torch.Generator().manual_seed(0)
    shape = (CHECKED, size, size, 3)
    pictures = torch.randint(256, shape, generator=random, dtype=torch.uint8)
    described = description(judge, name)
    difference = 0.0

    def write(temporary: Path) -> None:
        nonlocal difference
        run = _WRITERS[form](module, pictures[:2], described, temporary)
        difference = _difference(module, run, pictures)

    with torch.no_grad():
        write_atomically(path, write)
    return difference


def description(judge: Judge, name: str) -> dict[str, str]:
    """Say in words and numbers what a file does, how to prepare its pictures, and what verdicts go by."""
    form, threshold = judge.config.form, judge.threshold
    return {
        "trained_on": name,
        "preprocessing": (
            "upright by EXIF; gray of 16 bits divided by white; transparency over white; RGB; "
            "resized with Pillow's BICUBIC to a square, by ImageOps.pad if fit is pad"
        ),
        "size": str(form.size),
        "fit": form.fit,
        "white": str(form.white),
        "even_light": str(judge.brightness is not None),
        "threshold": repr(threshold.value),
        "false_alarms": repr(threshold.rate),
        "verdicts": judge.reference.words(threshold),
        "blockmem": blockmem.__version__,
    }


Run = Callable[[np.ndarray], list[np.ndarray]]


def _write_onnx(module: Judging, example: Tensor, described: dict[str, str], path: Path) -> Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise UserError(
            "ONNX needs three packages more: pip install onnx onnxscript onnxruntime, or give "
            "--format torch"
        ) from error
    with warnings.catch_warnings():  # PyTorch's words to its own developers, and on torchvision
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
        )
    assert program is not None, "torch.onnx.export gave no program"
    model = program.model_proto
    for key, value in described.items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {INPUT: pictures})


def _write_torch(module: Judging, example: Tensor, described: dict[str, str], path: Path) -> Run:
    program = torch.export.export(
        module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, path, extra_files={METADATA: json.dumps(described)})
    again = torch.export.load(path).module()
    return lambda pictures: [one.numpy() for one in again(torch.from_numpy(pictures))]


_WRITERS: dict[Format, Callable[[Judging, Tensor, dict[str, str], Path], Run]] = {
    "onnx": _write_onnx,
    "torch": _write_torch,
}


def _difference(module: Judging, run: Run, pictures: Tensor) -> float:
    """Compare scores, one picture at a time and all together; UserError where they are not the same.

    Where a weight lies at the threshold of the memory, rounding decides whether it is dropped, and a
    single picture may differ by more. So the median over the pictures counts.
    """
    size = len(pictures)
    differences = []
    for count in (1, size):
        for part in pictures.split(count):
            own, other = module(part)[2].numpy(), run(part.numpy())[2]
            differences += (np.abs(own - other) / np.abs(own).max()).tolist()
    median = float(np.median(differences))
    if not median <= TOLERANCE:
        raise UserError(
            f"the exported file gives other scores than the run: they differ by {median:.1e} of their "
            f"size; use another --format, or other versions of torch and onnxscript"
        )
    return median
