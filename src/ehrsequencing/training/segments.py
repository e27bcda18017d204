"""Parts of histories as inputs of their own: a prefix that ends with a visit, or the visits after one."""

from __future__ import annotations

import torch
from torch import Tensor

from ehrsequencing.data.batching import UNKNOWN_AGE, Batch
from ehrsequencing.data.vocabulary import CLS, PAD

_AT_CLS = ("ages", "age_years", "calendar")
"""What CLS takes from the last event."""


def segment(batch: Batch, after: Tensor, until: Tensor, *, static: bool = True, ages: bool = True) -> dict[str, Tensor]:
    """The visits in (after, until] of each row, moved to the left behind CLS, as if the history ended there.

    Args:
        batch: Whole histories.
        after, until: Long [batch], visit ids; 0 and more.
        static: Whether rows without a visit belong to the segment.
        ages: Whether ages and calendar are shown; else they are unknown.

    Returns:
        Every input by name, [batch, longest segment]: visits count from 1, times are days before the segment's end.
    """
    length = batch.codes.shape[1]
    column = torch.arange(length, device=batch.codes.device)
    kept = (batch.visit_ids > after[:, None]) & (batch.visit_ids <= until[:, None])
    if static:
        kept = kept | ((batch.visit_ids == 0) & (column > 0))
    kept = kept & batch.mask
    dated = kept & (batch.visit_ids > 0)
    kept[:, 0] = True
    order = torch.argsort((~kept).to(torch.int8), dim=1, stable=True)[:, : int(kept.sum(1).max())]
    mask = kept.gather(1, order)
    last = torch.where(dated, column, 0).amax(dim=1, keepdim=True)
    end = torch.where(dated, batch.times, torch.inf).amin(dim=1, keepdim=True)
    times = torch.where(dated, batch.times - end, 0.0)
    fields = {
        "codes": (batch.codes, PAD),
        "ages": (batch.ages, 0),
        "visit_ids": ((batch.visit_ids - after[:, None]).clamp(min=0), 0),
        "kinds": (batch.kinds, 0),
        "times": (times, 0.0),
        "values": (batch.values, torch.nan),
        "gaps": (batch.gaps, 0.0),
        "age_years": (batch.age_years, torch.nan),
        "calendar": (batch.calendar, torch.nan),
    }
    found = {"mask": mask}
    for name, (tensor, fill) in fields.items():
        found[name] = tensor.gather(1, order).masked_fill(~mask, fill)
        if name in _AT_CLS:
            found[name][:, 0] = tensor.gather(1, last)[:, 0]
    found["codes"][:, 0] = CLS
    if not ages:
        found["ages"] = torch.where(mask, UNKNOWN_AGE, 0)
        found["age_years"] = torch.full_like(found["age_years"], torch.nan)
        found["calendar"] = torch.full_like(found["calendar"], torch.nan)
    return found
