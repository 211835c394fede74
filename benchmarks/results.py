"""Results: one long CSV a device, merged with what it holds already and written whole each time."""

import csv
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.machine import BUSY, TORCH_DTYPES, Device, Rates
from benchmarks.providers import PROVIDERS
from benchmarks.workloads import HOST, MODES, WORKLOADS, Workload, floor_seconds
from daad.io import write_csv

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "results"
MACHINE = "machine"  # the workload under which the measured rates stand


class Row(NamedTuple):
    """A line of the CSV. A time or a peak_memory without a value says why in its note."""

    workload: str
    provider: str
    device: str
    device_name: str
    dtype: str
    mode: str
    metric: str
    statistic: str
    value: str
    unit: str
    note: str
    torch: str
    triton: str
    commit: str
    date: str

    @property
    def case(self) -> tuple[str, ...]:
        """What is measured together, and replaced together when it is measured again."""
        return self[:6]


@dataclass(frozen=True)
class Measurement:
    """A row without what is the same for the whole run."""

    metric: str
    statistic: str
    value: float | None
    unit: str
    note: str = ""


class Results:
    """The CSV at `path`; every `add` leaves it complete on disk."""

    def __init__(self, path: Path, device: Device) -> None:
        self.path = path
        self.device = device
        self.rows = read_rows(path) if path.exists() else []
        self._run = (
            torch.__version__,
            _triton_version(),
            _commit(),
            datetime.now(timezone.utc).date().isoformat(),
        )

    def add(
        self,
        workload: str,
        provider: str,
        dtype: str,
        mode: str,
        measurements: Sequence[Measurement],
    ) -> None:
        """Put one provider's part of a case in place of what an earlier run said of it."""
        key = (workload, provider, self.device.type, self.device.name, dtype, mode)
        rows = [row for row in self.rows if row.case != key]
        for m in measurements:
            value = "" if m.value is None else f"{m.value:.6g}"
            rows.append(Row(*key, m.metric, m.statistic, value, m.unit, m.note, *self._run))
        self.rows = sorted(rows, key=_order)
        write_csv(self.path, Row._fields, self.rows)


def read_rows(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def _order(row: Row) -> tuple[int, ...]:
    """As the tables of workloads and providers go, so that measuring again moves no line."""
    return (
        _place(row.workload, [MACHINE, *(workload.name for workload in WORKLOADS)]),
        _place(row.dtype, TORCH_DTYPES),
        _place(row.mode, MODES),
        _place(row.provider, PROVIDERS),
    )


def _place(name: str, names: Iterable[str]) -> int:
    known = list(names)
    return known.index(name) if name in known else len(known)


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)


def _commit() -> str:
    """Of the library; with a + where it was changed since, empty outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    return commit + "+" if commit and git("status", "--porcelain", "--", "blockmem") else commit


# What they say


HOSTED = "blockmem-triton"
OURS = tuple(name for name, provider in PROVIDERS.items() if provider.ours)


@dataclass(frozen=True)
class Loss:
    """A case in which a provider of ours is beaten: by whom, in what, how many times over."""

    provider: str
    mode: str
    dtype: str
    workload: str
    what: str  # "slower than" or "more memory than"
    other: str
    ratio: float


class Ratio(NamedTuple):
    """What one provider takes over another: the median, and the 20 and 80 % quantiles."""

    value: float
    low: float
    high: float

    @property
    def even(self) -> bool:
        """Whether the two are the same within the noise, or to two decimals."""
        return self.low <= 1 <= self.high or round(self.value, 2) == 1

    @property
    def more(self) -> bool:
        return self.value > 1 and not self.even


class Findings:
    """The rows of one device."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows = sorted(rows, key=_order)
        self._by_key = {(*row[:2], *row[4:8]): row for row in rows}
        self.dtypes = [name for name in TORCH_DTYPES if any(row.dtype == name for row in rows)]
        self.providers = [name for name in PROVIDERS if any(row.provider == name for row in rows)]

    def row(
        self, workload: str, provider: str, dtype: str, mode: str, metric: str, statistic: str
    ) -> Row | None:
        return self._by_key.get((workload, provider, dtype, mode, metric, statistic))

    def value(
        self, workload: str, provider: str, dtype: str, mode: str, metric: str, statistic: str
    ) -> float | None:
        row = self.row(workload, provider, dtype, mode, metric, statistic)
        return float(row.value) if row is not None and row.value else None

    def workloads(self, dtype: str, mode: str) -> list[str]:
        """Those with a case, in the order of the CSV."""
        found = (row.workload for row in self.rows if (row.dtype, row.mode) == (dtype, mode))
        return list(dict.fromkeys(n for n in found if n != MACHINE and not n.startswith(HOST)))

    def host(self) -> list[str]:
        """Say what a call of the Triton backend costs in Python: a sentence for each case."""
        cases = {(row.workload, row.mode) for row in self.rows if row.workload.startswith(HOST)}
        found = []
        for workload, mode in sorted(cases, reverse=True):
            eager, ours = (
                self.value(workload, provider, "float32", mode, "time", "median")
                for provider in ("eager", HOSTED)
            )
            ratio = self.ratio(workload, HOSTED, "float32", mode, "median", "eager")
            if eager is not None and ours is not None and ratio is not None:
                found.append(
                    f"`{workload}`, {mode}: {1000 * ours:.0f} \N{MICRO SIGN}s, "
                    f"{ratio.value:.2f} of eager's {1000 * eager:.0f} "
                    f"({ratio.low:.2f} to {ratio.high:.2f})"
                )
        return found

    def cases(self) -> Iterator[tuple[str, str, str]]:
        for dtype in self.dtypes:
            for mode in MODES:
                for workload in self.workloads(dtype, mode):
                    yield workload, dtype, mode

    def ratio(
        self, workload: str, provider: str, dtype: str, mode: str, statistic: str, other: str
    ) -> Ratio | None:
        """Say how a provider's time ("median") or "peak_memory" is to another's."""
        key = (workload, provider, dtype, mode, f"ratio_{other}")
        value = self.value(*key, statistic)
        if value is None:
            return None
        if statistic != "median":
            return Ratio(value, value, value)
        low, high = (self.value(*key, name) for name in ("q20", "q80"))
        return Ratio(value, value if low is None else low, value if high is None else high)

    def losses(self) -> list[Loss]:
        """Where ours are slower, or need more memory, than eager or compile, beyond the noise."""
        found = []
        for workload, dtype, mode in self.cases():
            for provider in OURS:
                for other in ("eager", "compile"):
                    for statistic, what in (
                        ("median", "slower than"),
                        ("peak_memory", "more memory than"),
                    ):
                        ratio = self.ratio(workload, provider, dtype, mode, statistic, other)
                        if ratio is not None and ratio.more:
                            loss = (provider, mode, dtype, workload, what, other, ratio.value)
                            found.append(Loss(*loss))
        return found

    def rates(self, dtype: str) -> Rates:
        """Say what the machine did at its best; 0 where that was not measured."""
        key = (MACHINE, "torch", dtype, "", "roofline")
        flops, bytes_ = (self.value(*key, name) or 0.0 for name in ("matmul_rate", "copy_rate"))
        return Rates(1e9 * flops, 1e9 * bytes_)

    def share(self, workload: str, provider: str, dtype: str, mode: str) -> float | None:
        """Say what share of a time its products and bytes would take at the machine's rates."""
        shapes = next((w for w in WORKLOADS if w.name == workload), None)
        time = self.value(workload, provider, dtype, mode, "time", "median")
        rates = self.rates(dtype)
        if not isinstance(shapes, Workload) or time is None or not (rates.flops and rates.bytes):
            return None
        return 1000 * floor_seconds(shapes.parts, mode, dtype, rates) / time

    def spread(self, workload: str, dtype: str, mode: str) -> float:
        """Say how eager's times vary: the 80 % quantile over the 20 % one; 1 where it has none."""
        key = (workload, "eager", dtype, mode, "time")
        low, high = (self.value(*key, name) for name in ("q20", "q80"))
        return high / low if low and high else 1.0

    def busy(self) -> dict[tuple[str, str, str], float]:
        """Cases that were measured while others used the machine, and how many cores they used."""
        found: dict[tuple[str, str, str], float] = {}
        for row in self.rows:
            if row.metric == "load" and float(row.value) >= BUSY:
                found[row.workload, row.dtype, row.mode] = float(row.value)
        return found

    def inexact(self) -> dict[str, list[Row]]:
        """Errors that are remarked on though their case was timed, by provider."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            key = (row.workload, row.provider, row.dtype, row.mode, "time", "median")
            if row.metric == "error" and row.note and self.value(*key) is not None:
                found.setdefault(row.provider, []).append(row)
        return found

    def refusals(self) -> dict[tuple[str, str], list[tuple[str, str, str]]]:
        """Cases without a time or a peak memory, by provider and reason."""
        found: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
        for row in self.rows:
            if not row.value and row.metric in ("time", "peak_memory"):
                cases = found.setdefault((row.provider, row.note), [])
                cases.append((row.workload, row.dtype, row.mode))
        return found
