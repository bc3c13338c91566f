"""How fast a recipe runs here and with its peers, in real training steps. See README.md beside this file."""
