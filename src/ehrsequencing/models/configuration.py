"""Configurations of the models: frozen dataclasses, three sizes each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

from ehrsequencing.errors import ConfigError

POSITIONS = ("learned", "sinusoidal", "rotary", "none")
ATTENTIONS = ("bidirectional", "visit_causal")
AGES = ("years", "continuous", "none")
POOLINGS = ("cls", "mean", "attention", "last_visit")
ACTIVATIONS = ("gelu", "relu", "swiglu")
NORMS = ("pre", "post")


@dataclass(frozen=True)
class SequenceConfig:
    """What every model of a history has: its vocabulary, its inputs and their widths.

    Args:
        vocab_size: Number of token ids, special tokens included.
        embedding_dim: Width of the embeddings; a linear layer maps it to `hidden_dim` where the two differ.
        hidden_dim: Width of the encoder.
        num_layers: Encoder layers.
        max_length: Longest sequence, in tokens, CLS included.
        max_age: Oldest age in years that has its own embedding, plus one; the index `max_age` means unknown.
        max_visits: Number of visit ids.
        dropout: On embeddings, sublayer outputs and heads.
        age: "years" (a vector per year), "continuous" (Time2Vec of `age_years`) or "none".
        num_kinds: Number of kinds of code, each embedded; index 0 is "none" (CLS, padding), so ids run to
            `num_kinds` inclusive. 0: no kind embedding.
        time_embedding: Embed days before the prediction time; no input of visit-causal attention, to which they would
            tell how long the history goes on.
        gap_embedding: Embed days since the visit before.
        calendar_embedding: Embed the calendar date (Time2Vec of `calendar`).
        use_values: Embed numeric values as a continuous quantity in [0, 1].
        separators: Sequences come with a separator token after each visit; the model itself adds none.
        pad_id, unk_id, cls_id, sep_id, mask_id: Special token ids; all below `num_special`.
        num_special: Ids below this are special tokens, from here on codes.
        pooling: How a task head reads a sequence: "cls" (first real token), "mean", "attention" or "last_visit" (mean
            over the visit with the highest id).

    Raises:
        ConfigError: a value is out of range or two values disagree.
    """

    family: ClassVar[str] = "sequence"
    poolings: ClassVar[tuple[str, ...]] = POOLINGS

    vocab_size: int
    embedding_dim: int = 64
    hidden_dim: int = 128
    num_layers: int = 2
    max_length: int = 512
    max_age: int = 120
    max_visits: int = 512
    dropout: float = 0.1
    age: str = "years"
    num_kinds: int = 0
    time_embedding: bool = False
    gap_embedding: bool = False
    calendar_embedding: bool = False
    use_values: bool = False
    separators: bool = False
    pad_id: int = 0
    unk_id: int = 1
    cls_id: int = 2
    sep_id: int = 3
    mask_id: int = 4
    num_special: int = 5
    pooling: str = "cls"

    def __post_init__(self) -> None:
        self._at_least_one("embedding_dim", "hidden_dim", "num_layers", "max_length", "max_age")
        if self.vocab_size <= self.num_special:
            raise ConfigError(
                "vocab_size", got=self.vocab_size, expected=f"more than {self.num_special} special tokens"
            )
        if self.max_visits < 1 or self.num_kinds < 0:
            raise ConfigError("max_visits, num_kinds", got=(self.max_visits, self.num_kinds), expected="1+ and 0+")
        self._share("dropout")
        self._one_of("age", AGES)
        self._one_of("pooling", self.poolings)
        special = (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)
        if len(set(special)) < len(special) or not all(0 <= token < self.num_special for token in special):
            raise ConfigError("special token ids", got=special, expected=f"distinct ids below {self.num_special}")

    def _at_least_one(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a {self.family} model", got=getattr(self, name), expected="at least 1")

    def _share(self, name: str) -> None:
        if not 0 <= getattr(self, name) < 1:
            raise ConfigError(name, got=getattr(self, name), expected="at least 0 and below 1")

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ConfigError(name, got=repr(getattr(self, name)), expected=f"one of {', '.join(allowed)}")

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the tensors that `forward` takes with this configuration."""
        optional = {name: wanted for name, (wanted, _) in self.optional_inputs().items()}
        return ("codes", "ages", "visit_ids", "mask", *(name for name, wanted in optional.items() if wanted))

    def optional_inputs(self) -> dict[str, tuple[bool, str]]:
        """Of each further input of `forward`: whether it is wanted, and the option that says so."""
        return {
            "kinds": (self.num_kinds > 0, "num_kinds"),
            "times": (self.time_embedding, "time_embedding"),
            "values": (self.use_values, "use_values"),
            "gaps": (self.gap_embedding, "gap_embedding"),
            "age_years": (self.age == "continuous", "age"),
            "calendar": (self.calendar_embedding, "calendar_embedding"),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`; an unknown or missing key is a ConfigError.

        >>> BEHRTConfig.from_dict({"vocab_size": 100, "layers": 3})
        Traceback (most recent call last):
        ...
        ehrsequencing.errors.ConfigError: unknown option of BEHRTConfig; got layers. Remedy: check the spelling
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"unknown option of {cls.__name__}", got=", ".join(unknown), remedy="check the spelling")
        if "vocab_size" not in values:
            raise ConfigError(f"{cls.__name__} lacks vocab_size")
        return cls(**values)

    def with_options(self, **overrides: Any) -> Self:
        """A copy with some values changed."""
        return replace(self, **overrides) if overrides else self


@dataclass(frozen=True)
class BEHRTConfig(SequenceConfig):
    """Architecture of a BEHRT encoder; what it shares with other models is in `SequenceConfig`.

    Args:
        num_heads: Attention heads; divides `hidden_dim`.
        ffn_dim: Inner width of the feed-forward part; of "swiglu" two thirds of it, which has as many weights.
        attention_dropout: On attention weights; anything above 0 costs the fast kernel.
        attention: "bidirectional", or "visit_causal": a token reads its own visit and those before it. CLS reads
            everything and nobody reads it.
        position: "learned" or "sinusoidal" embeddings, "rotary" (queries and keys turned by their position) or "none".
        tie_weights: Decode with the token embedding instead of with a matrix of its own.
        activation: "gelu", "relu" or "swiglu".
        norm: "pre" or "post" layer normalisation.

    Raises:
        ConfigError: a value is out of range or two values disagree.
    """

    family: ClassVar[str] = "BEHRT"

    num_heads: int = 4
    ffn_dim: int = 512
    attention_dropout: float = 0.0
    attention: str = "bidirectional"
    position: str = "learned"
    tie_weights: bool = True
    activation: str = "gelu"
    norm: str = "pre"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least_one("num_heads", "ffn_dim")
        if self.hidden_dim % self.num_heads:
            raise ConfigError("hidden_dim", got=self.hidden_dim, expected=f"a multiple of num_heads {self.num_heads}")
        self._share("attention_dropout")
        self._one_of("attention", ATTENTIONS)
        self._one_of("position", POSITIONS)
        self._one_of("activation", ACTIVATIONS)
        self._one_of("norm", NORMS)
        if self.attention == "visit_causal" and self.time_embedding:
            raise ConfigError(
                "time_embedding under visit-causal attention",
                got="days before the prediction time, which lies after the visits to predict",
                expected="gap_embedding",
            )
        if self.position == "sinusoidal" and self.embedding_dim % 2:
            raise ConfigError(
                "embedding_dim", got=self.embedding_dim, expected="an even number for sinusoidal positions"
            )
        if self.position == "rotary" and self.hidden_dim // self.num_heads % 2:
            raise ConfigError(
                "hidden_dim / num_heads", got=self.hidden_dim // self.num_heads, expected="even for rotary positions"
            )

    @classmethod
    def small(cls, vocab_size: int, **overrides: Any) -> BEHRTConfig:
        """About 0.5 M parameters at 1,000 codes; trains on a laptop."""
        return cls.from_dict({"vocab_size": vocab_size, **overrides})

    @classmethod
    def medium(cls, vocab_size: int, **overrides: Any) -> BEHRTConfig:
        """2 to 3 M parameters at 1,000 codes."""
        # Three times the hidden width, not four: four would make 3.5 M.
        size = {"embedding_dim": 128, "hidden_dim": 256, "num_layers": 4, "num_heads": 4, "ffn_dim": 768}
        return cls.from_dict({"vocab_size": vocab_size, **size, **overrides})

    @classmethod
    def large(cls, vocab_size: int, **overrides: Any) -> BEHRTConfig:
        """10 to 20 M parameters at 1,000 codes; for one data-centre GPU."""
        size = {"embedding_dim": 256, "hidden_dim": 512, "num_layers": 6, "num_heads": 8, "ffn_dim": 2048}
        return cls.from_dict({"vocab_size": vocab_size, **size, **overrides})


@dataclass(frozen=True)
class VisitConfig(SequenceConfig):
    """Architecture of a model that reads a history visit by visit.

    Raises:
        ConfigError: a value is out of range, or separators are asked for: these models know visits by their ids.
    """

    family: ClassVar[str] = "visit"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.separators:
            raise ConfigError("separators of a model over visits", got=True, expected="False: visits have ids")


@dataclass(frozen=True)
class VisitLSTMConfig(VisitConfig):
    """Architecture of an LSTM over visits.

    Args:
        bidirectional: Read the visits in both directions, with half of `hidden_dim` each.

    Raises:
        ConfigError: as `VisitConfig`, or an odd `hidden_dim` for two directions.
    """

    family: ClassVar[str] = "LSTM"
    poolings: ClassVar[tuple[str, ...]] = ("mean", "attention", "last_visit")

    pooling: str = "attention"
    bidirectional: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bidirectional and self.hidden_dim % 2:
            raise ConfigError("hidden_dim", got=self.hidden_dim, expected="an even number for two directions")


@dataclass(frozen=True)
class RETAINConfig(VisitConfig):
    """Architecture of RETAIN; its attention over visits is its pooling."""

    family: ClassVar[str] = "RETAIN"
    poolings: ClassVar[tuple[str, ...]] = ("attention",)

    pooling: str = "attention"
    num_layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_layers != 1:
            raise ConfigError("num_layers of RETAIN", got=self.num_layers, expected="1, as published")
