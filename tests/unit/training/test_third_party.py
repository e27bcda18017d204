"""A stranger's vectors: matched, projected, scaled, put into a model without untying it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.unit.models.small_models import make_config

from ehrsequencing.config import FinetuneConfig, PretrainConfig, load_config
from ehrsequencing.data.vocabulary import NUM_SPECIAL, SPECIAL_TOKENS, Vocabulary
from ehrsequencing.errors import ConfigError, DataError
from ehrsequencing.models.behrt import BEHRTForMLM
from ehrsequencing.models.embedding_files import EmbeddingTable
from ehrsequencing.models.embeddings import code_std
from ehrsequencing.models.lora import apply_lora_to_behrt
from ehrsequencing.options import EmbeddingOptions
from ehrsequencing.training.third_party import (
    apply_embeddings,
    code_embedding,
    coverage,
    match_vectors,
    place_embeddings,
)

TOKENS = (
    "ICD10CM//E11.9", "ICD10CM//E11.65", "ICD10CM//I10", "ICD9CM//E849.7", "LOINC//4548-4", "LOINC//4548-4//Q3",
    "RXNORM//860975", "RACE//Black or African", "SNOMED//73211009",
)  # fmt: skip
COUNTS = (40, 10, 20, 5, 0, 15, 8, 2, 100)


def vocabulary(tokens=TOKENS, counts=COUNTS) -> Vocabulary:
    codes = [token.partition("//Q")[0] for token in tokens]
    special = len(SPECIAL_TOKENS)
    return Vocabulary(
        [*SPECIAL_TOKENS, *tokens],
        [None] * special + codes,
        [0] * (special + len(tokens)),
        [0] * special + list(counts),
    )


def table(*codes: str, width: int = 4, seed: int = 0) -> EmbeddingTable:
    vectors = np.random.default_rng(seed).standard_normal((len(codes), width)).astype(np.float32) + 1
    return EmbeddingTable(codes, vectors, "file.txt", "h")


def levels(given: EmbeddingTable, rolled=None) -> dict[str, str]:
    book = vocabulary()
    return dict(zip(TOKENS, match_vectors(given, book, rolled).level[NUM_SPECIAL:].tolist(), strict=True))


def test_tokens_are_found_by_name_then_normalised_then_by_parent():
    given = table(
        "ICD10CM//E11.9", "icd10:e11", "I10", "ICD9_E849", "4548-4", "RxNorm:860975", "race//black_or_african"
    )
    assert levels(given) == {
        "ICD10CM//E11.9": "exact",
        "ICD10CM//E11.65": "parent",
        "ICD10CM//I10": "normalised",
        "ICD9CM//E849.7": "parent",
        "LOINC//4548-4": "normalised",
        "LOINC//4548-4//Q3": "parent",
        "RXNORM//860975": "normalised",
        "RACE//Black or African": "normalised",
        "SNOMED//73211009": "none",
    }
    match = match_vectors(given, vocabulary())
    assert np.array_equal(match.vectors[NUM_SPECIAL + 1], given.vectors[1])
    assert np.array_equal(match.vectors[NUM_SPECIAL + 4], match.vectors[NUM_SPECIAL + 5])
    assert not match.vectors[-1].any()
    assert not match.found[:NUM_SPECIAL].any()


def test_the_nearest_parent_wins_and_another_system_is_no_match():
    given = table("ICD10//E11", "ICD10//E11.6", "LOINC//860975", "NDC//I10")
    match = match_vectors(given, vocabulary())
    assert np.array_equal(match.vectors[NUM_SPECIAL + 1], given.vectors[1])
    found = levels(given)
    assert found["RXNORM//860975"] == found["ICD10CM//I10"] == "none"


def test_names_that_are_alike_and_differ_in_vector_are_not_used_as_normalised():
    given = table("ICD10//I10", "icd10:i10", "ICD10CM//E11.9")
    match = match_vectors(given, vocabulary())
    assert match.ambiguous == 1
    assert levels(given)["ICD10CM//I10"] == "none"
    same = EmbeddingTable(given.codes, np.repeat(given.vectors[:1], 3, 0), "file", "h")
    assert match_vectors(same, vocabulary()).ambiguous == 0


def test_a_rolled_up_code_gets_the_mean_of_what_it_stands_for():
    given = table("RXNORM//1", "RXNORM//2", "ICD10CM//E11.9")
    rolled = {"RXNORM//1": "RXNORM//860975", "RXNORM//2": "RXNORM//860975", "RXNORM//860975": "RXNORM//860975"}
    match = match_vectors(given, vocabulary(), rolled)
    assert match.level[NUM_SPECIAL + 6] == "rolled"
    assert match.vectors[NUM_SPECIAL + 6] == pytest.approx(given.vectors[:2].mean(0))


def test_coverage_counts_tokens_and_events_by_system():
    rows = coverage(match_vectors(table("ICD10CM//E11.9", "E11", "LOINC//4548-4"), vocabulary()), vocabulary())
    assert [row["system"] for row in rows] == ["all", "SNOMED", "ICD10CM", "LOINC", "RXNORM", "ICD9CM", "RACE"]
    icd = rows[2]
    assert (icd["tokens"], icd["events"]) == (3, 70)
    assert (icd["exact"], icd["parent"], icd["none"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert (icd["exact_events"], icd["parent_events"], icd["none_events"]) == pytest.approx((4 / 7, 1 / 7, 2 / 7))
    assert rows[3]["exact_events"] == 0
    assert rows[3]["parent_events"] == 1
    every = rows[0]
    assert every["exact"] + every["normalised"] + every["parent"] + every["rolled"] + every["none"] == pytest.approx(1)


def test_a_file_of_other_codes_is_refused_with_examples_of_both():
    with pytest.raises(
        DataError, match=r"no code of it is in the vocabulary; got king, queen; expected codes such as ICD10CM//E11\.9"
    ):
        match_vectors(table("king", "queen"), vocabulary())


def store(book: Vocabulary) -> SimpleNamespace:
    return SimpleNamespace(vocabulary=book, rolled_codes={})


def model(book: Vocabulary, width: int = 4) -> BEHRTForMLM:
    torch.manual_seed(0)
    return BEHRTForMLM(make_config(embedding_dim=width).with_options(vocab_size=len(book)))


def many(width: int, tokens: int = 40) -> tuple[Vocabulary, EmbeddingTable]:
    names = [f"RXNORM//{index}" for index in range(tokens)]
    return vocabulary(names, range(tokens)), table(*names[:-4], width=width)


@pytest.mark.parametrize("scale", ["model", "file"])
def test_vectors_enter_the_tied_table_and_special_tokens_stay(scale):
    book, given = many(4)
    made = model(book)
    before = code_embedding(made).weight.detach().clone()
    applied = apply_embeddings(made, given, store(book), EmbeddingOptions(file="f", scale=scale), seed=0)
    weight = code_embedding(made).weight
    assert made.decoder_weight is weight
    assert torch.equal(weight[:NUM_SPECIAL], before[:NUM_SPECIAL])
    found = weight[NUM_SPECIAL:-4].detach().numpy()
    assert found == pytest.approx(given.vectors * applied.factor, rel=1e-5)
    if scale == "model":
        assert np.sqrt((found**2).mean()) == pytest.approx(code_std(4), rel=1e-5)
    else:
        assert applied.factor == 1
    assert applied.coverage[0]["none"] == pytest.approx(0.1)
    assert "90.0% of 40 tokens have a vector" in applied.note()


def test_what_is_not_found_starts_as_asked():
    book, given = many(4)
    rows = {}
    for how in ("normal", "mean"):
        made = model(book)
        options = EmbeddingOptions(file="f", unmatched=how, scale="file")
        apply_embeddings(made, given, store(book), options, seed=3)
        rows[how] = code_embedding(made).weight[-4:].detach().numpy()
        again = model(book)
        apply_embeddings(again, given, store(book), options, seed=3)
        assert torch.equal(code_embedding(again).weight, code_embedding(made).weight)
    assert rows["mean"] == pytest.approx(np.repeat(given.vectors.mean(0)[None], 4, 0), rel=1e-4)
    assert (np.abs(rows["normal"] - given.vectors.mean(0)) < 5 * given.vectors.std(0)).all()
    assert len(np.unique(rows["normal"])) == 16
    with pytest.raises(DataError, match=r"has no vector for 4 of 40 tokens; got RXNORM//36, RXNORM//37, RXNORM//38"):
        apply_embeddings(model(book), given, store(book), EmbeddingOptions(file="f", unmatched="error"), seed=0)


def test_other_dimensions_are_refused_or_projected_as_asked():
    book, wide = many(10)
    with pytest.raises(ConfigError, match=r"dimension of the vectors; got 10; expected 4, the model's.*=pca"):
        apply_embeddings(model(book), wide, store(book), EmbeddingOptions(file="f"), seed=0)
    made = model(book)
    options = EmbeddingOptions(file="f", dimension="pca", scale="file")
    applied = apply_embeddings(made, wide, store(book), options, seed=0)
    centred = wide.vectors - wide.vectors.mean(0)
    values = np.linalg.eigvalsh(np.cov(centred.T, bias=True))[::-1]
    found = code_embedding(made).weight[NUM_SPECIAL:-4].detach().numpy()
    assert np.cov(found.T, bias=True) == pytest.approx(np.diag(values[:4]), abs=1e-4)
    assert applied.explained == pytest.approx(values[:4].sum() / values.sum(), rel=1e-4)
    for width in (10, 2):
        book, other = many(width)
        made = model(book)
        options = EmbeddingOptions(file="f", dimension="random", scale="file")
        apply_embeddings(made, other, store(book), options, seed=0)
        found = code_embedding(made).weight[NUM_SPECIAL:-4].detach().numpy()
        if width < 4:
            # An orthonormal map into more dimensions keeps every length and angle.
            assert found @ found.T == pytest.approx(other.vectors @ other.vectors.T, rel=1e-3, abs=1e-4)
        else:
            assert (np.linalg.norm(found, axis=1) <= np.linalg.norm(other.vectors, axis=1) + 1e-5).all()
    book, narrow = many(2)
    with pytest.raises(ConfigError, match="PCA to 4 dimensions; got 36 vectors of 2"):
        apply_embeddings(model(book), narrow, store(book), EmbeddingOptions(file="f", dimension="pca"), seed=0)


def test_vectors_of_no_length_are_refused():
    book, given = many(4)
    nothing = EmbeddingTable(given.codes, given.vectors * 0, "zeros", "h")
    with pytest.raises(DataError, match="zeros: every vector found is 0"):
        apply_embeddings(model(book), nothing, store(book), EmbeddingOptions(file="f"), seed=0)


@pytest.mark.parametrize("train", [True, False])
def test_frozen_vectors_stay_frozen_under_adapters(train, tmp_path):
    book, given = many(4)
    np.savez(tmp_path / "v.npz", codes=np.array(given.codes), vectors=given.vectors)
    made, notes = model(book), []
    options = EmbeddingOptions(file=str(tmp_path / "v.npz"), train=train)
    placed = place_embeddings(made, store(book), options, seed=0, notes=notes)
    assert made.pretrained_parameters == {"behrt.embeddings.code.weight"}
    assert len(notes) == 1
    with pytest.warns(UserWarning, match="freezing"):
        apply_lora_to_behrt(made, rank=2, train_embeddings=True)
    placed.freeze(made)
    assert code_embedding(made).weight.requires_grad == train
    assert made.behrt.embeddings.age.embedding.weight.requires_grad
    assert place_embeddings(made, store(book), EmbeddingOptions(), seed=0, notes=notes) is None


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (PretrainConfig, {"embeddings.train": False}, "options of embeddings without a file have no effect"),
        (PretrainConfig, {"embeddings.file": "f", "embeddings.dimension": "crop"}, "embeddings.dimension: Input"),
        (FinetuneConfig, {"embeddings.file": "f", "embeddings.codes": "c", "embeddings.descriptions": "d"}, "name one"),
        (PretrainConfig, {"architecture": "med2vec", "embeddings.file": "f"}, "model med2vec does not read embeddings"),
        (PretrainConfig, {"architecture": "med2vec", "mlm.rate": 0.2}, "model med2vec does not read mlm"),
        (PretrainConfig, {"architecture": "skipgram", "model.size": "small"}, "model skipgram does not read model"),
        (PretrainConfig, {"architecture": "skipgram", "objective": "mlm"}, "model skipgram does not read objective"),
        (PretrainConfig, {"architecture": "skipgram", "med2vec.window": 2}, "model skipgram does not read med2vec"),
        (PretrainConfig, {"med2vec.window": 2}, "model behrt does not read med2vec"),
        (
            PretrainConfig,
            {"architecture": "word2vec"},
            "architecture: Input should be 'behrt', 'med2vec'",
        ),
    ],
)
def test_options_without_effect_are_refused(kind, given, message):
    with pytest.raises(ConfigError, match=message):
        load_config(kind, overrides=given)


def test_models_of_code_vectors_have_defaults_of_their_own_that_yield():
    own = load_config(PretrainConfig, overrides={"architecture": "med2vec"})
    assert (own.optim.lr, own.loop.token_budget, own.loop.model_fields_set) == (3e-3, 16384, set())
    asked = load_config(PretrainConfig, overrides={"architecture": "med2vec", "optim.lr": 0.5, "loop.token_budget": 99})
    assert (asked.optim.lr, asked.loop.token_budget, asked.loop.max_examples) == (0.5, 99, 2048)
    assert load_config(PretrainConfig, overrides={"architecture": "skipgram"}).optim.lr == 1e-2
    assert load_config(PretrainConfig).optim.lr == 1e-3
