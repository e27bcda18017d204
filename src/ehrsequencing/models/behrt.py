"""BEHRT: a transformer encoder over coded health records, and its heads.

Source: Li et al. 2020, BEHRT: Transformer for Electronic Health Records, doi:10.1038/s41598-020-62922-y. The encoder
normalises before each sublayer (Xiong et al. 2020, arXiv:2002.04745), which trains without a long warm-up.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ehrsequencing.errors import AdapterError, ConfigError, ShapeError
from ehrsequencing.models.classification import ModelOutput, SequenceClassifier, binary_loss
from ehrsequencing.models.configuration import BEHRTConfig
from ehrsequencing.models.dropout import Dropout
from ehrsequencing.models.embeddings import CONTEXT_STD_SHARE, BEHRTEmbedding, code_std
from ehrsequencing.models.encoder import EncoderLayer, Pooling, TransformerEncoder, visit_causal, visit_means
from ehrsequencing.models.folder import PretrainedModel
from ehrsequencing.models.inputs import LabelRange, OptionalInputs, check_inputs
from ehrsequencing.objectives.mlm import IGNORE_INDEX, mlm_loss
from ehrsequencing.objectives.next_visit import SEEN_BINS, seen_visits

if TYPE_CHECKING:
    from ehrsequencing.models.survival import BEHRTForSurvival

__all__ = [
    "BEHRT",
    "BEHRTConfig",
    "BEHRTForMLM",
    "BEHRTForNextVisitPrediction",
    "BEHRTForSequenceClassification",
    "BEHRTForSurvival",
    "ModelOutput",
]


def __getattr__(name: str) -> Any:
    """`BEHRTForSurvival`, whose module builds on this one."""
    if name == "BEHRTForSurvival":
        from ehrsequencing.models.survival import BEHRTForSurvival

        return BEHRTForSurvival
    raise AttributeError(f"module {__name__} has no attribute {name}")


class BEHRT(PretrainedModel):
    """The encoder without a head.

    >>> model = BEHRT(BEHRTConfig.small(vocab_size=100)).eval()
    >>> codes, ages = torch.randint(5, 100, (2, 7)), torch.randint(0, 100, (2, 7))
    >>> visit_ids, mask = torch.arange(7).expand(2, -1), torch.ones(2, 7, dtype=torch.bool)
    >>> tuple(model(codes, ages, visit_ids, mask).shape)
    (2, 7, 128)
    """

    config: BEHRTConfig
    config_class = BEHRTConfig

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__(config)
        self.embeddings = BEHRTEmbedding(config)
        self.encoder = TransformerEncoder(config)
        initialise(self)
        scale_residual_outputs(self.encoder)

    def forward(
        self,
        codes: Tensor,
        ages: Tensor,
        visit_ids: Tensor,
        mask: Tensor,
        *,
        label_range: LabelRange | None = None,
        **optional: Unpack[OptionalInputs],
    ) -> Tensor:
        """Encode sequences.

        Args:
            codes: Long [batch, length], token ids.
            ages: Long [batch, length], years; `config.max_age` where unknown.
            visit_ids: Long [batch, length].
            mask: Bool [batch, length], True at real tokens.
            label_range: Labels of a head, which are checked along with the ids and change nothing else.
            optional: What the configuration asks for beside; see `OptionalInputs`.

        Returns:
            Float [batch, length, hidden_dim], 0 at padding.

        Raises:
            ShapeError: shapes differ, a sequence is too long, or an id or label is out of range.
            ConfigError: an input is missing that the configuration asks for, or given that it does not.
        """
        padded = check_inputs(self.config, codes, ages, visit_ids, mask, optional=optional, labels=label_range)
        embedded = self.embeddings(codes, ages, visit_ids, **optional)
        readable = None
        if self.config.attention == "visit_causal":
            readable = visit_causal(visit_ids, codes == self.config.cls_id)
        return self.encoder(embedded, mask if padded else None, readable)

    def extend_vocabulary(self, new_size: int, *, vocabulary_hash: str | None = None, seed: int = 0) -> None:
        """Grow the token embedding; see `extend_vocabulary` of the heads."""
        extend_vocabulary(self, new_size, vocabulary_hash, seed)


class VocabularyHead(nn.Module):
    """Scores of all tokens from hidden states.

    Where the configuration ties weights the decoder matrix is the token embedding itself, passed in at each call
    and stored nowhere else: there is no second copy that saving, adapting or merging could leave behind.
    """

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_dim, config.embedding_dim)
        self.norm = nn.LayerNorm(config.embedding_dim)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.weight = None if config.tie_weights else nn.Parameter(torch.empty(config.vocab_size, config.embedding_dim))

    def decoder_weight(self, embedding: nn.Embedding) -> Tensor:
        """The matrix in use, [vocab_size, embedding_dim]."""
        return embedding.weight if self.weight is None else self.weight

    def forward(self, hidden: Tensor, embedding: nn.Embedding) -> Tensor:
        """Float [..., hidden_dim] -> Float [..., vocab_size]."""
        return F.linear(self.norm(F.gelu(self.transform(hidden))), self.decoder_weight(embedding), self.bias)


class BEHRTHead(PretrainedModel):
    """What all heads share: the encoder as `behrt`, and input in one form."""

    config: BEHRTConfig
    config_class = BEHRTConfig

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__(config)
        self.behrt = BEHRT(config)

    def extend_vocabulary(self, new_size: int, *, vocabulary_hash: str | None = None, seed: int = 0) -> None:
        """Grow the vocabulary for a new site: old ids keep their rows, new ids start near the mean code.

        New rows are the mean of all code rows plus noise of a tenth of their standard deviation, so that they are
        plausible and still differ. Make the optimiser afterwards: the embedding becomes a new parameter.

        Args:
            new_size: Number of token ids from now on.
            vocabulary_hash: Hash of the extended vocabulary.
            seed: Of the noise.

        Raises:
            ConfigError: `new_size` is smaller than the vocabulary.
            AdapterError: the model carries adapters, which belong to the vocabulary they were trained with.
        """
        extend_vocabulary(self, new_size, vocabulary_hash, seed)


class BEHRTForMLM(BEHRTHead):
    """Masked language modelling: the code behind each mask from its context on both sides.

    Source: Devlin et al. 2019, BERT, arXiv:1810.04805, section 3.1.
    """

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__(config)
        self.head = VocabularyHead(config)
        initialise(self.head)

    @property
    def decoder_weight(self) -> Tensor:
        """Decoder matrix; the token embedding's own tensor where tied."""
        return self.head.decoder_weight(self.behrt.embeddings.code)

    def forward(
        self,
        codes: Tensor,
        ages: Tensor,
        visit_ids: Tensor,
        mask: Tensor,
        *,
        labels: Tensor | None = None,
        **optional: Unpack[OptionalInputs],
    ) -> ModelOutput:
        """Score tokens; inputs as in `BEHRT.forward`.

        Args:
            labels: Long [batch, length], the original token where it was masked and -100 elsewhere; anything else
                is a ShapeError, here as in the other heads.

        Returns:
            logits Float [batch, length, vocab_size] and no loss; with labels, logits [masked, vocab_size] in the
            row-major order of the masked positions (scoring the others is most of the cost and changes no loss),
            and the mean cross-entropy in nats, 0 where nothing is masked.
        """
        checked = None if labels is None else LabelRange(labels, self.config.vocab_size - 1, IGNORE_INDEX)
        hidden = self.behrt(codes, ages, visit_ids, mask, label_range=checked, **optional)
        if labels is None:
            return ModelOutput(self.head(hidden, self.behrt.embeddings.code), None)
        if labels.shape != codes.shape or labels.dtype != torch.int64:
            raise ShapeError("labels", f"{labels.dtype} {tuple(labels.shape)}", f"int64 {tuple(codes.shape)}")
        masked = (labels.flatten() != IGNORE_INDEX).nonzero().squeeze(1)
        logits = self.head(hidden.flatten(0, 1).index_select(0, masked), self.behrt.embeddings.code)
        return ModelOutput(logits, mlm_loss(logits, labels))


class BEHRTForNextVisitPrediction(BEHRTHead):
    """Which codes the next visit holds: from the pooled sequence, or from every visit of it in one pass."""

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__(config)
        self.pooling = sequence_pooling(config)
        self.head = VocabularyHead(config)
        self.seen = SeenBias(config.vocab_size)
        for part in (self.pooling, self.head):
            if part is not None:
                initialise(part)

    @property
    def decoder_weight(self) -> Tensor:
        """Decoder matrix; the token embedding's own tensor where tied."""
        return self.head.decoder_weight(self.behrt.embeddings.code)

    def forward(
        self,
        codes: Tensor,
        ages: Tensor,
        visit_ids: Tensor,
        mask: Tensor,
        *,
        labels: Tensor | None = None,
        visits: Tensor | None = None,
        **optional: Unpack[OptionalInputs],
    ) -> ModelOutput:
        """Score the codes of the next visit; inputs as in `BEHRT.forward`.

        Args:
            labels: Float [batch, vocab_size] within [0, 1], 1 for each code present; [visits, vocab_size] with
                `visits`.
            visits: Long [visits, 2], row of the batch and visit id: score what follows each of these visits, from the
                mean of its tokens. Under visit-causal attention only: otherwise they would have read the answer. There
                each row's last visit is asked by default; elsewhere the pooled sequence answers.

        Returns:
            logits Float [batch, vocab_size] ([visits, vocab_size]) and the mean binary cross-entropy in nats.

        Raises:
            ConfigError: `visits` under bidirectional attention.
        """
        checked = None if labels is None else LabelRange(labels, 1)
        hidden = self.behrt(codes, ages, visit_ids, mask, label_range=checked, **optional)
        pooled, visits = asked_states(self.config, self.pooling, hidden, codes, visit_ids, mask, visits)
        logits = self.head(pooled, self.behrt.embeddings.code)
        logits = logits + self.seen(codes, visit_ids, mask, visits, self.config.num_special)
        return ModelOutput(logits, None if labels is None else binary_loss(logits, labels))


def sequence_pooling(config: BEHRTConfig) -> Pooling | None:
    """Pooling of a head of next visits; None under visit-causal attention, where each visit speaks for itself."""
    return None if config.attention == "visit_causal" else Pooling(config.hidden_dim, config.pooling)


def asked_states(
    config: BEHRTConfig,
    pooling: Pooling | None,
    hidden: Tensor,
    codes: Tensor,
    visit_ids: Tensor,
    mask: Tensor,
    visits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """States to predict from, Float [visits, hidden_dim], and the visits they stand for, Long [visits, 2].

    Raises:
        ConfigError: as `visit_representations`.
    """
    if visits is None:
        visits = last_visits(visit_ids, mask)
        if pooling is not None:
            return pooling(hidden, mask, visit_ids), visits
    return visit_representations(config, hidden, codes, visit_ids, mask, visits), visits


def last_visits(visit_ids: Tensor, mask: Tensor) -> Tensor:
    """Row and id of each row's last visit, Long [batch, 2]."""
    last = torch.where(mask, visit_ids, 0).amax(dim=1)
    return torch.stack((torch.arange(len(last), device=last.device), last), dim=1)


class SeenBias(nn.Module):
    """What is added to the score of a code, by how many visits so far held it.

    Most of what comes has come before: with this table a model need not carry the whole history through its pooled
    state to repeat it, and learns what repetition does not explain.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(SEEN_BINS, vocab_size))

    def forward(self, codes: Tensor, visit_ids: Tensor, mask: Tensor, visits: Tensor, num_special: int) -> Tensor:
        """Float [visits, vocab_size]; arguments as in `objectives.next_visit.seen_visits`."""
        seen = seen_visits(codes, visit_ids, mask, visits, vocab_size=self.table.shape[1], num_special=num_special).to(
            torch.int64
        )
        return self.table.gather(0, seen.clamp(max=SEEN_BINS - 1))


def visit_representations(
    config: BEHRTConfig, hidden: Tensor, codes: Tensor, visit_ids: Tensor, mask: Tensor, visits: Tensor
) -> Tensor:
    """Mean of the hidden states of each visit's own tokens, Float [visits, hidden_dim]; CLS belongs to none.

    Args:
        visits: Long [visits, 2], row of the batch and visit id.

    Raises:
        ConfigError: the attention is bidirectional, so that a visit has read those after it.
    """
    if config.attention != "visit_causal":
        raise ConfigError(
            "attention of a model that predicts from its visits", got=config.attention, expected="visit_causal"
        )
    return visit_means(hidden, visit_ids, mask & (codes != config.cls_id), visits)


class BEHRTForSequenceClassification(BEHRTHead, SequenceClassifier):
    """One decision per sequence.

    Args:
        config: Architecture; `config.pooling` says what the head reads.
        num_labels: 1: a binary label with one logit. More: one logit per class or label.
        problem_type: "binary", "single_label" (one class of several) or "multi_label"; by default the first for one
            label and the second for more.

    Raises:
        ConfigError: `num_labels` and `problem_type` disagree.
    """

    def __init__(self, config: BEHRTConfig, num_labels: int = 1, problem_type: str | None = None) -> None:
        super().__init__(config)
        self.decide(num_labels, problem_type)
        self.pooling = Pooling(config.hidden_dim, config.pooling)
        self.dropout = Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_dim, num_labels)
        initialise(self.pooling)
        initialise(self.classifier)

    def forward(
        self,
        codes: Tensor,
        ages: Tensor,
        visit_ids: Tensor,
        mask: Tensor,
        *,
        labels: Tensor | None = None,
        **optional: Unpack[OptionalInputs],
    ) -> ModelOutput:
        """Classify; inputs as in `BEHRT.forward`.

        Args:
            labels: Float or Bool [batch] for "binary", Long [batch] for "single_label", Float or Bool
                [batch, num_labels] for "multi_label"; within [0, 1], or a class of `num_labels`.

        Returns:
            logits Float [batch] for "binary", else [batch, num_labels], and the mean loss in nats.
        """
        hidden = self.behrt(codes, ages, visit_ids, mask, label_range=self.label_range(labels), **optional)
        return self.decided(self.classifier(self.dropout(self.pooling(hidden, mask, visit_ids))), labels)


def initialise(module: nn.Module) -> None:
    """Draw weights from truncated normal distributions; biases start at 0.

    Linear layers have standard deviation 1 / sqrt(inputs): at the widths used here 0.02, as in BERT (whose width is
    768: 1 / sqrt(768) = 0.036), would make the sublayers of a small model start near zero. Codes: `code_std`; what
    is added to codes: a fifth of that. A layer with a single output starts small, so that predictions and attention
    weights start undecided.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            _draw(child.weight, 0.02 if child.out_features == 1 else 1 / math.sqrt(child.in_features))
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Embedding):
            _draw(child.weight, CONTEXT_STD_SHARE * code_std(child.embedding_dim))
        elif isinstance(child, VocabularyHead) and child.weight is not None:
            _draw(child.weight, code_std(child.weight.shape[1]))
    for child in module.modules():
        if isinstance(child, BEHRTEmbedding):
            width = child.code.embedding_dim
            _draw(child.code.weight, code_std(width))
            # Linear layers of times and values would enter the sum seven times as large as the codes and drown them.
            for part in (child.time, child.gap, child.age_years, child.calendar):
                if part is not None:
                    _draw(part.projection.weight, CONTEXT_STD_SHARE * code_std(width) / part.input_norm)
            if child.value is not None:
                # Its inner activations have a norm of about sqrt(width) / 4.
                _draw(child.value.outer.weight, CONTEXT_STD_SHARE * code_std(width) * 4 / math.sqrt(width))


def _draw(weight: Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def scale_residual_outputs(encoder: TransformerEncoder) -> None:
    """Shrink what each sublayer adds by sqrt(2 layers), so that depth does not grow the residual stream.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    scale = 1 / math.sqrt(2 * len(encoder.layers))
    with torch.no_grad():
        for layer in encoder.modules():
            if isinstance(layer, EncoderLayer):
                layer.self_attn.out_proj.weight.mul_(scale)
                layer.linear2.weight.mul_(scale)


def extend_vocabulary(model: BEHRT | BEHRTHead, new_size: int, vocabulary_hash: str | None, seed: int) -> None:
    """Grow every tensor that has a row per token; see `BEHRTHead.extend_vocabulary`."""
    old_size, special = model.config.vocab_size, model.config.num_special
    if new_size < old_size:
        raise ConfigError("size of an extended vocabulary", got=new_size, expected=f"at least {old_size}")
    if model.adaptation is not None:
        raise AdapterError("the model carries LoRA adapters", remedy="extend the vocabulary before adapting, or merge")
    generator = torch.Generator().manual_seed(seed)

    def grown(rows: Tensor) -> nn.Parameter:
        codes = rows.detach()[special:].cpu()
        noise = torch.randn(new_size - old_size, *codes.shape[1:], generator=generator)
        new = codes.mean(dim=0) + 0.1 * codes.std(dim=0, correction=0) * noise
        return nn.Parameter(torch.cat((rows.detach(), new.to(rows))), requires_grad=rows.requires_grad)

    for module in list(model.modules()):
        if isinstance(module, BEHRTEmbedding):
            module.code.weight = grown(module.code.weight)
            module.code.num_embeddings = new_size
        elif isinstance(module, SeenBias):
            module.table = nn.Parameter(grown(module.table.T).detach().T.contiguous())
        elif isinstance(module, VocabularyHead):
            module.bias = grown(module.bias)
            if module.weight is not None:
                module.weight = grown(module.weight)
    config = model.config.with_options(vocab_size=new_size)
    for module in model.modules():
        if isinstance(module, PretrainedModel):
            module.config, module.vocabulary_hash = config, vocabulary_hash
