"""Times of several providers, taken in turns, and the gate: no number of a case is written unless
its results are about as right as eager's."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.machine import Run

MIN_ROUNDS, MAX_ROUNDS = 5, 100
MODEL_ROUNDS = 11  # at least, of whole networks: a run of theirs varies, and is what people feel


class Times:
    """Seconds of each run that never failed, and the error of each that did."""

    def __init__(self, names: Sequence[str]) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.failures: dict[str, Exception] = {}

    def take(self, name: str, run: Run, clock: Callable[[Run], float]) -> None:
        if name in self.failures:
            return
        try:
            self.seconds[name].append(clock(run))
        except Exception as error:  # an error of one provider, such as memory, is not the others'
            self.failures[name] = error
            del self.seconds[name]


def interleave(
    runs: Mapping[str, Run],
    clock: Callable[[Run], float],
    budget: float,
    least: int = MIN_ROUNDS,
) -> Times:
    """Times by `clock`, round by round: all see the same machine, fast or slow at the time.

    The first round tells how many fit `budget` seconds; there are at least `least` and at most 100.
    Each starts with another provider. All must have run before, to be warm.
    """
    names = list(runs)
    times = Times(names)
    rounds, number = least, 0
    while names and number < rounds:
        start = number % len(names)
        for name in names[start:] + names[:start]:
            times.take(name, runs[name], clock)
        number += 1
        if number == 1:
            round_seconds = sum(sum(seconds) for seconds in times.seconds.values())
            rounds = int(budget / max(round_seconds, 1e-9))
            rounds = min(MAX_ROUNDS, max(least, rounds))
    return times


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and 20 and 80 % quantiles."""
    places = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    found = torch.tensor(values, dtype=torch.float64).quantile(places).tolist()
    return dict(zip(("median", "q20", "q80"), found, strict=True))


def ratios(seconds: Sequence[float], others: Sequence[float]) -> list[float]:
    """Of two providers' times, round by round."""
    return [one / other for one, other in zip(seconds, others, strict=True)]


# The gate

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
