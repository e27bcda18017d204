"""word2vec files, text and binary, against gensim: what either writes the other reads, bit for bit."""

import numpy as np
import pytest

from ehrsequencing.models.embedding_files import read_embeddings, write_embeddings

models = pytest.importorskip("gensim.models", reason="gensim is not installed")


@pytest.mark.parametrize("ending", ["txt", "bin"])
def test_gensim_reads_what_is_written_and_the_other_way_round(ending, tmp_path):
    vectors = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)
    vectors[0, 0], vectors[1, 1] = 1e-8, 3
    path, again, binary = tmp_path / f"ours.{ending}", tmp_path / f"theirs.{ending}", ending == "bin"
    write_embeddings(path, ["ICD10CM//E11.9", "A B", "x", "é//1"], vectors)
    read = models.KeyedVectors.load_word2vec_format(path, binary=binary)
    assert read.index_to_key == ["ICD10CM//E11.9", "A_B", "x", "é//1"]
    assert np.array_equal(read.vectors, vectors)
    read.save_word2vec_format(again, binary=binary)
    table = read_embeddings(again)
    assert table.codes == tuple(read.index_to_key)
    assert np.array_equal(table.vectors, vectors)
