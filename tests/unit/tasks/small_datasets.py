"""MEDS datasets written from rows."""

import polars as pl

from ehrsequencing.data.dataset import MedsDataset, MedsWriter
from ehrsequencing.data.schema import SPLITS
from ehrsequencing.data.splits import split_of


def write_dataset(path, rows, ends=None, kinds=None, parents=None, notes=()):
    """Rows of (subject, time, code, visit); `ends` of observation by subject; `kinds`, `parents` by code; `notes`."""
    frame = pl.DataFrame(
        rows,
        schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "visit_id": pl.Int64},
        orient="row",
    )
    split = split_of(frame["subject_id"].to_numpy())
    codes = frame.select("code").unique().sort("code")
    if kinds is not None:
        codes = codes.with_columns(kind=pl.Series([kinds(code) for code in codes["code"]]))
    if parents is not None:
        named = [parents.get(code, []) for code in codes["code"]]
        codes = codes.with_columns(parent_codes=pl.Series(named, dtype=pl.List(pl.String)))
    with MedsWriter(path, overwrite=True) as writer:
        for name in SPLITS:
            writer.write_events(name, 0, frame.filter(pl.Series(split == name)))
        if ends:
            observation = pl.DataFrame(
                {"subject_id": list(ends), "observation_end": pl.Series(list(ends.values()), dtype=pl.Datetime("us"))}
            )
            (writer.folder / "metadata").mkdir()
            observation.write_parquet(writer.folder / "metadata/observation.parquet")
        writer.finish(codes, source="test", options={}, notes=list(notes))
    return MedsDataset.open(path)
