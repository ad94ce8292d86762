"""Measure on the machine at hand, ML-Mamba beside a Transformer: the page and the command line share this code."""
