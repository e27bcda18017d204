"""Training on times to an event: the grid fitted to train, the plan, and what its run says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ehrsequencing.config import FinetuneConfig, NvpOptions, SurvivalOptions
from ehrsequencing.data.batching import Batch, BatchSource
from ehrsequencing.data.labels import CAUSES_FILE, horizon_of
from ehrsequencing.data.sequences import Examples
from ehrsequencing.data.store import TokenStore
from ehrsequencing.errors import ConfigError, LabelError
from ehrsequencing.evaluation.survival import concordance_index, wolbers_concordance
from ehrsequencing.io import hash_bytes
from ehrsequencing.models.survival import BEHRTForSurvival, SurvivalModel
from ehrsequencing.objectives.survival import marginal_logits, place, quantile_edges, uniform_edges
from ehrsequencing.tracking.experiment import ExperimentTracker
from ehrsequencing.training.goals import architecture_of, base_options, names_file
from ehrsequencing.training.loop import Trainer
from ehrsequencing.training.next_visit import NextHead, NextVisitPlan
from ehrsequencing.training.objectives import START_GAIN
from ehrsequencing.training.plans import Totals, fixed_batches, targets_of
from ehrsequencing.training.runs import load_base, new_survival_model

LONGEST_DAYS = 100_000
"""What `survival.horizon_days` may be at most, too."""


def fit_grid(
    durations: np.ndarray, cause: np.ndarray, options: SurvivalOptions, horizon_days: float | None = None
) -> tuple[list[float], list[str]]:
    """Edges of the grid in days, fitted on train, and notes on it.

    Args:
        durations: Float [n], days, above 0.
        cause: Int [n], 0 censored.
        options: Kind and number of intervals, and the horizon where the run states one.
        horizon_days: That of the labels' window; the longest follow-up where neither says.

    Raises:
        ConfigError: a stated horizon beyond the longest follow-up, where nothing can be learned.
        LabelError: no event within the horizon.

    >>> fit_grid(np.array([1., 2, 3, 4, 9]), np.array([1, 1, 1, 1, 0]), SurvivalOptions(intervals=2))
    ([0.0, 2.0, 9.0], [])
    """
    longest = float(durations.max())
    if options.horizon_days is not None and options.horizon_days > longest:
        raise ConfigError(
            "survival.horizon_days lies beyond the follow-up of train",
            got=f"{options.horizon_days:g} days",
            expected=f"at most {longest:g}, when the last subject left",
            remedy="choose an earlier horizon, or leave it out",
        )
    horizon = options.horizon_days or min(horizon_days or longest, longest)
    events = durations[(cause > 0) & (durations <= horizon)]
    if not len(events):
        raise LabelError(
            f"no event of train lies within {horizon:g} days", got=f"{int((cause > 0).sum())} later ones",
            remedy="choose a longer survival.horizon_days",
        )  # fmt: skip
    if options.grid == "quantile":
        edges = quantile_edges(torch.from_numpy(events), options.intervals, horizon)
    else:
        edges = uniform_edges(options.intervals, horizon)
    notes, made = [], len(edges) - 1
    if made < options.intervals:
        notes.append(
            f"the grid has {made} intervals, not {options.intervals}: events that share a day share an interval"
        )
    held = np.bincount(np.searchsorted(edges[1:-1].numpy(), events), minlength=made)
    if empty := int((held == 0).sum()):
        notes.append(f"{empty} of {made} intervals hold no event of train: their hazards start near 0")
    return edges.tolist(), notes


class SurvivalGoal:
    """Times to one of several events."""

    held_out = "`ehrseq predict RUN STORE LABELS --at DAYS` writes the curves of held-out subjects"

    def __init__(self, config: FinetuneConfig, examples: dict[str, Examples], manifest: Mapping[str, Any]) -> None:
        self.examples = examples
        self.floor: dict[str, float] = {}
        self.causes = examples["train"].causes
        days, cause = self._outcomes("train")
        self.edges, self.notes = fit_grid(days, cause, config.survival, horizon_of(dict(manifest)))
        for split in examples:
            days, cause = self._outcomes(split)
            # As the model compares them: in single precision, on both sides.
            late = days.astype(np.float32) > np.float32(self.edges[-1])
            if late.any():
                self.notes.append(
                    f"{int(late.sum()):,} of {len(days):,} durations of {split} lie beyond the grid's end at "
                    f"{self.edges[-1]:g} days and are censored there; {int((late & (cause > 0)).sum()):,} were events"
                )
        if self.edges[-1] > LONGEST_DAYS:
            raise LabelError(
                "durations of train are longer than any follow-up", got=f"{self.edges[-1]:g} days",
                expected=f"at most {LONGEST_DAYS:,}", remedy="give durations in days, or set survival.horizon_days",
            )  # fmt: skip
        of_visits = config.survival.reading == "visits"
        loss = config.survival.loss
        resolved = config.survival.model_dump() | {
            "horizon_days": self.edges[-1],
            "loss": ("piecewise" if of_visits else "discrete") if loss == "auto" else loss,
        }
        self.config = config.model_copy(update={"survival": SurvivalOptions(**resolved)})

    def _outcomes(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        days, cause = np.asarray(self.examples[split].target).T
        return days, cause.astype(np.int64)

    def build(self, base: Path | None, store: TokenStore) -> SurvivalModel:
        options = self.config.survival
        head: dict[str, Any] = {
            "edges_days": self.edges,
            "causes": len(self.causes),
            "loss": options.loss,
            "ranking": options.ranking,
            "sigma": options.sigma,
        }
        if self.config.architecture == "behrt":
            head |= {
                "reading": options.reading,
                "visit_pooling": options.visit_pooling,
                "next_visit": options.nvp > 0,
            }
        if base is None:
            return new_survival_model(self.config, len(store.vocabulary), **head)
        if (kind := architecture_of(base)).endswith(("ForSurvival", "ForSequenceClassification")):
            raise ConfigError(
                f"{base} was fine-tuned on labels already", got=kind, expected="a pretrained run",
                remedy="name the pretrained run with --from",
            )  # fmt: skip
        return load_base(BEHRTForSurvival, base, store, **base_options(self.config, False), **head)

    def files(self) -> dict[str, bytes]:
        return {CAUSES_FILE: names_file("causes", self.causes)}

    def identity(self) -> dict[str, str]:
        return {"causes": hash_bytes(*self.files().values())}

    def begin(self, model: SurvivalModel) -> None:
        days, cause = self._outcomes("train")
        placed = place(torch.from_numpy(days).float(), torch.from_numpy(cause), model.edges)
        marginal = marginal_logits(placed, len(self.causes), len(self.edges) - 1)
        model.begin(marginal)
        if model.loss_name == "cox" or self.config.survival.reading == "visits":
            return
        for split, name in (("tuning", "loss"), ("train", "train_loss")):
            labels = torch.from_numpy(np.asarray(self.examples[split].target)).float()
            self.floor[name] = model.likelihood(marginal.expand(len(labels), -1, -1), labels).item()

    def plan(self, model: SurvivalModel, sources: Mapping[str, BatchSource], store: TokenStore) -> SurvivalPlan:
        weight, nvp = self.config.survival.nvp, None
        if weight:
            options = NvpOptions(mode="causal" if model.config.attention == "visit_causal" else "prefix")
            nvp = NextVisitPlan(
                model.config, sources["train"], sources["tuning"], store.vocabulary, options, seed=self.config.loop.seed
            )
            self.notes += nvp.notes
            # The head begins where copy-history stands, with little of its own on top.
            if isinstance(model, BEHRTForSurvival) and model.seen is not None and model.next_head is not None:
                with torch.no_grad():
                    model.seen.table.copy_(nvp.start_table())
                    model.next_head.norm.weight.fill_(START_GAIN)
        return SurvivalPlan(model, sources["train"], sources["tuning"], nvp=nvp, nvp_weight=weight)

    def facts(self) -> dict[str, Any]:
        counts = {}
        for split in self.examples:
            _, cause = self._outcomes(split)
            counts[split] = {name: int((cause == k).sum()) for k, name in enumerate(self.causes, 1)}
        floor = {"floors": {"hazards of train": self.floor}} if self.floor else {}
        return {"events": counts, "causes": list(self.causes), "edges_days": self.edges, **floor}

    def finish(self, trainer: Trainer, plan: SurvivalPlan, tracker: ExperimentTracker) -> None:
        if plan.head.loss_name == "cox":
            logits, labels = plan.answers(trainer.model, plan.train, trainer.fabric.device)
            plan.head.to("cpu")
            plan.head.fit_baseline(logits, labels)

    def entries(self, plan: SurvivalPlan, best: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        events = {"positives": int((self._outcomes("tuning")[1] > 0).sum())}
        found = {name: {"value": best[f"val_{name}"], "higher_is_better": True, **events} for name in plan.metrics}
        return found | {"nll": {"value": best["val_loss"], "higher_is_better": False, **events}}


class SurvivalPlan:
    """Hazards of a history at its prediction time, or of each of its visits.

    The train and tuning `loss` is the likelihood alone, in nats; the ranking term and the auxiliary loss of next
    visits are trained beside it and reported under their own names. The auxiliary sees what the batch holds: nothing
    after the prediction time.

    Args:
        model: The bare model.
        train, tuning: Histories with labels.
        nvp: Questions of next visits, or None.
        nvp_weight: Weight of their loss.
    """

    name = "survival"

    def __init__(
        self,
        model: SurvivalModel,
        train: BatchSource,
        tuning: BatchSource,
        *,
        nvp: NextVisitPlan | None = None,
        nvp_weight: float = 0.0,
    ) -> None:
        self.head, self.config, self.train, self.tuning = model, model.config, train, tuning
        self.nvp, self.nvp_weight = nvp, nvp_weight
        self.of_visits = isinstance(model, BEHRTForSurvival) and model.reading == "visits"
        self.metrics: tuple[str, ...] = () if self.of_visits else ("c_harrell" if model.causes == 1 else "c_wolbers",)

    def step(self, model: torch.nn.Module, batch: Batch, epoch: int, index: int) -> tuple[Tensor, dict[str, float]]:
        labels = targets_of(batch)
        inputs = batch.inputs(self.config.input_names)
        if self.of_visits:
            loss = model(**inputs, labels=labels, elapsed=batch.times).loss
        else:
            logits = model(**inputs).logits
            loss = self.head.likelihood(logits, labels)
        # Cox's likelihood is of events, the others of subjects.
        count = float((labels[:, 1] > 0).sum()) if self.head.loss_name == "cox" else float(len(batch))
        found = {"loss_sum": loss.item() * count, "count": count}
        if self.head.ranking:
            term = self.head.ranking_term(logits, labels)
            found |= {"ranking:loss_sum": term.item() * len(batch), "ranking:count": float(len(batch))}
            loss = loss + self.head.ranking * term
        if self.nvp is not None:
            term, sums = self.nvp.step(NextHead(model), batch, epoch, index)
            found |= {f"nvp:{name}": value for name, value in sums.items()}
            loss = loss + self.nvp_weight * term
        return loss, found

    @torch.no_grad()
    def answers(self, model: torch.nn.Module, source: BatchSource, device: torch.device) -> tuple[Tensor, Tensor]:
        """Logits of the landmark and labels of a source, on the CPU."""
        logits, labels = [], []
        for batch in fixed_batches(source, device):
            logits.append(model(**batch.inputs(self.config.input_names)).logits.float().cpu())
            labels.append(targets_of(batch).cpu())
        return torch.cat(logits), torch.cat(labels)

    def validate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        nvp = {} if self.nvp is None else self.nvp.validate(NextHead(model), device)
        more = {f"nvp_{name}": value for name, value in nvp.items()}
        if self.of_visits:
            return {"loss": self._loss_of_visits(model, device)} | more
        logits, labels = self.answers(model, self.tuning, device)
        logits = logits.double()
        loss = self.head.likelihood(logits, labels).item()
        days, cause = labels[:, 0].double().numpy(), labels[:, 1].long().numpy()
        return {"loss": loss, self.metrics[0]: concordance(days, cause, self.risk(logits).numpy())} | more

    def risk(self, logits: Tensor) -> Tensor:
        """Incidence of the first cause at the grid's end, Float [n]; of "cox" its log hazard."""
        if self.head.loss_name == "cox":
            return logits[:, 0]
        return self.head.curves(logits).incidence[:, 0, -1]

    @torch.no_grad()
    def _loss_of_visits(self, model: torch.nn.Module, device: torch.device) -> float:
        totals = Totals()
        for batch in fixed_batches(self.tuning, device):
            inputs = batch.inputs(self.config.input_names)
            loss = model(**inputs, labels=targets_of(batch), elapsed=batch.times).loss
            totals.add({"loss_sum": loss.item() * len(batch), "count": float(len(batch))})
        return totals.rates()["loss"]


def concordance(days: np.ndarray, cause: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's C of one cause; Wolbers' C of the first of several, after which nobody who had another may have it."""
    if cause.max() <= 1:
        return concordance_index(days, cause == 1, risk)
    return wolbers_concordance(days, cause, risk)
