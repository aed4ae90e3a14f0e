"""The commands of `fedthorax`, a module for each group, and how they speak."""
