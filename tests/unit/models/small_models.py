"""Small models and batches."""

import torch
from torch import Tensor

from ehrsequencing.models.behrt import BEHRTConfig

VOCABULARY = 60


def make_config(**overrides) -> BEHRTConfig:
    sizes = {"embedding_dim": 16, "hidden_dim": 32, "num_heads": 4, "ffn_dim": 48, "max_length": 24, "max_visits": 24}
    return BEHRTConfig.small(VOCABULARY, **{**sizes, **overrides})


def make_inputs(
    batch: int = 4, length: int = 12, *, lengths: list[int] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Random sequences behind a CLS token; `lengths` says how much of each is real."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(5, VOCABULARY, (batch, length), generator=generator)
    codes[:, 0] = 2
    ages = torch.randint(0, 121, (batch, length), generator=generator)
    visit_ids = torch.randint(0, 24, (batch, length), generator=generator)
    mask = torch.arange(length) < torch.tensor(lengths or [length] * batch)[:, None]
    return {"codes": codes.masked_fill(~mask, 0), "ages": ages, "visit_ids": visit_ids, "mask": mask}


def mlm_labels(inputs: dict[str, Tensor]) -> Tensor:
    """Every third token is to be predicted, where it is real."""
    third = torch.arange(inputs["codes"].shape[1]) % 3 == 1
    return torch.where(third & inputs["mask"], inputs["codes"], -100)
