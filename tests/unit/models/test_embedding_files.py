"""Vectors of codes in files: every format read and written, hostile ones refused in one line."""

import pickle
import struct
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrsequencing.errors import DataError
from ehrsequencing.models.embedding_files import EmbeddingTable, read_embeddings, write_embeddings
from ehrsequencing.models.text_embeddings import describe_codes

CODES = ("ICD10CM//E11.9", "LOINC//4548-4//Q3", "250.00", "Ünicode//1")
VECTORS = np.array([[0.1, -2.0, 3e-8], [1.0, 0.0, 5.5], [-0.25, 7.0, 1e9], [1 / 3, 2.0, 3.0]], dtype=np.float32)


def frame() -> pl.DataFrame:
    return pl.DataFrame({"code": CODES, **{f"d{index}": VECTORS[:, index] for index in range(3)}})


def written(path: Path) -> Path:
    """The table in the format that the ending names, written by hand or by the format's own library."""
    suffix = path.suffix
    if suffix == ".npz":
        np.savez(path, tokens=np.array(CODES), weights=VECTORS)
    elif suffix == ".npy":
        np.save(path, VECTORS)
        path.with_suffix(".txt").write_text("\n".join(CODES) + "\n")
    elif suffix == ".pt":
        torch.save({"codes": list(CODES), "vectors": torch.from_numpy(VECTORS)}, path)
    elif suffix == ".pth":
        torch.save(dict(zip(CODES, torch.from_numpy(VECTORS), strict=True)), path)
    elif suffix == ".parquet":
        pl.DataFrame({"code": CODES, "vector": VECTORS.tolist()}).write_parquet(path)
    elif suffix in (".csv", ".tsv"):
        frame().write_csv(path, separator="\t" if suffix == ".tsv" else ",")
    elif suffix == ".bin":
        rows = (code.encode() + b" " + struct.pack("<3f", *row) for code, row in zip(CODES, VECTORS, strict=True))
        path.write_bytes(b"4 3\n" + b"\n".join(rows))
    else:
        rows = [f"{code} {' '.join(map(repr, map(float, row)))}" for code, row in zip(CODES, VECTORS, strict=True)]
        path.write_text("\n".join(["4 3"] * (suffix == ".vec") + rows) + "\n")
    return path


FORMATS = (".npz", ".npy", ".pt", ".pth", ".parquet", ".csv", ".tsv", ".bin", ".vec", ".txt")


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_read(suffix, tmp_path):
    table = read_embeddings(written(tmp_path / f"vectors{suffix}"))
    assert table.codes == CODES
    assert np.array_equal(table.vectors, VECTORS)
    assert len(table.hash) == 64


@pytest.mark.parametrize("suffix", [".txt", ".bin", ".npz"])
@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1), min_size=1, unique=True),
    st.integers(1, 5),
    st.integers(0, 2**31),
)
def test_what_is_written_is_read_back_bit_for_bit(tmp_path_factory, suffix, codes, width, seed):
    path = tmp_path_factory.mktemp("round") / f"vectors{suffix}"
    random = np.random.default_rng(seed)
    vectors = (random.standard_normal((len(codes), width)) * 10.0 ** random.integers(-30, 30)).astype(np.float32)
    write_embeddings(path, codes, vectors)
    table = read_embeddings(path)
    assert table.codes == tuple(codes)
    assert np.array_equal(table.vectors, vectors)


def test_tensors_of_a_training_are_read(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2, 3))
    torch.save({"names": ("a", "b"), "weight": weight}, tmp_path / "parameter.pt")
    torch.save({"names": ["a", "b"], "weight": torch.eye(2).to_sparse()}, tmp_path / "sparse.pt")
    torch.save({"a": weight[0], "b": weight[1]}, tmp_path / "rows.pt")
    assert read_embeddings(tmp_path / "parameter.pt").vectors.tolist() == [[1.0] * 3] * 2
    assert read_embeddings(tmp_path / "sparse.pt").vectors.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert read_embeddings(tmp_path / "rows.pt").codes == ("a", "b")


def test_codes_with_blanks(tmp_path):
    (tmp_path / "text.vec").write_text("2 2\nRACE//Black or African 0.5 1\nDRG 470 3 4\n")
    assert read_embeddings(tmp_path / "text.vec").codes == ("RACE//Black or African", "DRG 470")
    write_embeddings(tmp_path / "again.bin", ["RACE//Black or African"], np.ones((1, 2)))
    assert read_embeddings(tmp_path / "again.bin").codes == ("RACE//Black_or_African",)
    with pytest.raises(DataError, match="names a code twice; got a_b"):
        write_embeddings(tmp_path / "clash.txt", ["a b", "a_b"], np.ones((2, 2)))
    write_embeddings(tmp_path / "exact.npz", ["a b", "a_b"], np.ones((2, 2)))
    assert read_embeddings(tmp_path / "exact.npz").codes == ("a b", "a_b")


def test_codes_of_an_array_may_lie_elsewhere(tmp_path):
    written(tmp_path / "vectors.npy").with_suffix(".txt").rename(tmp_path / "names")
    with pytest.raises(DataError, match=r"vectors\.txt is missing.*embeddings\.codes"):
        read_embeddings(tmp_path / "vectors.npy")
    assert read_embeddings(tmp_path / "vectors.npy", codes=tmp_path / "names").codes == CODES
    with pytest.raises(DataError, match="a file of codes belongs to vectors in .npy"):
        read_embeddings(written(tmp_path / "vectors.npz"), codes=tmp_path / "names")


TEXTS = {
    b"3 2\na 1 2\nb 3 4\n": "states another number of vectors; got 2; expected 3",
    b"1 2\na 1 2\nb 3 4\n": "states another number of vectors; got 2; expected 1",
    b"2 3\na 1 2\nb 3 4\n": "line 2 is no row of word2vec or GloVe text; got 3 fields; expected a code and 3 numbers",
    b"2 2\na 1 x\nb 3 4\n": "line 2 is no row.*got a 1 x",
    b"a 1 2\nb 1\n": "line 2 is no row.*got 2 fields; expected a code and 2 numbers",
    b"a 1 2\nb 1 2 3\n": "line 2 is no row.*got 3 numbers; expected 2, as in the first line",
    b"a 1 2\na 3 4\n": "names a code twice; got a",
    b"a 1 nan\nb 1 2\n": "vectors that are not finite; got 1, first of a",
    b"a 1 2\nb inf 2\n": "vectors that are not finite; got 1, first of b",
    b"a 1 1e39\n": "vectors that are not finite; got 1, first of a",
    b"a 1 2\n\xff\xfe 1 2\n": "line 2: not UTF-8; got byte 0xff",
    b"hello\n": "dimension of the vectors; got 0; expected 1 to 16384",
    b"9 99999999999\na 1\n": "dimension of the vectors; got 99999999999; expected 1 to 16384",
    b"0 5\n": "holds no vectors",
    b"\n\n": "holds no vectors",
    b"": "is empty",
}


@pytest.mark.parametrize("content", TEXTS)
def test_damaged_text_is_refused(content, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=TEXTS[content]) as caught:
        read_embeddings(path)
    assert "\n" not in str(caught.value)


BINARIES = {
    b"2 2\na \x00\x00\x80?\x00\x00\x80?": "ends within a vector; got 1 whole vectors; expected 2 of 2 numbers",
    b"1 2\na \x00\x00\x80?\x00": "ends within a vector; got 0 whole vectors",
    b"1 1\na \x00\x00\x80?\nb \x00\x00\x80?": "goes on behind its last vector",
    b"1 1\n\xff\xff \x00\x00\x80?": "the name of vector 1 is not UTF-8",
    b"1 1\na \x00\x00\xc0\x7f": "not finite; got 1, first of a",
    b"1 9999999999\na ": "dimension of the vectors; got 9999999999",
    b"999999999999 2\na ": "ends within a vector; got 0 whole vectors",
    b"\x80\x04K\x01.": "is no word2vec binary",
    b"0 3\n": "holds no vectors",
}


@pytest.mark.parametrize("content", BINARIES)
def test_damaged_binaries_are_refused(content, tmp_path):
    path = tmp_path / "vectors.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=BINARIES[content]):
        read_embeddings(path)


def test_every_cut_of_every_format_is_refused_or_read_whole(tmp_path):
    for suffix in FORMATS:
        whole = written(tmp_path / f"whole{suffix}").read_bytes()
        for length in range(0, len(whole), max(1, len(whole) // 25)):
            cut = tmp_path / f"cut{suffix}"
            cut.write_bytes(whole[:length])
            (tmp_path / "cut.txt").unlink(missing_ok=True) if suffix != ".txt" else None
            if suffix == ".npy":
                (tmp_path / "cut.txt").write_text("\n".join(CODES))
            try:
                table = read_embeddings(cut)
            except DataError as problem:
                assert "\n" not in str(problem)
                continue
            # Text may end with a row, or within its last number; what is left must be a part of the whole.
            assert suffix in (".txt", ".vec", ".csv", ".tsv"), suffix
            assert table.codes == CODES[: len(table.codes)]


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_refused_and_not_run(tmp_path):
    sprung = tmp_path / "sprung"
    for name in ("a.pt", "b.pth"):
        torch.save({"codes": ["a"], "vectors": torch.ones(1, 2), "more": Trap(sprung)}, tmp_path / name)
        with pytest.raises(
            DataError, match="holds more than tensors, lists and names; got a pickle that could run code"
        ):
            read_embeddings(tmp_path / name)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DataError, match=r"raw\.pt"):
        read_embeddings(tmp_path / "raw.pt")
    np.savez(tmp_path / "c.npz", codes=np.array(["a", 1], dtype=object), vectors=np.ones((2, 2)))
    with pytest.raises(DataError, match=r"c\.npz is not readable; got Object arrays cannot be loaded"):
        read_embeddings(tmp_path / "c.npz")
    assert not sprung.exists()


def refused(path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_embeddings(path)


def test_other_layouts_are_refused(tmp_path):
    np.savez(tmp_path / "two.npz", codes=np.array(["a"]), x=np.ones((1, 2)), y=np.ones((1, 2)))
    refused(tmp_path / "two.npz", r"does not say which vectors belong to which codes; got codes <U1 \(1,\), x <f8")
    np.savez(tmp_path / "short.npz", codes=np.array(["a", "b"]), x=np.ones((1, 2)))
    refused(tmp_path / "short.npz", "codes and vectors differ in number; got 2; expected 1")
    np.savez(tmp_path / "wide.npz", codes=np.array(["a"]), x=np.ones((1, 20_000), np.float16))
    refused(tmp_path / "wide.npz", "dimension of the vectors; got 20000; expected at most 16384")
    torch.save(torch.ones(2, 2), tmp_path / "bare.pt")
    refused(tmp_path / "bare.pt", "holds no dictionary; got Tensor")
    torch.save({"a": torch.ones(2), "b": torch.ones(3)}, tmp_path / "ragged.pt")
    refused(tmp_path / "ragged.pt", "does not say which vectors belong to which codes")
    pl.DataFrame({"code": ["a", "b"], "v": [[1.0], [1.0, 2.0]]}).write_parquet(tmp_path / "ragged.parquet")
    refused(tmp_path / "ragged.parquet", "vectors differ in length; got 1 to 2 numbers")
    pl.DataFrame({"code": ["a", "b"], "v": [["x"], ["y"]]}).write_parquet(tmp_path / "words.parquet")
    refused(tmp_path / "words.parquet", r"column v holds no vectors; got List\(String\), 0 null")
    holes = pl.DataFrame({"code": ["a", "b"], "v": pl.Series([[1.0], None], dtype=pl.Array(pl.Float32, 1))})
    holes.write_parquet(tmp_path / "holes.parquet")
    refused(tmp_path / "holes.parquet", "column v holds no vectors; got Array.*1 null")
    pl.DataFrame({"code": ["a", None], "v": [1.0, 2.0]}).write_parquet(tmp_path / "null.parquet")
    refused(tmp_path / "null.parquet", "holds rows without a code; got 1")
    pl.DataFrame({"x": [1.0]}).write_parquet(tmp_path / "no.parquet")
    refused(tmp_path / "no.parquet", "is no table of vectors; got 1 rows of x")
    (tmp_path / "bad.csv").write_text("code,a,b\nx,1,zwei\n")
    refused(tmp_path / "bad.csv", r"bad\.csv is not readable")
    (tmp_path / "gap.csv").write_text("code,a,b\nx,1,\ny,1,2\n")
    refused(tmp_path / "gap.csv", "not finite; got 1, first of x")
    (tmp_path / "latin.csv").write_bytes(b"code,a\n\xe9\xff,1\n")
    refused(tmp_path / "latin.csv", r"latin\.csv is not readable")
    refused(tmp_path / "none.txt", "none.txt is missing")
    refused(tmp_path, "is a folder; expected a file of vectors")
    np.save(tmp_path / "words.npy", np.array([["a"]]))
    (tmp_path / "words.txt").write_text("a\n")
    refused(tmp_path / "words.npy", "holds no numbers; got <U1")
    with pytest.raises(DataError, match="x holds no vectors"):
        EmbeddingTable((), np.zeros((0, 3), np.float32), "x", "")


def test_descriptions_need_their_library_and_a_model(tmp_path):
    with pytest.raises(DataError, match="is no folder of a sentence transformer.*--embeddings"):
        describe_codes(tmp_path / "none", {"a": "type 2 diabetes"})
    with pytest.raises(DataError, match="no code has a description"):
        describe_codes(tmp_path, {"a": "  "})
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match=r"sentence-transformers is not installed.*ehrsequencing\[text\]"):
            describe_codes(tmp_path, {"a": "type 2 diabetes"})
    else:
        with pytest.raises(DataError, match="holds no sentence transformer"):
            describe_codes(tmp_path, {"a": "type 2 diabetes"})


def test_descriptions_are_read_by_a_local_model(tmp_path):
    pytest.importorskip("sentence_transformers")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "type", "diabetes", "hypertension"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **small)).save_pretrained(tmp_path)
    table = describe_codes(tmp_path, {"E11": "type diabetes", "I10": "hypertension", "X": " ", "E13": "type diabetes"})
    assert table.codes == ("E11", "E13", "I10")
    assert table.vectors.shape == (3, 16)
    assert np.array_equal(table.vectors[0], table.vectors[1])
    assert not np.array_equal(table.vectors[0], table.vectors[2])
