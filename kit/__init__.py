"""What all four systems need: verbs that a training loop calls, one noun per file. `kit` knows no room."""
