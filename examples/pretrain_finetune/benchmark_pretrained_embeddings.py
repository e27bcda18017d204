"""Embeddings from scratch, own and frozen, a third party's, and random, in one model of onset of heart failure.

The third party is a Med2Vec trained on other synthetic subjects, exported, and read back as anybody's file would be; a
real stranger's file is --third_party FILE. See README.md beside this file.
"""

from pathlib import Path

from train_behrt_demo import arguments, onset_labels, options, read_flags, synthetic_store

from ehrsequencing.benchmarks.configuration import EmbeddingsConfig
from ehrsequencing.benchmarks.embeddings import benchmark_embeddings
from ehrsequencing.cli.common import exit_codes, observed, progress_bars, say
from ehrsequencing.config import load_config
from ehrsequencing.data.prepare import prepare
from ehrsequencing.data.synthetic import synthesise
from ehrsequencing.tracking.rundir import refuse_name


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "the arms that freeze embeddings always train LoRA adapters")
    parser.add_argument("--third_party", type=Path, help="file of code vectors (word2vec, GloVe, npz, parquet, ...)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings per arm")
    args = read_flags(parser)
    name = args.experiment_name or f"behrt_{args.model_size or 'small'}_embeddings"
    refuse_name(name)
    own = {f"finetune.{key}": value for key, value in options(args).items() if key != "loop.seed"}
    config = load_config(EmbeddingsConfig, overrides={**own, "finetune.lora.rank": args.lora_rank, "seeds": args.seeds})
    folder = args.output_dir / f"{name}-data"
    store, others = synthetic_store(args, folder), None
    if args.third_party is None:
        others = folder / "others-store"
        synthesise(folder / "others", subjects=args.num_patients, seed=args.seed + 1, overwrite=True)
        prepare(folder / "others", others, overwrite=True)
    summary = benchmark_embeddings(
        store, onset_labels(folder), args.output_dir / name, config,
        others=others, third_party=args.third_party, say=say, bars=progress_bars, observed=observed,
    )  # fmt: skip
    for sentence in summary["notes"] if summary is not None else []:
        say(sentence)


if __name__ == "__main__":
    with exit_codes():
        main()
