"""Documents, dialogues, pairs and prompts: from files to packed batches."""
