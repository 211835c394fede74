"""What a results CSV says, by workload, provider, dtype and mode."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.devices import TORCH_DTYPES
from benchmarks.providers import PROVIDERS
from benchmarks.results import MACHINE, Row
from benchmarks.workloads import MODES

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


class Findings:
    """The rows of one device."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
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
        found = (row for row in self.rows if (row.dtype, row.mode) == (dtype, mode))
        return list(dict.fromkeys(row.workload for row in found if row.workload != MACHINE))

    def cases(self) -> Iterator[tuple[str, str, str]]:
        for dtype in self.dtypes:
            for mode in MODES:
                for workload in self.workloads(dtype, mode):
                    yield workload, dtype, mode

    def losses(self) -> list[Loss]:
        """Where ours are slower, or need more memory, than eager or compile; to two decimals."""
        found = []
        for workload, dtype, mode in self.cases():
            for provider in OURS:
                for other in ("eager", "compile"):
                    for statistic, what in (
                        ("median", "slower than"),
                        ("peak_memory", "more memory than"),
                    ):
                        key = (workload, provider, dtype, mode, f"ratio_{other}", statistic)
                        ratio = self.value(*key)
                        if ratio is not None and round(ratio, 2) > 1:
                            found.append(Loss(provider, mode, dtype, workload, what, other, ratio))
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
