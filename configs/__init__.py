"""The files that people edit, as templates and presets; each is documented line by line."""
