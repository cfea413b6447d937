"""Races: recipes that differ in a few fields, same data and seeds, paired differences with intervals."""
