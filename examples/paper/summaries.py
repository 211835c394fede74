"""Which runs a row of a table is judged by, and what they come to over the seeds."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from daad.errors import UserError
from paper.records import Record, choices_of
from paper.tables import OTHERS, TABLES, Row, Table


@dataclass(frozen=True)
class Summary:
    """A line of a table: AUROC of one subject, or the mean of several.

    subject: None for the mean. values: one for each seed, in their order. only: those seeds, where
    a subject that it is a mean of has more.
    paper: the paper's figure for the same subjects. paper_all: that for all of the paper's.
    """

    row: Row
    subject: str | None
    values: list[float]
    paper: float | None
    paper_all: float | None
    only: Sequence[int] = ()

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        """Mean and deviation over the seeds, and which they are if not all."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.3f}"
        several = "s" if len(self.only) > 1 else ""
        only = f" [seed{several} {', '.join(map(str, self.only))}]" if self.only else ""
        return f"{self.mean:.3f}{spread}{only}"


def matching(records: Sequence[Record], table: Table, scale: str) -> list[Record]:
    """The records at a scale that a row of `table` is judged by: trained as the row is now."""
    named = {subject for other in OTHERS.values() for subject in other.subjects}
    return [
        record
        for record in records
        if record.scale == scale
        # What is in no other table is a category.
        and (record.subject in table.subjects if table.subjects else record.subject not in named)
        and any(_judges(record, table.kind, row) for row in table.rows)
    ]


def is_current(record: Record) -> bool:
    """Whether a row of some table is judged by it."""
    return bool(_judged(record))


def is_whole(record: Record) -> bool:
    """Whether it is current, and has what each of those rows is ranked by."""
    rows = _judged(record)
    return bool(rows) and all(record.area(row.score) is not None for row in rows)


def _judged(record: Record) -> list[Row]:
    """The rows, of all tables, that are judged by it."""
    return [
        row
        for table in TABLES.values()
        if matching([record], table, record.scale)
        for row in table.rows
        if _judges(record, table.kind, row)
    ]


def _judges(record: Record, kind: str, row: Row) -> bool:
    if record.setting != row.setting.run:
        return False
    try:
        choices = choices_of(row.setting.config(kind, record.scale, record.seed))
    except UserError:  # what was trained fitted the scale, but does so no more
        return False
    return dataclasses.astuple(record)[-len(choices) :] == choices


def summarize(
    records: Sequence[Record], table: Table, scale: str, subjects: Sequence[str]
) -> list[Summary]:
    """For each row a summary of each subject, then of their mean; a row without runs has none.

    Over the seeds there are; the mean over those that have every subject.
    """
    used = matching(records, table, scale)
    summaries = []
    for row in table.rows:
        found = {name: _values(used, row, name) for name in subjects}
        for name, values in found.items():
            if values:
                paper = row.by_category.get(name)
                if table.subjects == (name,):
                    paper = row.paper
                summaries.append(Summary(row, name, list(values.values()), paper, None))
        common = set.intersection(*(set(values) for values in found.values())) if found else set()
        if common:
            means = [
                statistics.fmean(values[seed] for values in found.values())
                for seed in sorted(common)
            ]
            paper = row.paper if table.subjects else _paper_mean(row, subjects)
            whole = all(set(values) == common for values in found.values())
            only = () if whole else sorted(common)
            summaries.append(Summary(row, None, means, paper, row.paper, only))
    return summaries


def _values(records: Sequence[Record], row: Row, subject: str) -> dict[int, float]:
    """AUROCs by seed."""
    found = {
        record.seed: record.area(row.score)
        for record in records
        if (record.setting, record.subject) == (row.setting.run, subject)
    }
    return {seed: area for seed, area in sorted(found.items()) if area is not None}


def _paper_mean(row: Row, subjects: Sequence[str]) -> float | None:
    """The mean of the paper's figures for these very categories; None where one has none."""
    if not set(subjects) <= row.by_category.keys():
        return None
    return statistics.fmean(row.by_category[name] for name in subjects)
