"""EHR Sequencing: electronic health records to patient sequences, transformers and honest comparisons."""

__version__ = "0.1.0"
