"""Looking into models: what they are made of, found by probing."""
