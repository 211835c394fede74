"""Judge pictures by an exported run: `python run_onnx.py MODEL.onnx PICTURE...`; needs no PyTorch.

Prints score, p, verdict and name of each. Exit code 1: some could not be read.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepare(name: str, described: dict[str, str]) -> np.ndarray:
    """Read a picture as the run did in training: uint8 (1, S, S, 3)."""
    with Image.open(name) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # gray of 16 bits
        values, white = np.asarray(image, np.float32), int(described["white"])
        if values.max() > white:
            raise ValueError(f"it holds the value {values.max():.0f}, and white is {white}")
        image = Image.fromarray((values * (255 / white)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image, size = image.convert("RGB"), (int(described["size"]),) * 2
    if described["fit"] == "pad":
        image = ImageOps.pad(image, size, Image.Resampling.BICUBIC)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))[None]


def main(model: str, *names: str) -> int:
    """Judge the pictures `names`; return the exit code."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    described = session.get_modelmeta().custom_metadata_map
    code = 0
    for name in names:
        try:
            pictures = prepare(name, described)
        except (OSError, ValueError, SyntaxError) as error:
            print(f"skipped {name}: {error}", file=sys.stderr)
            code = 1
            continue
        score, p, bad = session.run(["score", "p", "anomalous"], {"pictures": pictures})
        print(f"{score[0]:.4f}\t{p[0]:.4f}\t{'anomalous' if bad[0] else 'normal'}\t{name}")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) > 2 else __doc__)
