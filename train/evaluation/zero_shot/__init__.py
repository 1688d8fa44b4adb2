"""Classification by prompts: plain, by descriptions and attributes, by groups and frequency."""
