"""Which runs a row of a table is judged by, and what they come to over the seeds."""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from daad.io import UserError
from reproduction.records import Record, choices_of
from reproduction.scales import Scale
from reproduction.tables import NO_CATEGORIES, Paper, Row, Table


@dataclass(frozen=True)
class Summary:
    """A cell of a table: the AUROC of one subject, or the mean of several, where `subject` is None.

    values: one for each seed, in the order of seeds. paper: the paper's figure for the same subjects.
    only: these seeds, for a mean of which one subject has more.
    """

    row: Row
    subject: str | None
    values: list[float]
    paper: float | None
    only: Sequence[int] = ()

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over the seeds (n - 1); None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        """Write mean and deviation over the seeds, and which seeds where they are not all."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.3f}"
        several = "s" if len(self.only) > 1 else ""
        only = f" [seed{several} {', '.join(map(str, self.only))}]" if self.only else ""
        return f"{self.mean:.3f}{spread}{only}"


def matching(records: Sequence[Record], table: Table, scale: Scale) -> list[Record]:
    """Pick the records that rows of `table` are judged by: their choices are the row's of today."""
    return [
        record
        for record in records
        if record.scale == scale.name
        and _is_about(table, record.subject)
        and any(_judges(record, table.kind, scale, row) for row in table.rows)
    ]


def _is_about(table: Table, subject: str) -> bool:
    return subject in table.subjects if table.subjects else subject not in NO_CATEGORIES


def judged_rows(record: Record, paper: Paper) -> list[Row]:
    """Give the rows, of all tables, that are judged by `record`."""
    scale = paper.scales.get(record.scale)
    if scale is None:
        return []
    return [
        row
        for table in paper.tables.values()
        if matching([record], table, scale)
        for row in table.rows
        if _judges(record, table.kind, scale, row)
    ]


def is_whole(record: Record, paper: Paper) -> bool:
    """Say whether rows are judged by `record`, and it has what each of them is ranked by."""
    rows = judged_rows(record, paper)
    return bool(rows) and all(record.area(row.score) is not None for row in rows)


def _judges(record: Record, kind: str, scale: Scale, row: Row) -> bool:
    if record.setting != row.setting.run:
        return False
    try:
        choices = choices_of(row.setting.config(kind, scale, record.seed))
    except UserError:  # what was trained fitted the scale, but does so no more
        return False
    return dataclasses.astuple(record)[-len(choices) :] == choices


def summarize(
    records: Sequence[Record], table: Table, scale: Scale, subjects: Sequence[str]
) -> list[Summary]:
    """Summarize each row by subject over the seeds there are; a row without runs has no summaries.

    The mean over subjects comes after them, over the seeds that every subject has.
    """
    used = matching(records, table, scale)
    summaries = []
    for row in table.rows:
        found = {name: _values(used, row, name) for name in subjects}
        for name, values in found.items():
            if values:
                alone = table.subjects == (name,)
                paper = row.paper if alone else row.by_category.get(name)
                summaries.append(Summary(row, name, list(values.values()), paper))
        common = set.intersection(*(set(values) for values in found.values())) if found else set()
        if common:
            means = [
                statistics.fmean(values[seed] for values in found.values())
                for seed in sorted(common)
            ]
            paper = row.paper if table.subjects else _paper_mean(row, subjects)
            whole = all(set(values) == common for values in found.values())
            only = () if whole else sorted(common)
            summaries.append(Summary(row, None, means, paper, only))
    return summaries


def _values(records: Sequence[Record], row: Row, subject: str) -> dict[int, float]:
    """Give AUROCs by seed, in the order of seeds."""
    found = {
        record.seed: record.area(row.score)
        for record in records
        if (record.setting, record.subject) == (row.setting.run, subject)
    }
    return {seed: area for seed, area in sorted(found.items()) if area is not None}


def _paper_mean(row: Row, subjects: Sequence[str]) -> float | None:
    """Average the paper's figures for these very categories; None where one has none."""
    if not set(subjects) <= row.by_category.keys():
        return None
    return statistics.fmean(row.by_category[name] for name in subjects)
