"""The commands of `fedthorax`, one module for each group of commands, and their output (`console`)."""
