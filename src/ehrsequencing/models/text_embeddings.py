"""Vectors of codes from what their descriptions say, by any sentence transformer on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ehrsequencing.errors import DataError
from ehrsequencing.io import hash_bytes
from ehrsequencing.models.embedding_files import EmbeddingTable


def describe_codes(model: str | Path, descriptions: Mapping[str, str]) -> EmbeddingTable:
    """Embed descriptions of codes.

    Args:
        model: Folder of a sentence transformer; nothing is downloaded.
        descriptions: Code to description; blank ones are left out.

    Raises:
        DataError: sentence-transformers is not installed, the folder holds no such model, or nothing is described.
    """
    model = Path(model)
    if not model.is_dir():
        raise DataError(
            f"{model} is no folder of a sentence transformer",
            remedy="download a model yourself, and name its folder with --embeddings",
        )
    described = {code: text.strip() for code, text in descriptions.items() if text and text.strip()}
    if not described:
        raise DataError("no code has a description", remedy="fill `description` in metadata/codes.parquet")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise DataError("sentence-transformers is not installed", remedy="pip install 'ehrsequencing[text]'") from None
    try:
        encoder = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    except (OSError, ValueError, KeyError) as problem:
        what = str(problem).splitlines()[0][:120]
        raise DataError(f"{model} holds no sentence transformer", got=what, remedy="name its folder") from None
    texts = sorted(set(described.values()))
    rows = np.asarray(encoder.encode(texts, show_progress_bar=False), dtype=np.float32)
    place = {text: index for index, text in enumerate(texts)}
    codes = tuple(sorted(described))
    vectors = rows[[place[described[code]] for code in codes]]
    said = "\n".join(f"{code} {described[code]}" for code in codes).encode()
    return EmbeddingTable(codes, vectors, f"descriptions read by {model}", hash_bytes(said, vectors.tobytes()))
