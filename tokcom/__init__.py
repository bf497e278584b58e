"""TokCom: a VAE turns a chunk of tokens into one vector, flow matching writes the vectors."""
