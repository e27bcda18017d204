"""`python -m ehrsequencing` is `ehrseq`."""

from ehrsequencing.cli.main import main

main()
