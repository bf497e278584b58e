"""Text on its way to batches: documents, tokenizers, the data builder, chunks; and a score of generated text. Depends on `kit` alone."""
