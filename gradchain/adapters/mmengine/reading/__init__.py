"""Config files as dicts: inheritance, literals, statements; nothing of a file is run."""
