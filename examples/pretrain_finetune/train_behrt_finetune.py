"""Fine-tune a BEHRT with frozen pretrained embeddings: LoRA adapters and the head train.

--embedding_path names the run that learned the embeddings; without it, one is pretrained first on the same records.
See README.md beside this file.
"""

from pathlib import Path

from train_behrt_demo import arguments, onset_labels, run_adaptation, run_pretraining, synthetic_store

from ehrsequencing.errors import EhrseqError


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--embedding_path", type=Path, help="run directory that holds the pretrained model")
    args = parser.parse_args()
    name = args.experiment_name or f"behrt_{args.model_size}_finetune_lora{args.lora_rank}"
    side = args.output_dir / f"{name}-data"
    store = synthetic_store(args, side)
    base = args.embedding_path
    if base is None:
        base = args.output_dir / f"{name}-pretrain"
        run_pretraining(args, store, base)
    run_adaptation(args, store, onset_labels(side), base, args.output_dir / name)


if __name__ == "__main__":
    try:
        main()
    except EhrseqError as problem:
        raise SystemExit(f"error: {problem}") from None
