"""The command `ehrseq`: one module per verb, each importing what it needs when it runs."""
