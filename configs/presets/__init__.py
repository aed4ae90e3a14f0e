"""Studies to begin with, each for one purpose; `fedthorax study init` copies them. study.toml explains every key."""
