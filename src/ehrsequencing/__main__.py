"""`python -m ehrsequencing` is `ehrseq`."""

from ehrsequencing.cli.main import main

if __name__ == "__main__":
    main()
