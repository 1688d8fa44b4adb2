"""Where embeddings lie: between the two modalities, and within each."""
