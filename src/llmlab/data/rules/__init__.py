"""Quality rules over batches of texts: one published set a file, each rule with its thresholds as fields."""
