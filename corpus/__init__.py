"""Text on its way to batches: documents, tokenizers, the data builder, chunks. Depends on `kit` alone."""
