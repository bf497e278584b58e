"""Text on its way to batches: documents, tokenizers, the data builder, chunks; how language models of them are trained and scored. Depends on `kit` alone."""
