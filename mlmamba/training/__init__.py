"""Making a small ML-Mamba from scratch: synthetic scenes, questions, a tokenizer, the training loop."""
