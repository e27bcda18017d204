"""Configuration of the BEHRT family: one frozen dataclass, three sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ehrsequencing.errors import ConfigError

POSITIONS = ("learned", "sinusoidal", "rotary", "none")
ATTENTIONS = ("bidirectional", "visit_causal")
AGES = ("years", "continuous", "none")
POOLINGS = ("cls", "mean", "attention", "last_visit")
ACTIVATIONS = ("gelu", "relu", "swiglu")
NORMS = ("pre", "post")


@dataclass(frozen=True)
class BEHRTConfig:
    """Architecture of a BEHRT encoder.

    Args:
        vocab_size: Number of token ids, special tokens included.
        embedding_dim: Width of the embeddings; a linear layer maps it to `hidden_dim` where the two differ.
        hidden_dim: Width of the encoder.
        num_layers: Encoder layers.
        num_heads: Attention heads; divides `hidden_dim`.
        ffn_dim: Inner width of the feed-forward part; of "swiglu" two thirds of it, which has as many weights.
        max_length: Longest sequence, in tokens, CLS included.
        max_age: Oldest age in years that has its own embedding, plus one; the index `max_age` means unknown.
        max_visits: Number of visit ids.
        dropout: On embeddings, sublayer outputs and heads.
        attention_dropout: On attention weights; anything above 0 costs the fast kernel.
        attention: "bidirectional", or "visit_causal": a token reads its own visit and those before it. CLS reads
            everything and nobody reads it.
        position: "learned" or "sinusoidal" embeddings, "rotary" (queries and keys turned by their position) or "none".
        age: "years" (a vector per year), "continuous" (Time2Vec of `age_years`) or "none".
        num_kinds: Number of kinds of code, each embedded; index 0 is "none" (CLS, padding), so ids run to
            `num_kinds` inclusive. 0: no kind embedding.
        time_embedding: Embed days before the prediction time; no input of visit-causal attention, to which they would
            tell how long the history goes on.
        gap_embedding: Embed days since the visit before.
        calendar_embedding: Embed the calendar date (Time2Vec of `calendar`).
        use_values: Embed numeric values as a continuous quantity in [0, 1].
        separators: Sequences come with a separator token after each visit; the model itself adds none.
        tie_weights: Decode with the token embedding instead of with a matrix of its own.
        pad_id, unk_id, cls_id, sep_id, mask_id: Special token ids; all below `num_special`.
        num_special: Ids below this are special tokens, from here on codes.
        pooling: How a task head reads a sequence: "cls" (first real token), "mean", "attention" or "last_visit" (mean
            over the visit with the highest id).
        activation: "gelu", "relu" or "swiglu".
        norm: "pre" or "post" layer normalisation.

    Raises:
        ConfigError: a value is out of range or two values disagree.
    """

    vocab_size: int
    embedding_dim: int = 64
    hidden_dim: int = 128
    num_layers: int = 2
    num_heads: int = 4
    ffn_dim: int = 512
    max_length: int = 512
    max_age: int = 120
    max_visits: int = 512
    dropout: float = 0.1
    attention_dropout: float = 0.0
    attention: str = "bidirectional"
    position: str = "learned"
    age: str = "years"
    num_kinds: int = 0
    time_embedding: bool = False
    gap_embedding: bool = False
    calendar_embedding: bool = False
    use_values: bool = False
    separators: bool = False
    tie_weights: bool = True
    pad_id: int = 0
    unk_id: int = 1
    cls_id: int = 2
    sep_id: int = 3
    mask_id: int = 4
    num_special: int = 5
    pooling: str = "cls"
    activation: str = "gelu"
    norm: str = "pre"

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "hidden_dim", "num_layers", "num_heads", "ffn_dim", "max_length", "max_age"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a BEHRT model", got=getattr(self, name), expected="at least 1")
        if self.vocab_size <= self.num_special:
            raise ConfigError(
                "vocab_size", got=self.vocab_size, expected=f"more than {self.num_special} special tokens"
            )
        if self.max_visits < 1 or self.num_kinds < 0:
            raise ConfigError("max_visits, num_kinds", got=(self.max_visits, self.num_kinds), expected="1+ and 0+")
        if self.hidden_dim % self.num_heads:
            raise ConfigError("hidden_dim", got=self.hidden_dim, expected=f"a multiple of num_heads {self.num_heads}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(name, got=getattr(self, name), expected="at least 0 and below 1")
        choices = {
            "attention": ATTENTIONS,
            "position": POSITIONS,
            "age": AGES,
            "pooling": POOLINGS,
            "activation": ACTIVATIONS,
            "norm": NORMS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(name, got=repr(getattr(self, name)), expected=f"one of {', '.join(allowed)}")
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
        special = (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)
        if len(set(special)) < len(special) or not all(0 <= token < self.num_special for token in special):
            raise ConfigError("special token ids", got=special, expected=f"distinct ids below {self.num_special}")

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
    def from_dict(cls, values: dict[str, Any]) -> BEHRTConfig:
        """Inverse of `to_dict`; an unknown or missing key is a ConfigError.

        >>> BEHRTConfig.from_dict({"vocab_size": 100, "layers": 3})
        Traceback (most recent call last):
        ...
        ehrsequencing.errors.ConfigError: unknown option of BEHRTConfig; got layers. Remedy: check the spelling
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError("unknown option of BEHRTConfig", got=", ".join(unknown), remedy="check the spelling")
        if "vocab_size" not in values:
            raise ConfigError("BEHRTConfig lacks vocab_size")
        return cls(**values)

    def with_options(self, **overrides: Any) -> BEHRTConfig:
        """A copy with some values changed."""
        return replace(self, **overrides) if overrides else self
