"""Plan of Med2Vec and skip-gram: which codes share a visit, and which codes lie in the visits around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ehrsequencing.config import PretrainConfig
from ehrsequencing.data.batching import Batch, BatchSource
from ehrsequencing.data.schema import KINDS
from ehrsequencing.data.vocabulary import NUM_SPECIAL, Vocabulary
from ehrsequencing.errors import DataError
from ehrsequencing.models.med2vec import CodeVectorConfig, CodeVectorModel, CodeVectorOutput, Med2Vec, SkipGram
from ehrsequencing.objectives.cooccurrence import (
    VisitSets,
    context_sizes,
    log_complement,
    neighbour_recall,
    neighbours,
    sets_nll,
    shared_codes,
)
from ehrsequencing.training.next_visit import nothing
from ehrsequencing.training.plans import Totals, fixed_batches, ratio_interval

PAIRS, AROUND = "tuning:visit_codes", "tuning:neighbour_visits"
_CODES_FLOOR = "codes of a visit, "
_MODELS: dict[str, type[CodeVectorModel]] = {"med2vec": Med2Vec, "skipgram": SkipGram}


def code_vector_model(config: PretrainConfig, vocabulary: Vocabulary) -> CodeVectorModel:
    """An untrained model of the kind that the configuration names."""
    demographic = np.flatnonzero(np.asarray(vocabulary.kinds) == KINDS.index("demographic"))
    ids = tuple(int(token) for token in demographic if token >= NUM_SPECIAL)
    options = getattr(config, config.architecture).model_dump()
    return _MODELS[config.architecture](CodeVectorConfig(len(vocabulary), demographic_ids=ids, **options))


class CodeVectorPlan:
    """Skip-gram within visits, and for Med2Vec the codes of neighbouring visits beside it.

    Figures: nats per ordered pair of codes; for Med2Vec also nats per code that a neighbour holds (equation 3 over all
    codes, divided by those that came) and the share of a neighbour's codes among the ten most probable.
    """

    def __init__(self, model: CodeVectorModel, train: BatchSource, tuning: BatchSource) -> None:
        self.config, self.train, self.tuning = model.config, train, tuning
        self.around = isinstance(model, Med2Vec)
        self.name = "med2vec" if self.around else "skipgram"
        self.title = "codes of a visit and of its neighbours" if self.around else "codes that occur together"
        self.notes: list[str] = []
        self._sets = model.visits_of
        self._count()
        if isinstance(model, Med2Vec):
            # Scores begin at what is usual around a visit, so that no step is spent on learning it.
            with torch.no_grad():
                model.head.bias.copy_(self._around.log())

    def _visits(self, batch: Batch) -> tuple[VisitSets, Tensor, Tensor]:
        visits = self._sets(batch.codes, batch.visit_ids, batch.mask)
        return visits, *neighbours(visits, self.config.window)

    def _count(self) -> None:
        """What the floors know of train: how often a code is context, is around, and is repeated by a neighbour.

        Raises:
            DataError: train or tuning has nothing to learn from.
        """
        size = self.config.vocab_size
        for source, split in ((self.tuning, "tuning"), (self.train, "train")):
            context, around = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
            repeated = 0
            for batch in source.fixed():
                visits, here, beside = self._visits(batch)
                near = (here[:0], beside[:0]) if self.around else (here, beside)
                weight = context_sizes(visits, *near)[visits.owner]
                context += torch.bincount(visits.code, weights=weight.double(), minlength=size)
                times = torch.bincount(beside, minlength=len(visits.row))[visits.owner]
                around += torch.bincount(visits.code, weights=times.double(), minlength=size)
                repeated += int(shared_codes(visits, here, beside, vocab_size=size).sum())
            if self.around and not around.sum():
                raise DataError(
                    f"no subject of {split} has two visits with codes", remedy="use --model skipgram, or more subjects"
                )
            if not context.sum() and not self.around:
                raise DataError(
                    f"no code of {split} has another one beside it",
                    remedy="pass --set skipgram.window=1, or use another rule of visits in `ehrseq prepare`",
                )
            if not context.sum():
                self.notes.append(f"no visit of {split} holds two codes: code vectors learn from neighbours alone")
        # Half an event for codes that train never saw there: nothing is impossible.
        self._context = (context + 0.5) / (context + 0.5).sum()
        self._around = (around + 0.5) / (around + 0.5).sum()
        self._repeat = repeated / float(around.sum()) if self.around else 0.0

    def step(self, model: torch.nn.Module, batch: Batch, epoch: int, index: int) -> tuple[Tensor, dict[str, float]]:
        output = model(**batch.inputs(self.config.input_names))
        if not len(output.visits.row):
            return nothing(model), {}
        found = self._sums(output)
        weight = self._weight(output)
        return output.loss, {"loss_sum": output.loss.item() * weight, "count": weight, **found}

    def _weight(self, output: CodeVectorOutput) -> float:
        """What the loss of a batch is averaged over, so that batches add up."""
        return float(len(output.visits.row) if self.around else output.code_pairs.sum())

    def _sums(self, output: CodeVectorOutput) -> dict[str, float]:
        """Nats and counts: pairs of codes, and for Med2Vec codes of neighbours with the recall of them."""
        found = {
            "codes:loss_sum": float(output.code_nats.detach().double().sum()),
            "codes:count": float(output.code_pairs.sum()),
        }
        if output.scores is not None:
            visits = output.visits
            recall = neighbour_recall(output.scores.detach(), visits, output.here, output.around)
            found |= {
                "visits:loss_sum": float(output.visit_nats.detach().double().sum()),
                "visits:count": float(visits.size[output.around].sum()),
                "neighbours:recall_sum": float(recall.double().sum()),
                "neighbours:count": float(len(recall)),
            }
        return found

    @torch.no_grad()
    def validate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
        totals, visits = Totals(), 0
        for output in self._outputs(model, device):
            totals.add(self._sums(output))
            visits += len(output.visits.row)
        found, sums = totals.rates(), totals.sums
        codes = found["codes_loss"] if sums["codes:count"] else 0.0
        if not self.around:
            return {"loss": codes}
        if self.config.code_term == "sum":
            loss = (sums["codes:loss_sum"] + sums["visits:loss_sum"]) / visits
        else:
            loss = codes + sums["visits:loss_sum"] / sums["neighbours:count"]
        return {
            "loss": loss,
            "codes_loss": codes,
            "visits_loss": found["visits_loss"],
            "neighbours_recall_at_10": found["neighbours_recall_at_10"],
        }

    def _outputs(self, model: torch.nn.Module, device: torch.device) -> Iterator[CodeVectorOutput]:
        for batch in fixed_batches(self.tuning, device):
            yield model(**batch.inputs(self.config.input_names))

    @torch.no_grad()
    def judge(self, model: torch.nn.Module, device: torch.device) -> dict[str, dict[str, Any]]:
        rows: dict[str, list[np.ndarray]] = {}
        for batch in fixed_batches(self.tuning, device):
            output = model(**batch.inputs(self.config.input_names))
            visits = output.visits
            parts = {"code_nats": (visits.row, output.code_nats), "code_pairs": (visits.row, output.code_pairs)}
            if output.scores is not None:
                owner = visits.row[output.here]
                recall = neighbour_recall(output.scores, visits, output.here, output.around)
                parts |= {
                    "nats": (owner, output.visit_nats),
                    "codes": (owner, visits.size[output.around]),
                    "recall": (owner, recall),
                    "neighbours": (owner, torch.ones_like(recall)),
                }
            for name, (subject, amount) in parts.items():
                sums = torch.zeros(len(batch), dtype=torch.float64, device=amount.device)
                rows.setdefault(name, []).append(sums.index_add_(0, subject, amount.double()).cpu().numpy())
        total = {name: np.concatenate(found) for name, found in rows.items()}
        entries = {}
        if total["code_pairs"].sum():
            entries[f"{PAIRS}/ce"] = _entry(total["code_nats"], total["code_pairs"], better=False)
        if self.around:
            entries[f"{AROUND}/ce"] = _entry(total["nats"], total["codes"], better=False)
            entries[f"{AROUND}/recall_at_10"] = _entry(total["recall"], total["neighbours"], better=True)
        return entries

    @torch.no_grad()
    def floors(self) -> dict[str, dict[str, float]]:
        """On tuning: contexts as frequent as in train, and neighbours with the codes of train or of the visit itself.

        The second floor of neighbours gives the codes of the visit the share of a neighbour's codes that repeat it in
        train, evenly, and the rest to the frequencies of train.
        """
        unigram, prevalence, copy = Totals(), Totals(), Totals()
        log_context, size = self._context.log(), self.config.vocab_size
        for batch in self.tuning.fixed():
            visits, here, around = self._visits(batch)
            near = (here[:0], around[:0]) if self.around else (here, around)
            weight = context_sizes(visits, *near)[visits.owner].double()
            # The pairs of a visit and its neighbours are symmetric: each code is context as often as it has one.
            unigram.add({"loss_sum": -float((weight * log_context[visits.code]).sum()), "count": float(weight.sum())})
            if not self.around or not len(here):
                continue
            plain = self._around.expand(len(visits.row), size)
            own = torch.zeros(len(visits.row), size, dtype=torch.float64)
            own[visits.owner, visits.code] = 1.0 / visits.size[visits.owner].double()
            for total, chance in ((prevalence, plain), (copy, self._repeat * own + (1 - self._repeat) * plain)):
                present = chance.log()
                nats = sets_nll(present, log_complement(present), visits, here, around)
                recall = neighbour_recall(chance, visits, here, around).double()
                total.add(
                    {
                        "loss_sum": float(nats.sum()),
                        "count": float(visits.size[around].sum()),
                        "neighbours:recall_sum": float(recall.sum()),
                        "neighbours:count": float(len(recall)),
                    }
                )
        found = {f"{_CODES_FLOOR}unigram": unigram.rates()} if unigram.sums["count"] else {}
        if self.around:
            for name, total in (("prevalence", prevalence), ("the visit itself", copy)):
                figures = total.rates()
                found[f"neighbouring visits, {name}"] = {
                    "loss": figures["loss"],
                    "recall_at_10": figures["neighbours_recall_at_10"],
                }
        return found

    def floor_entries(self, floor: dict[str, float]) -> dict[str, dict[str, Any]]:
        if "recall_at_10" not in floor:
            return {f"{PAIRS}/ce": {"value": floor["loss"], "higher_is_better": False}}
        return {
            f"{AROUND}/ce": {"value": floor["loss"], "higher_is_better": False},
            f"{AROUND}/recall_at_10": {"value": floor["recall_at_10"], "higher_is_better": True},
        }

    def caveats(self) -> list[str]:
        """What the figures are and are not."""
        said = ["visit_codes is in nats per ordered pair of codes that occur together."]
        if self.around:
            said.append(
                "neighbour_visits asks which codes the visits before and after hold; those before are known when a "
                "patient is seen, so its figures are no forecasts."
            )
        return said


def _entry(numerator: np.ndarray, denominator: np.ndarray, *, better: bool) -> dict[str, Any]:
    population = {"n": int(denominator.sum()), "subjects": int((denominator > 0).sum()), "seeds": 1}
    return ratio_interval(numerator, denominator) | population | {"higher_is_better": better}
