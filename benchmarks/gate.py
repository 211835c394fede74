"""The gate: no number of a case is written unless its results are about as right as eager's."""

from collections.abc import Mapping

from torch import Tensor

# How much further from float64 than eager at the same dtype a result may be. This library's own
# must be within the first. Of the others compiled code, for one, adds up long rows less carefully
# than eager does; to leave it out for that would flatter us, so it is timed, with a remark.
FACTOR, RIVAL_FACTOR = 2.0, 10.0

Errors = dict[str, float]


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Euclidean norm of the difference, over that of the truth; computed in float64."""
    return float((value.detach().double() - truth).norm() / truth.norm())


def worst(found: list[Errors]) -> Errors:
    """The largest error of each kind among several parts."""
    return {kind: max(errors[kind] for errors in found) for kind in found[0]}


def excess(errors: Errors, yardstick: Errors) -> Errors:
    """Errors over the yardstick's, for each kind that has more than `FACTOR` times its error."""
    ratios = {kind: error / yardstick[kind] for kind, error in errors.items()}
    return {kind: ratio for kind, ratio in ratios.items() if not ratio <= FACTOR}  # so NaN is kept


def refusal(excess: Mapping[str, float], limit: float) -> str:
    """What keeps a provider out, in words; empty where nothing is beyond `limit`."""
    bad = [
        f"the error of {kind} is {ratio:.2g} times eager's"
        for kind, ratio in excess.items()
        if not ratio <= limit
    ]
    return f"failed the gate: {', '.join(bad)}" if bad else ""
