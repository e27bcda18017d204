"""Train on one-year onset of heart failure with a frozen pretrained BEHRT: the head, and with --use_lora adapters.

--embedding_path names the run that learned the embeddings; without it, one is pretrained first on the same records.
See README.md beside this file.
"""

from pathlib import Path

from train_behrt_demo import adaptation, arguments, read_flags

from ehrsequencing.cli.common import exit_codes
from ehrsequencing.errors import ConfigError


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "train LoRA adapters in the frozen encoder, and not the head alone")
    parser.add_argument("--embedding_path", type=Path, help="run directory that holds the pretrained model")
    args = read_flags(parser)
    if args.embedding_path is not None and args.model_size is not None:
        raise ConfigError(
            "--model_size would have no effect: the model is that of --embedding_path", remedy="leave out one of them"
        )
    name = f"behrt_{args.model_size or 'small'}_finetune" if args.embedding_path is None else "behrt_finetune"
    name += f"_lora{args.lora_rank or 8}" if args.use_lora else "_probe"
    adaptation(args, name if args.experiment_name is None else args.experiment_name, args.embedding_path)


if __name__ == "__main__":
    with exit_codes():
        main()
